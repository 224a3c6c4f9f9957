"""The result of an inference or an engine: a picture of the object with all that is needed to judge it."""

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ptycho_torch.core.errors import DataError
from ptycho_torch.core.files import atomic_write
from ptycho_torch.io.npz import read_arrays


@dataclass(frozen=True, eq=False)
class Reconstruction:
    """A reconstructed object on its canvas. ``object[r, c]`` sits at ``origin_yx + (r, c)`` in object pixels."""

    object: NDArray[np.complex64]
    """Complex transmission, (rows, columns), in units such that ``probe`` × ``object`` gives photons."""

    coverage: NDArray[np.float32]
    """Illumination: the probe power summed over all positions at each object pixel, in photons, (rows, columns)."""

    origin_yx: NDArray[np.int64]
    """Object coordinates of ``object[0, 0]``, (2,)."""

    probe: NDArray[np.complex64]
    """Probe modes in units of √photons, (M, N, N)."""

    positions: NDArray[np.float64]
    """Scan positions (y, x) that the object was made from, in object pixels, (n, 2)."""

    photons_per_unit: float = 1.0
    """Photons for one squared unit of the scan file's amplitude: compares the model with the measurement."""

    background: NDArray[np.float32] | None = None
    """Photons added to every pattern, (N, N), zero frequency at [0, 0]; None: none."""

    intensities: NDArray[np.float32] | None = None
    """Power of the probe in each pattern over its mean, (n,); None: all alike."""

    uncertainty: NDArray[np.float32] | None = None
    """Standard deviation of each pixel, sqrt(E|object − truth|²) after a complex factor, in the object's unit, (rows,
    columns); infinite where no light fell. None: not stated."""

    history: dict[str, list[float]] = field(default_factory=dict)
    """Figures by name, one an epoch, where the maker kept them (``"epoch"``, ``"loss"``, ``"val_loss"``, …)."""

    metadata: dict[str, Any] = field(default_factory=dict)
    """Where it came from: method, scan file, indices of the patterns used, command. JSON."""

    def save(self, path: str | Path) -> None:
        """Write to ``path`` (NPZ), whole or not at all; the same values give the same bytes."""
        extra = {"photons_per_unit": self.photons_per_unit, "history": self.history, "metadata": self.metadata}
        optional = {"background": self.background, "intensities": self.intensities, "uncertainty": self.uncertainty}
        present: dict[str, Any] = {name: array for name, array in optional.items() if array is not None}
        with atomic_write(path) as temp_path:
            np.savez(
                temp_path,
                **present,
                object=self.object,
                coverage=self.coverage,
                origin_yx=self.origin_yx,
                probe=self.probe,
                positions=self.positions,
                metadata=np.array(json.dumps(extra, sort_keys=True)),
            )


def load_reconstruction(path: str | Path) -> Reconstruction:
    """Read what :meth:`Reconstruction.save` wrote.

    Raises:
        DataError: the file is missing, is no NPZ, lacks a key, or its parts do not fit.
    """

    arrays = read_arrays(Path(path))
    required = ("object", "coverage", "origin_yx", "probe", "positions", "metadata")
    missing = [key for key in required if key not in arrays]
    if missing:
        raise DataError(
            f"{path}: no reconstruction: {', '.join(missing)} missing "
            f"(found {', '.join(sorted(arrays)) or 'nothing'}); give the reconstruction.npz that inference wrote"
        )
    try:
        extra = json.loads(str(arrays["metadata"]))
        scale, history, metadata = extra["photons_per_unit"], extra.get("history", {}), extra.get("metadata", {})
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(f"{path}: its metadata are not those of a reconstruction ({error!r}); infer again") from error
    return Reconstruction(
        object=arrays["object"],
        coverage=arrays["coverage"],
        origin_yx=arrays["origin_yx"],
        probe=arrays["probe"],
        positions=arrays["positions"],
        photons_per_unit=scale,
        background=arrays.get("background"),
        intensities=arrays.get("intensities"),
        uncertainty=_check_shape(arrays.get("uncertainty"), arrays["object"].shape, path),
        history=history,
        metadata=metadata,
    )


def _check_shape(array: NDArray[Any] | None, shape: tuple[int, ...], path: str | Path) -> NDArray[Any] | None:
    if array is not None and array.shape != shape:
        raise DataError(
            f"{path}: its uncertainty is {array.shape} and its object {shape} pixels, expected one shape; infer again"
        )
    return array
