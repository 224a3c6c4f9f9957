"""Kinds of files, recognized by their first bytes, and the open file that the formats read."""

import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Literal

from ptycho_torch.core.errors import ContractError, DataError
from ptycho_torch.data.geometry import GeometryError
from ptycho_torch.data.layout import ArrayHeader
from ptycho_torch.io.hdf5 import Hdf5File, open_hdf5
from ptycho_torch.io.hdf5_nodes import is_hdf5
from ptycho_torch.io.npz import read_headers

FileKind = Literal["npz", "bz2", "npy", "hdf5", "mat5", "tiff", "text", "binary", "folder"]

HEAD_BYTES = 4096
"""Number of bytes that decide the kind of a file."""

SIGNATURES: tuple[tuple[bytes, FileKind], ...] = (
    (b"PK\x03\x04", "npz"),
    (b"PK\x05\x06", "npz"),
    (b"BZh", "bz2"),
    (b"\x93NUMPY", "npy"),
    (b"MATLAB 5.0", "mat5"),
    (b"II*\x00", "tiff"),
    (b"MM\x00*", "tiff"),
    (b"II+\x00", "tiff"),
    (b"MM\x00+", "tiff"),
)
"""First bytes of each kind of file."""


@dataclass(frozen=True)
class InputFile:
    """A file or folder of a known kind, open for reading."""

    path: Path
    kind: FileKind
    hdf5: Hdf5File | None = None
    """The open file, if its kind is ``hdf5``."""

    @property
    def tree(self) -> Hdf5File:
        """The open HDF5 file.

        Raises:
            DataError: the file is of another kind.
        """
        if self.hdf5 is None:
            raise DataError(f"{self.path}: this is a file of the kind {self.kind}; expected an HDF5 file")
        return self.hdf5

    @cached_property
    def npz_headers(self) -> dict[str, ArrayHeader]:
        """Headers of the arrays of an NPZ file by key, read once; empty for a file of another kind.

        Raises:
            DataError: the file is damaged.
        """
        return read_headers(self.path) if self.kind == "npz" else {}


@contextmanager
def name_geometry(path: str | Path) -> Iterator[None]:
    """Add the name of the file at ``path`` to an error of its geometry.

    Raises:
        DataError: the geometry is invalid.
    """
    try:
        yield
    except GeometryError as error:
        raise DataError(f"{path}: {error}") from error


@contextmanager
def name_setting(setting: str) -> Iterator[None]:
    """Add the setting that gives a file to an error of reading the file.

    Raises:
        DataError: the file cannot be read.
    """
    try:
        yield
    except ContractError:
        raise
    except DataError as error:
        text = str(error)
        raise DataError(text if f"`{setting}`" in text else f"{text}; change `{setting}`") from error


@contextmanager
def open_input(path: Path) -> Iterator[InputFile]:
    """Open the file or folder at ``path`` and recognize its kind.

    Raises:
        DataError: there is no such file, it is no regular file, or it cannot be read.
    """
    kind = recognize_kind(path)
    if kind == "hdf5":
        with open_hdf5(path) as tree:
            yield InputFile(path, kind, tree)
    else:
        yield InputFile(path, kind)


def recognize_kind(path: Path) -> FileKind:
    """Return the kind of the file at ``path``, from its first bytes.

    Raises:
        DataError: there is no such file, it is no regular file, it is empty, or it cannot be read.
    """
    try:
        mode = os.stat(path).st_mode
        if stat.S_ISDIR(mode):
            return "folder"
        if not stat.S_ISREG(mode):
            raise DataError(f"{path}: this is no regular file; give the path of a scan file")
        with open(path, "rb") as stream:
            head = stream.read(HEAD_BYTES)
        if is_hdf5(path):
            return "hdf5"
    except FileNotFoundError as error:
        raise DataError(f"{path}: there is no such file; give the path of a scan file") from error
    except (OSError, ValueError) as error:  # ValueError: a null byte in the path
        reason = getattr(error, "strerror", None) or str(error)
        raise DataError(f"{path}: cannot be read ({reason}); give the path of a scan file") from error
    if not head:
        raise DataError(f"{path}: the file is empty; give the path of a scan file")
    for signature, kind in SIGNATURES:
        if head.startswith(signature):
            return kind
    return "text" if _is_text(head) else "binary"


def _is_text(head: bytes) -> bool:
    if b"\x00" in head:
        return False
    try:
        head.decode("utf-8")
    except UnicodeDecodeError as error:
        return error.start >= len(head) - 4  # a character that the last byte read cuts in two
    return True
