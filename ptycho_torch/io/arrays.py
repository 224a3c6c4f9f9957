"""Single arrays of files of any kind: the arrays of a file by key, and one array from ``FILE`` or ``FILE:KEY``."""

import bz2
import io
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ptycho_torch.core.errors import DataError
from ptycho_torch.data.layout import ArrayHeader
from ptycho_torch.io.container import InputFile, name_setting, open_input
from ptycho_torch.io.hdf5 import Hdf5File
from ptycho_torch.io.mat import CLASS_DTYPES, Mat5File
from ptycho_torch.io.npz import read_arrays, read_arrays_from_stream, read_headers
from ptycho_torch.io.size_limits import MAX_COMPRESSION, MAX_SPARSE_BYTES, check_array_size
from ptycho_torch.io.store import ArrayStore
from ptycho_torch.io.tiff_store import TiffStore, list_series
from ptycho_torch.io.zarr_store import ZarrStore, is_zarr

MATLAB_73 = b"MATLAB 7.3"
"""First bytes of a MATLAB file of version 7.3."""

CHUNK_BYTES = 1 << 24
"""Bytes that are decompressed at once."""


class NpzStore(ArrayStore):
    """The arrays of an NPZ file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def list_headers(self) -> dict[str, ArrayHeader]:
        return read_headers(self.path)

    def read(self, key: str) -> NDArray[Any]:
        return read_arrays(self.path, [key])[key]


class MemoryStore(ArrayStore):
    """Arrays in memory."""

    def __init__(self, arrays: dict[str, NDArray[Any]]) -> None:
        self.arrays = arrays

    def list_headers(self) -> dict[str, ArrayHeader]:
        return {key: ArrayHeader(array.shape, array.dtype, False) for key, array in self.arrays.items()}

    def read(self, key: str) -> NDArray[Any]:
        return self.arrays[key]


class Hdf5Store(ArrayStore):
    """The datasets of an HDF5 file by path, without the leading slash."""

    def __init__(self, tree: Hdf5File) -> None:
        self.tree = tree

    def list_headers(self) -> dict[str, ArrayHeader]:
        return {
            path.lstrip("/"): ArrayHeader(self.tree.get_shape(path), self.tree.get_dtype(path), False)
            for path in self.tree.walk_datasets()
        }

    def read(self, key: str) -> NDArray[Any]:
        path = f"/{key.lstrip('/')}"
        if self.tree.get_dtype(path).kind in "OSU":
            return np.array(self.tree.read_text(path))
        return self.tree.read(path)


class Mat73Store(Hdf5Store):
    """The datasets of a MATLAB file of version 7.3 by path, axes in MATLAB's order as in version 5."""

    def list_headers(self) -> dict[str, ArrayHeader]:
        headers = super().list_headers()
        return {key: ArrayHeader(header.shape[::-1], header.dtype, False) for key, header in headers.items()}

    def read(self, key: str) -> NDArray[Any]:
        return super().read(key).T


class Mat5Store(ArrayStore):
    """The numeric arrays of a MATLAB file of version 5 by name, axes in MATLAB's order."""

    def __init__(self, path: Path) -> None:
        self.file = Mat5File(path)

    def list_headers(self) -> dict[str, ArrayHeader]:
        return {
            name: ArrayHeader(variable.shape, variable.dtype, False)
            for name, variable in self.file.variables.items()
            if variable.kind in CLASS_DTYPES
        }

    def read(self, key: str) -> NDArray[Any]:
        return self.file.read(key)


def make_store(file: InputFile) -> ArrayStore | None:
    """Return the arrays of an open file; None if the kind of the file holds no arrays by key."""
    if file.kind == "npz":
        return NpzStore(file.path)
    if file.kind == "bz2":
        return MemoryStore(_read_bz2(file.path))
    if file.kind == "npy":
        return MemoryStore({"array": read_npy(file.path)})
    if file.kind == "hdf5":
        return Mat73Store(file.tree) if _is_matlab(file.path) else Hdf5Store(file.tree)
    if file.kind == "mat5":
        return Mat5Store(file.path)
    if file.kind == "tiff":
        return TiffStore([file.path])
    if file.kind == "folder":
        if is_zarr(file.path):
            return ZarrStore(file.path)
        series = list_series(file.path)
        return TiffStore(series) if series else None
    return None


def _is_matlab(path: Path) -> bool:
    """Return True if an HDF5 file starts with the text that MATLAB writes."""
    with open(path, "rb") as stream:
        return stream.read(len(MATLAB_73)) == MATLAB_73


def _read_bz2(path: Path) -> dict[str, NDArray[Any]]:
    """Read all arrays of an NPZ file that is compressed as ``.bz2``."""
    try:
        limit = max(MAX_SPARSE_BYTES, MAX_COMPRESSION * path.stat().st_size)
        content = io.BytesIO()
        with bz2.open(path) as stream:
            # One read of `limit` bytes would allocate them before it reads the first.
            while content.tell() <= limit and (part := stream.read(CHUNK_BYTES)):
                content.write(part)
        if content.tell() > limit:
            raise DataError(f"{path}: the bzip2 file holds more than {limit} bytes; expected an NPZ file of arrays")
    except OSError as error:
        raise DataError(f"{path}: cannot be read as a bzip2 file ({error.strerror or error})") from error
    except (ValueError, EOFError) as error:
        raise DataError(f"{path}: the bzip2 file is truncated ({error}); copy it again") from error
    content.seek(0)
    return read_arrays_from_stream(content, str(path))


def read_npy(path: Path) -> NDArray[Any]:
    """Read an NPY file.

    Raises:
        DataError: the file is damaged, holds Python objects, or is larger than the memory.
    """
    try:
        with open(path, "rb") as stream:
            version = np.lib.format.read_magic(stream)
            read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
            header = ArrayHeader.from_numpy(read(stream))
            if header.dtype.hasobject:
                raise DataError(f"{path}: the array holds Python objects (pickle), which are never read")
            check_array_size(str(path), header.shape, header.dtype)
            stream.seek(0)
            array: NDArray[Any] = np.lib.format.read_array(stream, allow_pickle=False)
    except (OSError, ValueError, EOFError, SyntaxError, TypeError, MemoryError, OverflowError) as error:
        raise DataError(f"{path}: the NPY file is truncated or damaged ({error}); copy it again") from error
    return array


@contextmanager
def open_store(path: Path) -> Iterator[ArrayStore]:
    """Open the arrays of the file at ``path``.

    Raises:
        DataError: the file cannot be read, or its kind holds no arrays.
    """
    with open_input(path) as file:
        store = make_store(file)
        if store is None:
            raise DataError(f"{path}: this is a file of the kind {file.kind}; expected a file of arrays")
        yield store


def split_key(path: Path) -> tuple[Path, str | None]:
    """Split ``FILE:KEY`` into the path of the file and the key; the key is None without a colon after a file name."""
    text = str(path)
    if ":" not in text or os.path.exists(path):
        return path, None
    name, _, key = text.rpartition(":")
    return (Path(name), key) if os.path.exists(name) else (path, None)


def read_single_array(path: Path, setting: str, candidates: tuple[str, ...] = (), kinds: str = "biuf") -> NDArray[Any]:
    """Read one array from ``FILE`` or ``FILE:KEY``.

    Args:
        path: the file, optionally with a key after a colon.
        setting: name of the setting that gives ``path``, for errors.
        candidates: keys that are preferred where no key is given; otherwise the file must hold one array.
        kinds: accepted kinds of dtype.

    Raises:
        DataError: the file cannot be read, holds several arrays and no key is given, or the array has another kind.
    """
    file, key = split_key(path)
    with name_setting(setting), open_store(file) as store:
        headers = store.list_headers()
        numeric = [name for name, header in headers.items() if header.dtype.kind in "biufc" and header.shape != ()]
        if key is not None and key.lstrip("/") not in headers:
            raise DataError(f"{path}: no array {key} (found {', '.join(sorted(headers))}); change `{setting}`")
        chosen = key.lstrip("/") if key else next((name for name in candidates if name in headers), None)
        if chosen is None and len(numeric) == 1:
            chosen = numeric[0]
        if chosen is None:
            found = ", ".join(sorted(headers)) or "nothing"
            raise DataError(f"{path}: found {found}; expected one array, or FILE:KEY; change `{setting}`")
        array = store.read(chosen)
    if array.dtype.kind not in kinds:
        raise DataError(f"{path}: {chosen} is {array.dtype}; expected real numbers; change `{setting}`")
    return array
