"""Read MATLAB files of version 5 (also 6 and 7) and 7.3 through one interface, with arrays in MATLAB's axis order.

The sizes that a file declares are checked before anything is read. Objects, function handles and cell arrays are
refused; nothing in a file is ever executed.
"""

import math
import os
import struct
import zlib
from abc import ABC, abstractmethod
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ptycho_torch.core.errors import DataError
from ptycho_torch.io.container import InputFile
from ptycho_torch.io.hdf5 import Hdf5File, check_array_size

HEADER_BYTES = 128
"""Bytes of text, version and byte order at the start of a file of version 5."""

PREVIEW_BYTES = 1024
"""Bytes of a variable that hold its class, shape and name."""

MAX_VARIABLES = 100_000
"""Largest number of variables in a file."""

TYPE_MATRIX = 14
TYPE_COMPRESSED = 15

CLASS_NAMES = {
    1: "cell array", 2: "structure", 3: "object", 4: "text", 5: "sparse array", 6: "double", 7: "single", 8: "int8",
    9: "uint8", 10: "int16", 11: "uint16", 12: "int32", 13: "uint32", 14: "int64", 15: "uint64",
    16: "function handle", 17: "object",
}  # fmt: skip
"""Classes of variables by their number in the file."""

NUMERIC_CLASSES = frozenset(name for number, name in CLASS_NAMES.items() if 6 <= number <= 15)

FAILURES = (
    OSError,
    ValueError,
    TypeError,
    KeyError,
    IndexError,
    RuntimeError,
    MemoryError,
    OverflowError,
    EOFError,
    AttributeError,
    zlib.error,
    struct.error,
)
"""Errors that damaged files cause in the reader of SciPy."""


class MatVariable(NamedTuple):
    """A variable of a MATLAB file as the file declares it."""

    kind: str
    """Class, one of :data:`CLASS_NAMES`."""

    shape: tuple[int, ...]

    n_bytes: int
    """Size in memory."""


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
    """A MATLAB file of version 5, read with SciPy."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.variables = list_mat5_variables(path)
        self._values: dict[str, Any] = {}

    def has(self, name: str) -> bool:
        first, *members = name.split(".")
        if first not in self.variables:
            return False
        if not members:
            return True
        value = self._load(first)
        for member in members:
            value = _get_member(value, member)
            if value is None:
                return False
        return True

    def read(self, name: str, kinds: str = "biufc") -> NDArray[Any]:
        first, *members = name.split(".")
        if first not in self.variables:
            found = ", ".join(self.variables) or "nothing"
            raise DataError(f"{self.path}: there is no {name} (found {found}); expected an array")
        variable = self.variables[first]
        if variable.kind not in NUMERIC_CLASSES and not (members and variable.kind == "structure"):
            expected = "a structure" if members else "numbers"
            raise DataError(f"{self.path}: {name}: {first} is a {variable.kind}; expected {expected}")
        value = self._load(first)
        for member in members:
            value = _get_member(value, member)
        if not isinstance(value, np.ndarray) or value.dtype.kind not in kinds or type(value) is not np.ndarray:
            found = str(value.dtype) if isinstance(value, np.ndarray) else "missing"
            raise DataError(f"{self.path}: {name} is {found}; expected numbers")
        return value

    def _load(self, name: str) -> Any:
        """Return the variable ``name`` as SciPy reads it."""
        if name not in self._values:
            from scipy.io import loadmat
            from scipy.io.matlab import MatReadError

            variable = self.variables[name]
            check_array_size(f"{self.path}: {name}", (variable.n_bytes,), np.dtype(np.uint8))
            try:
                self._values[name] = loadmat(str(self.path), variable_names=[name], struct_as_record=True)[name]
            except (MatReadError, *FAILURES) as error:
                raise DataError(
                    f"{self.path}: {name} cannot be read ({_shorten(error)}); the file may be damaged; copy it again"
                ) from error
        return self._values[name]


def open_mat(file: InputFile) -> MatFile | None:
    """Return the arrays of an open MATLAB file; None for a file of another kind."""
    if file.kind == "mat5":
        return Mat5File(file.path)
    return None if file.hdf5 is None else Mat73File(file.hdf5)


def list_mat5_variables(path: Path) -> dict[str, MatVariable]:
    """Return the variables of a MATLAB file of version 5 by name, from their headers alone.

    Raises:
        DataError: the file is truncated or damaged.
    """
    found: dict[str, MatVariable] = {}
    try:
        with open(path, "rb") as stream:
            for name, variable in _iterate_variables(stream):
                if len(found) > MAX_VARIABLES:
                    raise DataError(f"{path}: more than {MAX_VARIABLES} variables; expected a scan file")
                found[name] = variable
    except (OSError, ValueError, struct.error, zlib.error, UnicodeDecodeError, IndexError) as error:
        raise DataError(
            f"{path}: the MATLAB file is truncated or damaged ({_shorten(error)}); copy it again"
        ) from error
    return found


def _iterate_variables(stream: BinaryIO) -> Iterator[tuple[str, MatVariable]]:
    size = os.fstat(stream.fileno()).st_size
    header = stream.read(HEADER_BYTES)
    if header[126:128] not in (b"IM", b"MI"):
        raise ValueError("no byte order in its header")
    order = "<" if header[126:128] == b"IM" else ">"
    position = HEADER_BYTES
    while position < size:
        stream.seek(position)
        kind, n_bytes = struct.unpack(order + "II", stream.read(8))
        if position + 8 + n_bytes > size:
            raise ValueError(f"a variable of {n_bytes} bytes at byte {position} ends after the end of the file")
        content = stream.read(min(n_bytes, PREVIEW_BYTES))
        if kind == TYPE_COMPRESSED:
            content = zlib.decompressobj().decompress(content, PREVIEW_BYTES)
            kind, full = struct.unpack_from(order + "II", content)
            content = content[8:]
        else:
            full = n_bytes
        if kind == TYPE_MATRIX and full:
            name, variable = _parse_variable(content, order, full)
            if name:
                yield name, variable
        elif kind != TYPE_MATRIX:
            raise ValueError(f"an element of the unknown type {kind} at byte {position}")
        position += 8 + n_bytes


def _parse_variable(content: bytes, order: str, n_bytes: int) -> tuple[str, MatVariable]:
    """Return name and declaration of a variable from the first bytes of its element, without tag."""
    (flags,) = struct.unpack_from(order + "I", content, 8)
    kind = CLASS_NAMES.get(flags & 0xFF, "object")
    if kind == "object":
        return "", MatVariable(kind, (), n_bytes)
    (length,) = struct.unpack_from(order + "I", content, 20)
    if length % 4 or length > PREVIEW_BYTES // 2:
        raise ValueError(f"a variable of {length // 4} axes")
    shape = struct.unpack_from(f"{order}{length // 4}i", content, 24)
    place = 24 + (length + 7) // 8 * 8
    tag, count = struct.unpack_from(order + "II", content, place)
    if tag >> 16:  # a name of up to 4 bytes, inside its tag
        count, start = tag >> 16, place + 4
    else:
        start = place + 8
    name = content[start : start + count].decode("latin-1")
    if len(name) != count or min(shape, default=0) < 0:
        raise ValueError("a variable of impossible name or shape")
    return name, MatVariable(kind, tuple(shape), n_bytes)


def _get_member(value: Any, name: str) -> Any:
    """Return a member of a structure as SciPy reads it; None if there is none."""
    if type(value) is not np.ndarray or value.dtype.names is None or name not in value.dtype.names or not value.size:
        return None
    return value.reshape(-1)[0][name]


def _to_path(name: str) -> str:
    return "/" + name.replace(".", "/")


def _shorten(error: Exception) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__
