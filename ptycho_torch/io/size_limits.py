"""Limits of the arrays that are read from files, checked before memory is allocated."""

import math
import os
from typing import Any

import numpy as np

from ptycho_torch.core.errors import DataError

MEMORY_FRACTION = 0.8
"""Largest array that is read, as a fraction of the memory of the machine."""

MAX_SPARSE_BYTES = 1 << 28
"""Largest array that is read whatever the number of bytes stored for it."""

MAX_COMPRESSION = 10_000
"""Largest ratio of the bytes of a large array to the bytes stored for it; gzip reaches 1032."""


def get_memory_budget() -> int:
    """Return the largest number of bytes that one array may take: a fraction of the memory of the machine."""
    if not hasattr(os, "sysconf"):
        return 1 << 36
    return int(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") * MEMORY_FRACTION)


def check_array_size(name: str, shape: tuple[int, ...], dtype: np.dtype[Any]) -> None:
    """Check that an array of a file fits into memory, before it is allocated.

    Args:
        name: file and key, for the error.
        shape: shape that the file declares.
        dtype: dtype that the file declares.

    Raises:
        DataError: the array is larger than :func:`get_memory_budget`.
    """
    size = math.prod(shape) * dtype.itemsize
    if size > get_memory_budget():
        raise DataError(
            f"{name}: the array of shape {shape} ({dtype}) takes {size / 2**30:.1f} GiB; expected at most "
            f"{get_memory_budget() / 2**30:.1f} GiB, what this machine can hold; read a part with `frames`"
        )


def check_stored_size(name: str, shape: tuple[int, ...], dtype: np.dtype[Any], stored: int) -> None:
    """Check that a large array is not a declaration without data, before it is allocated.

    Args:
        name: file and key, for the error.
        shape: shape that the file declares.
        dtype: dtype that the file declares.
        stored: bytes in the file, compressed.

    Raises:
        DataError: the array is larger than :data:`MAX_SPARSE_BYTES` and :data:`MAX_COMPRESSION` times ``stored``.
    """
    size = math.prod(shape) * dtype.itemsize
    if size > max(MAX_SPARSE_BYTES, MAX_COMPRESSION * stored):
        raise DataError(
            f"{name}: the array of shape {shape} ({dtype}) takes {size / 2**30:.1f} GiB and {stored} bytes are stored; "
            "expected an array that is written; copy or write the file again"
        )
