"""Positions from a file: those of a scan, or the ones that a reconstruction ended with."""

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ptycho_torch.core.errors import DataError
from ptycho_torch.io.npz import read_arrays


def read_positions(path: Path, count: int, flag: str) -> NDArray[np.float64]:
    """``positions`` of a reconstruction.npz, else ``ycoords`` and ``xcoords`` of a scan file: (count, 2) (y, x) pixels.

    Args:
        path: NPZ file.
        count: patterns, each of which has one.
        flag: the flag that named the file, for errors.

    Raises:
        DataError: the file cannot be read, or holds no ``count`` finite positions.
    """
    arrays = read_arrays(path, ("positions", "xcoords", "ycoords"))
    if "positions" in arrays:
        positions = arrays["positions"]
    elif "xcoords" in arrays and "ycoords" in arrays:
        y, x = arrays["ycoords"], arrays["xcoords"]
        if y.shape != x.shape or y.ndim != 1:
            raise DataError(f"{path}: xcoords are {x.shape} and ycoords {y.shape}, expected {(count,)}; check {flag}")
        positions = np.stack([y, x], 1)
    else:
        raise DataError(f"{path}: neither positions nor xcoords and ycoords in it; check {flag}")
    if positions.shape != (count, 2) or positions.dtype.kind not in "fiu" or not np.isfinite(positions).all():
        raise DataError(
            f"{path}: positions of shape {positions.shape} ({positions.dtype}), expected {(count, 2)} finite numbers, a pair "
            f"for each pattern; check {flag}"
        )
    return positions.astype(np.float64)
