"""Files of reconstructions: read and write ``reconstruction.npz``."""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ptycho_torch.core.errors import DataError
from ptycho_torch.core.files import atomic_write
from ptycho_torch.data.geometry import Geometry
from ptycho_torch.data.reconstruction import Reconstruction
from ptycho_torch.io.container import recognize_kind
from ptycho_torch.io.foreign_result import assemble_result
from ptycho_torch.io.formats.registry import find_result_writer
from ptycho_torch.io.npz import read_arrays
from ptycho_torch.io.scan import read_result_parts

REQUIRED_KEYS = ("object", "coverage", "origin_yx", "probe", "positions", "metadata")


def save_reconstruction(path: str | Path, result: Reconstruction) -> None:
    """Write ``result`` to ``path``. The file appears whole or not at all; equal values give equal bytes of NPZ.

    Args:
        path: file to write; an existing file is replaced. The suffix selects the format: ``.npz`` keeps everything,
            other suffixes are those of the formats of other programs, listed in docs/formats.md.
        result: the reconstruction.

    Raises:
        ConfigError: no format of results has the suffix.
        DataError: the file cannot be written, or the format requires a quantity that the result lacks.
    """
    if Path(path).suffix != ".npz":
        find_result_writer(Path(path)).write_result(Path(path), result)
        return
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


def check_result_paths(paths: Iterable[Path]) -> None:
    """Raise ConfigError if the suffix of a path is not that of a format of results."""
    for path in paths:
        if path.suffix != ".npz":
            find_result_writer(path)


def load_reconstruction(path: str | Path) -> Reconstruction:
    """Read a reconstruction that :func:`save_reconstruction` wrote, or a result of another program.

    Args:
        path: ``reconstruction.npz``, or a file of any supported format that holds object, probe and positions.

    Raises:
        DataError: the file is missing or damaged, lacks a quantity, or holds arrays that do not fit together.
    """
    path = Path(path)
    if recognize_kind(path) != "npz":
        return assemble_result(read_result_parts(path), path)
    arrays = read_arrays(path)
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
