"""Arrays of Zarr folders, formats 2 and 3, by path."""

import os
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ptycho_torch.core.errors import DataError
from ptycho_torch.data.layout import ArrayHeader
from ptycho_torch.io.hdf5_nodes import MAX_NODES
from ptycho_torch.io.size_limits import check_array_size
from ptycho_torch.io.store import ArrayStore

ZARR_FILES = ("zarr.json", ".zarray", ".zgroup")
"""Files of which the root of a Zarr folder has at least one."""

ROOT_KEY = "array"
"""Key of an array that is the root of the folder."""

READ_ERRORS = (
    OSError, KeyError, RuntimeError, ValueError, TypeError, IndexError, AttributeError, OverflowError, MemoryError,
    AssertionError,
)  # fmt: skip
"""Failures of damaged files in the libraries that read them."""


def is_zarr(path: Path) -> bool:
    """Return True if the folder at ``path`` is a Zarr group or array."""
    return any((path / name).is_file() for name in ZARR_FILES)


class ZarrStore(ArrayStore):
    """The arrays of a Zarr folder by path, without the leading slash."""

    def __init__(self, path: Path) -> None:
        self.path = path
        _refuse_pickle(path)
        self.arrays = _open_arrays(path)

    def list_headers(self) -> dict[str, ArrayHeader]:
        return {
            key: ArrayHeader(tuple(array.shape), np.dtype(array.dtype), False) for key, array in self.arrays.items()
        }

    def read(self, key: str) -> NDArray[Any]:
        array = self.arrays[key]
        check_array_size(f"{self.path}: {key}", tuple(array.shape), np.dtype(array.dtype))
        try:
            return np.asarray(array[...])
        except READ_ERRORS as error:
            raise DataError(f"{self.path}: {key} cannot be read ({error}); the folder may be damaged") from error


def _open_arrays(path: Path) -> dict[str, Any]:
    try:
        import zarr
    except ImportError as error:
        raise DataError(f'{path}: a Zarr folder requires zarr; pip install "ptycho-torch[formats]"') from error
    try:
        root = zarr.open(str(path), mode="r")
        return {ROOT_KEY: root} if hasattr(root, "shape") else _collect_arrays(root, "")
    except READ_ERRORS as error:
        raise DataError(f"{path}: the Zarr folder cannot be read ({error}); copy it again") from error


def _collect_arrays(group: Any, prefix: str) -> dict[str, Any]:
    """Return the arrays below a group by path, sorted."""
    arrays = {f"{prefix}{name}": array for name, array in sorted(group.arrays())}
    for name, child in sorted(group.groups()):
        arrays |= _collect_arrays(child, f"{prefix}{name}/")
    return arrays


def _refuse_pickle(path: Path) -> None:
    """Check that no array is encoded by pickle, which would run code of the file."""
    visited = 0
    for folder, _, names in os.walk(path):
        visited += len(names)
        if visited > MAX_NODES * 100:
            raise DataError(f"{path}: more than {MAX_NODES * 100} files; expected a Zarr folder of a scan")
        for name in {*ZARR_FILES, ".zmetadata"}.intersection(names):
            content = (Path(folder) / name).read_bytes()
            if b'"pickle"' in content:
                key = Path(folder).relative_to(path)
                raise DataError(f"{path}: {key} holds Python objects (pickle), which are never read")
