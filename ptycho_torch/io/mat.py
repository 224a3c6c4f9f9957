"""Read MATLAB files of version 5 (also 6 and 7) and 7.3 through one interface, with arrays in MATLAB's axis order.

Files of version 5 are parsed here and not with SciPy, whose reader ends the process on some damaged files. The sizes
that a file declares are checked before anything is read. Objects, function handles and cell arrays are refused.
"""

import math
import os
import struct
import zlib
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ptycho_torch.core.errors import DataError
from ptycho_torch.io.container import InputFile
from ptycho_torch.io.hdf5 import Hdf5File
from ptycho_torch.io.size_limits import check_array_size

HEADER_BYTES = 128
"""Bytes of text, version and byte order at the start of a file of version 5."""

PREVIEW_BYTES = 1024
"""Bytes of a variable that hold its class, shape and name."""

MAX_VARIABLES = 100_000
"""Largest number of variables in a file."""

TYPE_MATRIX = 14
TYPE_COMPRESSED = 15

ELEMENT_DTYPES = {
    1: "i1", 2: "u1", 3: "i2", 4: "u2", 5: "i4", 6: "u4", 7: "f4", 9: "f8", 12: "i8", 13: "u8",
}  # fmt: skip
"""Types of stored numbers by their number in the file."""

CLASS_DTYPES = {
    "double": "f8", "single": "f4", "int8": "i1", "uint8": "u1", "int16": "i2", "uint16": "u2", "int32": "i4",
    "uint32": "u4", "int64": "i8", "uint64": "u8",
}  # fmt: skip
"""Classes of numeric arrays; numbers may be stored in a smaller type."""

CLASS_NAMES = {
    1: "cell array", 2: "structure", 3: "object", 4: "text", 5: "sparse array", 6: "double", 7: "single", 8: "int8",
    9: "uint8", 10: "int16", 11: "uint16", 12: "int32", 13: "uint32", 14: "int64", 15: "uint64",
    16: "function handle", 17: "object",
}  # fmt: skip
"""Classes of variables by their number in the file."""

COMPLEX_FLAG = 0x0800


class MatVariable(NamedTuple):
    """A variable of a MATLAB file as the file declares it."""

    kind: str
    """Class, one of :data:`CLASS_NAMES`."""

    shape: tuple[int, ...]

    n_bytes: int
    """Size of its element in memory."""

    is_complex: bool

    body: int
    """Byte of the element at which its content begins, after the name."""

    @property
    def dtype(self) -> np.dtype[Any]:
        """dtype of the array of a numeric class."""
        dtype = np.dtype(CLASS_DTYPES[self.kind])
        return np.result_type(dtype, np.complex64) if self.is_complex else dtype


class _Place(NamedTuple):
    """Place of a variable in the file."""

    position: int
    """Byte of its tag."""

    n_bytes: int
    """Bytes in the file."""

    compressed: bool


class MatFile(ABC):
    """Arrays of a MATLAB file. Members of structures are named with dots, such as ``p.lambda``."""

    path: Path

    @abstractmethod
    def has(self, name: str) -> bool:
        """Return True if there is a variable, or a member of a structure, of this name."""

    @abstractmethod
    def read(self, name: str, kinds: str = "biufc") -> NDArray[Any]:
        """Read an array, axes in MATLAB's order.

        Args:
            name: name of the variable or member.
            kinds: accepted kinds of dtype.

        Raises:
            DataError: the array is missing, of another kind, too large, or damaged.
        """

    def read_number(self, name: str) -> float:
        """Read one finite number.

        Raises:
            DataError: there is no such number.
        """
        values = self.read(name, "biuf")
        if values.size != 1 or not math.isfinite(values.reshape(-1)[0]):
            raise DataError(f"{self.path}: {name} has shape {values.shape}; expected one finite number")
        return float(values.reshape(-1)[0])

    def find_number(self, name: str) -> float | None:
        """Return a positive number; None if it is missing or empty."""
        if not self.has(name):
            return None
        values = self.read(name, "biuf").astype(np.float64).reshape(-1)
        return float(values[0]) if values.size and math.isfinite(values[0]) and values[0] > 0 else None


class Mat73File(MatFile):
    """A MATLAB file of version 7.3, which is HDF5 with reversed axes."""

    def __init__(self, tree: Hdf5File) -> None:
        self.path, self.tree = tree.path, tree

    def has(self, name: str) -> bool:
        return self.tree.has(_to_path(name))

    def read(self, name: str, kinds: str = "biufc") -> NDArray[Any]:
        if "MATLAB_empty" in self.tree.get_attributes(_to_path(name)):
            return np.zeros(0)
        return self.tree.read(_to_path(name), kinds=kinds).T


class Mat5File(MatFile):
    """A MATLAB file of version 5."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._order = "<"
        self._places: dict[str, _Place] = {}
        self._elements: dict[str, memoryview] = {}
        self.variables: dict[str, MatVariable] = {}
        with self._convert_failures("its list of variables"), open(path, "rb") as stream:
            self._list_variables(stream)

    def has(self, name: str) -> bool:
        return name in self.variables or ("." in name and self._find(name) is not None)

    def read(self, name: str, kinds: str = "biufc") -> NDArray[Any]:
        first = name.split(".")[0]
        if first not in self.variables:
            found = ", ".join(self.variables) or "nothing"
            raise DataError(f"{self.path}: there is no {name} (found {found}); expected an array")
        found_element = self._find(name)
        if found_element is None:
            raise DataError(f"{self.path}: there is no {name}; {first} is a {self.variables[first].kind}")
        element, variable = found_element
        if variable.kind not in CLASS_DTYPES:
            raise DataError(f"{self.path}: {name} is a {variable.kind}; expected numbers")
        if math.prod(variable.shape) > variable.n_bytes:
            raise DataError(
                f"{self.path}: {name} has the declared shape {variable.shape} in {variable.n_bytes} bytes; expected at "
                "least one byte per element; copy the file again"
            )
        with self._convert_failures(name):
            values = _read_numbers(element, variable, self._order)
        if values.dtype.kind not in kinds:
            raise DataError(
                f"{self.path}: {name} is {values.dtype}; expected {'complex' if kinds == 'c' else 'real'} numbers"
            )
        return values

    def _find(self, name: str) -> tuple[memoryview, MatVariable] | None:
        """Return the element of a variable or member, without tag, and its declaration; None if there is none."""
        first, *members = name.split(".")
        if first not in self.variables:
            return None
        element, variable = self._load(first), self.variables[first]
        for member in members:
            with self._convert_failures(name):
                found = _find_member(element, variable, member, self._order)
            if found is None:
                return None
            element, variable = found
        return element, variable

    def _load(self, name: str) -> memoryview:
        """Return the element of a variable, without tag."""
        if name not in self._elements:
            place, size = self._places[name], self.variables[name].n_bytes
            check_array_size(f"{self.path}: {name}", (size,), np.dtype(np.uint8))
            with self._convert_failures(name), open(self.path, "rb") as stream:
                stream.seek(place.position + 8)
                content = stream.read(place.n_bytes)
                if place.compressed:
                    content = zlib.decompressobj().decompress(content, size + 8)[8:]
                if len(content) < size:
                    raise ValueError(f"{len(content)} of {size} bytes")
            self._elements[name] = memoryview(content)
        return self._elements[name]

    def _list_variables(self, stream: BinaryIO) -> None:
        size = os.fstat(stream.fileno()).st_size
        header = stream.read(HEADER_BYTES)
        if header[126:128] not in (b"IM", b"MI"):
            raise ValueError("no byte order in its header")
        self._order = "<" if header[126:128] == b"IM" else ">"
        position = HEADER_BYTES
        while position < size:
            if len(self.variables) > MAX_VARIABLES:
                raise ValueError(f"more than {MAX_VARIABLES} variables")
            stream.seek(position)
            kind, n_bytes = struct.unpack(self._order + "II", stream.read(8))
            if position + 8 + n_bytes > size:
                raise ValueError(f"a variable of {n_bytes} bytes at byte {position} ends after the end of the file")
            content, compressed, full = stream.read(min(n_bytes, PREVIEW_BYTES)), kind == TYPE_COMPRESSED, n_bytes
            if compressed:
                content = zlib.decompressobj().decompress(content, PREVIEW_BYTES)
                kind, full = struct.unpack_from(self._order + "II", content)
                content = content[8:]
            if kind != TYPE_MATRIX:
                raise ValueError(f"an element of the unknown type {kind} at byte {position}")
            if full:
                name, variable = _parse_declaration(memoryview(content), full, self._order)
                if name:
                    self.variables[name] = variable
                    self._places[name] = _Place(position, n_bytes, compressed)
            position += 8 + n_bytes

    @contextmanager
    def _convert_failures(self, name: str) -> Iterator[None]:
        try:
            yield
        except (OSError, ValueError, IndexError, struct.error, zlib.error, MemoryError, OverflowError) as error:
            reason = " ".join(str(error).split())[:200] or type(error).__name__
            raise DataError(
                f"{self.path}: {name} cannot be read ({reason}); the MATLAB file is truncated or damaged; copy it again"
            ) from error


def open_mat(file: InputFile) -> MatFile | None:
    """Return the arrays of an open MATLAB file; None for a file of another kind."""
    if file.kind == "mat5":
        return Mat5File(file.path)
    return None if file.hdf5 is None else Mat73File(file.hdf5)


def _read_tag(element: memoryview, place: int, order: str) -> tuple[int, int, int, int]:
    """Return type, first byte, number of bytes of the data of a tag, and the place of the next tag."""
    kind, count = struct.unpack_from(order + "II", element, place)
    if kind >> 16:  # up to 4 bytes of data inside the tag
        kind, count = kind & 0xFFFF, kind >> 16
        if count > 4:
            raise ValueError(f"a short element of {count} bytes")
        return kind, place + 4, count, place + 8
    following = place + 8 + count
    return kind, place + 8, count, following if kind == TYPE_COMPRESSED else following + -count % 8


def _parse_declaration(element: memoryview, n_bytes: int, order: str) -> tuple[str, MatVariable]:
    """Return name and declaration of a variable from its element, or from the first bytes of it, without tag."""
    (flags,) = struct.unpack_from(order + "I", element, 8)
    kind = CLASS_NAMES.get(flags & 0xFF, "object")
    if flags & 0xFF == 17:  # MATLAB's own objects have no shape and no name here
        return "", MatVariable(kind, (), n_bytes, False, 0)
    _, start, length, place = _read_tag(element, 16, order)
    if length % 4 or length > PREVIEW_BYTES // 2:
        raise ValueError(f"a variable of {length // 4} axes")
    shape = struct.unpack_from(f"{order}{length // 4}i", element, start)
    _, start, length, body = _read_tag(element, place, order)
    name = bytes(element[start : start + length]).decode("latin-1")
    if len(name) != length or min(shape, default=0) < 0:
        raise ValueError("a variable of impossible name or shape")
    return name, MatVariable(kind, tuple(shape), n_bytes, bool(flags & COMPLEX_FLAG), body)


def _find_member(
    element: memoryview, variable: MatVariable, name: str, order: str
) -> tuple[memoryview, MatVariable] | None:
    """Return the element and the declaration of a member of the first structure of an array; None if it is missing."""
    if variable.kind != "structure" or not math.prod(variable.shape):
        return None
    _, start, _, place = _read_tag(element, variable.body, order)
    (length,) = struct.unpack_from(order + "i", element, start)
    _, start, count, place = _read_tag(element, place, order)
    if length <= 0:
        raise ValueError(f"names of members of {length} bytes")
    for index in range(count // length):
        kind, content, size, place_after = _read_tag(element, place, order)
        text = bytes(element[start + index * length : start + (index + 1) * length])
        if text.partition(b"\0")[0].decode("latin-1") == name:
            if kind != TYPE_MATRIX or content + size > len(element):
                raise ValueError(f"the member {name} ends after the end of its structure")
            if not size:
                return None
            member = element[content : content + size]
            return member, _parse_declaration(member, size, order)[1]
        place = place_after
    return None


def _read_numbers(element: memoryview, variable: MatVariable, order: str) -> NDArray[Any]:
    """Return the numbers of an array in its class, axes in MATLAB's order."""
    dtype = np.dtype(CLASS_DTYPES[variable.kind])
    place, parts = variable.body, []
    for _ in range(2 if variable.is_complex else 1):
        kind, start, count, place = _read_tag(element, place, order)
        if kind not in ELEMENT_DTYPES or start + count > len(element):
            raise ValueError(f"numbers of the type {kind} in {count} bytes")
        stored = np.frombuffer(element[start : start + count], order + ELEMENT_DTYPES[kind])
        parts.append(stored.astype(dtype).reshape(variable.shape, order="F"))
    return parts[0] + 1j * parts[1] if variable.is_complex else parts[0]


def _to_path(name: str) -> str:
    return "/" + name.replace(".", "/")
