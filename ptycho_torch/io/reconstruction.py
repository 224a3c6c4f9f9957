"""Files of reconstructions: read and write ``reconstruction.npz``."""

import json
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ptycho_torch.core.errors import DataError
from ptycho_torch.core.files import atomic_write
from ptycho_torch.data.geometry import Geometry
from ptycho_torch.data.reconstruction import Reconstruction
from ptycho_torch.io.npz import read_arrays

REQUIRED_KEYS = ("object", "coverage", "origin_yx", "probe", "positions", "metadata")


def save_reconstruction(path: str | Path, result: Reconstruction) -> None:
    """Write ``result`` to ``path`` (NPZ). The file appears whole or not at all; equal values give equal bytes.

    Args:
        path: file to write; an existing file is replaced.
        result: the reconstruction.

    Raises:
        DataError: the file cannot be written, or its suffix is another one.
    """
    if Path(path).suffix != ".npz":  # NumPy would write a file of another name, and leave ``path`` empty
        raise DataError(f"{path}: the suffix is {Path(path).suffix!r}; expected .npz; choose another output path")
    extra = {"photons_per_unit": result.photons_per_unit, "history": result.history, "metadata": result.metadata}
    if result.geometry is not None:
        extra["geometry"] = result.geometry.to_dict()
    optional = {"background": result.background, "intensities": result.intensities, "uncertainty": result.uncertainty}
    present: dict[str, Any] = {name: array for name, array in optional.items() if array is not None}
    with atomic_write(path) as temp_path:
        np.savez(
            temp_path,
            **present,
            object=result.object,
            coverage=result.coverage,
            origin_yx=result.origin_yx,
            probe=result.probe,
            positions=result.positions,
            metadata=np.array(json.dumps(extra, sort_keys=True)),
        )


def load_reconstruction(path: str | Path) -> Reconstruction:
    """Read a reconstruction that :func:`save_reconstruction` wrote.

    Args:
        path: NPZ file.

    Raises:
        DataError: the file is missing, is not an NPZ file, lacks a key, or holds arrays that do not fit together.
    """
    arrays = read_arrays(Path(path))
    missing = [key for key in REQUIRED_KEYS if key not in arrays]
    if missing:
        raise DataError(
            f"{path}: not a reconstruction: {', '.join(missing)} missing "
            f"(found {', '.join(sorted(arrays)) or 'nothing'}); give a reconstruction.npz"
        )
    try:
        extra = json.loads(str(arrays["metadata"]))
        scale, history, metadata = extra["photons_per_unit"], extra.get("history", {}), extra.get("metadata", {})
        stored_geometry = extra.get("geometry")
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(
            f"{path}: metadata cannot be read ({error!r}); expected the metadata of a reconstruction; reconstruct again"
        ) from error
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
        geometry=None if stored_geometry is None else Geometry.from_dict(stored_geometry),
        history=history,
        metadata=metadata,
    )


def _check_shape(array: NDArray[Any] | None, shape: tuple[int, ...], path: str | Path) -> NDArray[Any] | None:
    if array is not None and array.shape != shape:
        raise DataError(
            f"{path}: uncertainty is {array.shape}; expected {shape}, the shape of the object; reconstruct again"
        )
    return array
