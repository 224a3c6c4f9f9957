"""Probes and scan positions from files: from a scan file or from a reconstruction."""

import json
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from ptycho_torch.core.errors import DataError
from ptycho_torch.io.npz import read_arrays


class ProbeFile(NamedTuple):
    """Probe of a file and its scale."""

    modes: NDArray[np.complex64]
    """(M, N, N)."""

    scan_digest: str
    """Digest of the scan that the probe was reconstructed from; empty if the file is not a reconstruction."""

    photons_per_unit: float
    """Photons per squared unit of that scan's amplitude; the modes are in √photons. 1 if unknown."""


def read_probe(path: Path, size: int, setting: str) -> ProbeFile:
    """Read a probe: ``probe`` of a reconstruction, or ``probeGuess`` of a scan file.

    Args:
        path: NPZ file.
        size: N, side of the diffraction patterns in pixels.
        setting: name of the setting that gives ``path``, for errors.

    Raises:
        DataError: the file cannot be read, or holds no finite probe of ``size`` × ``size`` pixels.
    """
    arrays = read_arrays(path, ("probe", "probeGuess", "metadata"))
    key = next((key for key in ("probe", "probeGuess") if key in arrays), None)
    if key is None:
        keys = ", ".join(sorted(read_arrays(path))) or "nothing"
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
        path: NPZ file.
        setting: name of the setting that gives ``path``, for errors.

    Raises:
        DataError: the file cannot be read, or holds no probe.
    """
    arrays = read_arrays(path, ("probe", "probeGuess"))
    for key in ("probe", "probeGuess"):
        if key in arrays and arrays[key].ndim >= 2:
            return int(arrays[key].shape[-1])
    raise DataError(f"{path}: no probe; expected probe or probeGuess; change `{setting}`")


def read_positions(path: Path, count: int, setting: str) -> NDArray[np.float64]:
    """Read scan positions: ``positions`` of a reconstruction, or ``ycoords`` and ``xcoords`` of a scan file.

    Args:
        path: NPZ file.
        count: n, number of diffraction patterns.
        setting: name of the setting that gives ``path``, for errors.

    Returns:
        (n, 2) (y, x) in object pixels.

    Raises:
        DataError: the file cannot be read, or does not hold n finite positions.
    """
    arrays = read_arrays(path, ("positions", "xcoords", "ycoords"))
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
    if positions.shape != (count, 2) or positions.dtype.kind not in "fiu" or not np.isfinite(positions).all():
        raise DataError(
            f"{path}: positions of shape {positions.shape} ({positions.dtype}); expected {(count, 2)} finite numbers, "
            f"one pair per pattern; change `{setting}`"
        )
    return positions.astype(np.float64)
