"""Probes and scan positions from files: from a scan file or from a reconstruction."""

import json
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ptycho_torch.core.errors import DataError
from ptycho_torch.io.container import recognize_kind
from ptycho_torch.io.foreign_result import assemble_positions
from ptycho_torch.io.npz import read_arrays
from ptycho_torch.io.scan import read_result_parts


class ProbeFile(NamedTuple):
    """Probe of a file and its scale."""

    modes: NDArray[np.complex64]
    """(M, N, N)."""

    scan_digest: str
    """Digest of the scan that the probe was reconstructed from; empty if the file is not a reconstruction."""

    photons_per_unit: float
    """Photons per squared unit of that scan's amplitude; the modes are in √photons. 1 if unknown."""


def _read_named_arrays(path: Path, keys: tuple[str, ...] | None = None) -> dict[str, NDArray[Any]]:
    """Read the arrays ``keys`` of an NPZ file, or those that a file of another format has under these names."""
    if recognize_kind(path) == "npz":
        return read_arrays(path, keys)
    parts = read_result_parts(path)
    arrays: dict[str, NDArray[Any]] = {}
    if parts.probe is not None:
        arrays["probe"] = parts.probe
    if parts.positions is not None and (keys is None or "positions" in keys):
        arrays["positions"] = assemble_positions(parts, path)
    return arrays


def read_probe(path: Path, size: int, setting: str) -> ProbeFile:
    """Read a probe: ``probe`` of a reconstruction, or ``probeGuess`` of a scan file.

    Args:
        path: NPZ file, or a file of any supported format.
        size: N, side of the diffraction patterns in pixels.
        setting: name of the setting that gives ``path``, for errors.

    Raises:
        DataError: the file cannot be read, or holds no finite probe of ``size`` × ``size`` pixels.
    """
    arrays = _read_named_arrays(path, ("probe", "probeGuess", "metadata"))
    key = next((key for key in ("probe", "probeGuess") if key in arrays), None)
    if key is None:
        keys = ", ".join(sorted(_read_named_arrays(path))) or "nothing"
        raise DataError(f"{path}: no probe (found {keys}); expected probe or probeGuess; change `{setting}`")
    modes = arrays[key]
    modes = modes.reshape(-1, *modes.shape[-2:]).astype(np.complex64) if modes.ndim >= 2 else modes
    if modes.shape[1:] != (size, size) or not np.isfinite(modes).all() or not modes.any():
        raise DataError(
            f"{path}: {key} has shape {arrays[key].shape}; expected finite modes of {size} × {size} pixels, the "
            f"size of the patterns; change `{setting}`"
        )
    digest, photons = "", 1.0
    if key == "probe" and "metadata" in arrays:
        try:
            extra = json.loads(str(arrays["metadata"]))
            digest, photons = str(extra["metadata"].get("scan_digest", "")), float(extra["photons_per_unit"])
        except (AttributeError, KeyError, TypeError, ValueError):
            digest, photons = "", 1.0  # a file of another program: the power of its probe is unknown
    return ProbeFile(modes, digest, photons)


def read_probe_size(path: Path, setting: str) -> int:
    """Read N, the side in pixels of the probe in ``path``.

    Args:
        path: NPZ file, or a file of any supported format.
        setting: name of the setting that gives ``path``, for errors.

    Raises:
        DataError: the file cannot be read, or holds no probe.
    """
    arrays = _read_named_arrays(path, ("probe", "probeGuess"))
    for key in ("probe", "probeGuess"):
        if key in arrays and arrays[key].ndim >= 2:
            return int(arrays[key].shape[-1])
    raise DataError(f"{path}: no probe; expected probe or probeGuess; change `{setting}`")


def read_positions(
    path: Path, count: int, setting: str, source_index: NDArray[np.int64] | None = None
) -> NDArray[np.float64]:
    """Read scan positions: ``positions`` of a reconstruction, or ``ycoords`` and ``xcoords`` of a scan file.

    Args:
        path: NPZ file, or a file of any supported format.
        count: n, number of diffraction patterns.
        setting: name of the setting that gives ``path``, for errors.
        source_index: (n,) index of each pattern in the file that the scan was cut from, by which the positions of a
            longer file are selected. None: not a cut.

    Returns:
        (n, 2) (y, x) in object pixels.

    Raises:
        DataError: the file cannot be read, or does not hold n finite positions.
    """
    arrays = _read_named_arrays(path, ("positions", "xcoords", "ycoords"))
    if "positions" in arrays:
        positions = arrays["positions"]
    elif "xcoords" in arrays and "ycoords" in arrays:
        y, x = arrays["ycoords"], arrays["xcoords"]
        if y.shape != x.shape or y.ndim != 1:
            raise DataError(
                f"{path}: xcoords has shape {x.shape} and ycoords {y.shape}; expected {(count,)}; change `{setting}`"
            )
        positions = np.stack([y, x], 1)
    else:
        raise DataError(f"{path}: no positions; expected positions, or xcoords and ycoords; change `{setting}`")
    if source_index is not None and positions.ndim == 2 and len(positions) > max(count, source_index.max(initial=-1)):
        positions = positions[source_index]
    if positions.shape != (count, 2) or positions.dtype.kind not in "fiu" or not np.isfinite(positions).all():
        raise DataError(
            f"{path}: positions of shape {positions.shape} ({positions.dtype}); expected {(count, 2)} finite numbers, "
            f"one pair per pattern; change `{setting}`"
        )
    return positions.astype(np.float64)
