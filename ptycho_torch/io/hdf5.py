"""Read arrays, numbers, texts and attributes of HDF5 files; sizes and types are checked before anything is read."""

import math
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ptycho_torch.core.errors import DataError
from ptycho_torch.io.hdf5_nodes import Hdf5Nodes, guard
from ptycho_torch.io.size_limits import check_array_size, check_stored_size
from ptycho_torch.io.units import UNIT_FACTORS

MAX_TEXT_CHARACTERS = 1 << 20
"""Largest number of character codes of a text."""


class Quantity(NamedTuple):
    """A number of a file in SI units."""

    value: float
    unit: str
    """Unit in the file."""


@contextmanager
def open_hdf5(path: Path) -> Iterator["Hdf5File"]:
    """Open the HDF5 file at ``path`` for reading.

    Raises:
        DataError: the file cannot be opened or is damaged.
    """
    with ExitStack() as stack:
        yield Hdf5File(path, stack)


class Hdf5File(Hdf5Nodes):
    """An open HDF5 file, with the values of its datasets and attributes."""

    def get_shape(self, path: str) -> tuple[int, ...]:
        """Return the shape of a dataset."""
        return tuple(self._require_dataset(path).shape or ())

    def get_dtype(self, path: str) -> np.dtype[Any]:
        """Return the dtype of a dataset."""
        dtype: np.dtype[Any] = self._require_dataset(path).dtype
        return dtype

    def get_attributes(self, path: str = "/") -> dict[str, Any]:
        """Return the attributes of a node by name: text as str, numbers as arrays; others are left out."""
        node = self.find_node(path)
        if node is None:
            return {}
        found: dict[str, Any] = {}
        for name in guard(self.path, path, lambda: list(node.attrs)):
            value = _read_attribute(node, name)
            if value is not None:
                found[name] = value
        return found

    def get_text_attribute(self, path: str, name: str) -> str | None:
        """Return the attribute ``name`` of ``path`` as text; None if it is missing or no text."""
        value = self.get_attributes(path).get(name)
        return value if isinstance(value, str) else None

    def read(
        self, path: str, *, kinds: str = "biufc", ndim: int | tuple[int, ...] | None = None, rows: Any = None
    ) -> NDArray[Any]:
        """Read a dataset.

        Args:
            path: path of the dataset.
            kinds: accepted kinds of dtype; compounds of two real numbers are read as complex.
            ndim: accepted number of axes; None: any.
            rows: indices of the first axis to read, ascending; None: all.

        Raises:
            DataError: the dataset is missing, of another kind or rank, larger than the memory, or damaged.
        """
        dataset = self._require_dataset(path)
        shape, dtype = tuple(dataset.shape or ()), dataset.dtype
        names = f"{self.path}: {path}"
        complex_names = _find_complex_names(dtype)
        kind = "c" if complex_names else dtype.kind
        if kind not in kinds or dataset.shape is None:
            raise DataError(f"{names} is {dtype} of shape {shape}; expected {_describe_kinds(kinds)}")
        ranks = (ndim,) if isinstance(ndim, int) else ndim
        if ranks is not None and len(shape) not in ranks:
            expected = " or ".join(map(str, ranks))
            raise DataError(f"{names} has shape {shape}; expected {expected} axes")
        needed = (len(rows), *shape[1:]) if rows is not None else shape
        check_array_size(names, needed, dtype)
        self.check_external_storage(dataset, path)
        if not dataset.is_virtual:
            check_stored_size(names, needed, dtype, guard(self.path, path, dataset.id.get_storage_size))
        array = guard(self.path, path, lambda: dataset[()] if rows is None else dataset[rows])
        if complex_names:
            array = array[complex_names[0]] + 1j * array[complex_names[1]]
        return np.asarray(array)

    def read_number(self, path: str) -> float:
        """Read a dataset of one number, of any rank and byte order.

        Raises:
            DataError: the dataset is missing, or is not one finite number.
        """
        dataset = self._require_dataset(path)
        if dataset.dtype.kind in "OSU":
            text = self.read_text(path)
            try:
                return float(text)
            except ValueError as error:
                raise DataError(f"{self.path}: {path} is {text!r}; expected one number") from error
        if math.prod(dataset.shape or ()) != 1:
            raise DataError(f"{self.path}: {path} has shape {dataset.shape}; expected one number")
        value = float(self.read(path, kinds="biuf").reshape(-1)[0])
        if not math.isfinite(value):
            raise DataError(f"{self.path}: {path} is {value}; expected one finite number")
        return value

    def read_positive(self, path: str) -> float:
        """Read a dataset of one positive number, as :meth:`read_number`.

        Raises:
            DataError: the dataset is missing, or is not one positive finite number.
        """
        value = self.read_number(path)
        if value <= 0:
            raise DataError(f"{self.path}: {path} is {value}; expected a positive number")
        return value

    def read_mean(self, path: str) -> float:
        """Read one number, or the mean of finite numbers that were recorded for every pattern.

        Raises:
            DataError: the dataset is missing, or holds no finite number.
        """
        values = self.read(path, kinds="biuf").astype(np.float64)
        values = values[np.isfinite(values)]
        if not values.size:
            raise DataError(f"{self.path}: {path} holds no finite number; expected at least one")
        return float(values.mean())

    def read_quantity(self, path: str, default_unit: str) -> Quantity:
        """Read a number, or the mean of numbers, in the unit of the attribute ``units`` and return it in SI units.

        Args:
            path: path of the dataset.
            default_unit: unit where the dataset has no attribute ``units``; one of
                :data:`~ptycho_torch.io.units.UNIT_FACTORS`.

        Raises:
            DataError: the dataset is missing, holds no finite number, or has an unknown unit.
        """
        unit = self.get_unit(path, default_unit)
        return Quantity(self.read_mean(path) * UNIT_FACTORS[unit.lower()], unit)

    def get_unit(self, path: str, default_unit: str) -> str:
        """Return the unit of a dataset, from its attribute ``units``.

        Raises:
            DataError: the unit is unknown.
        """
        unit = (self.get_text_attribute(path, "units") or self.get_text_attribute(path, "unit") or "").strip()
        unit = unit or default_unit
        if unit.lower() not in UNIT_FACTORS:
            raise DataError(f"{self.path}: {path} has the unit {unit!r}; expected one of {', '.join(UNIT_FACTORS)}")
        return unit

    def read_text(self, path: str) -> str:
        """Read a dataset of one text: a string of any kind, or the character codes that MATLAB writes.

        Raises:
            DataError: the dataset is missing, or is no text.
        """
        dataset = self._require_dataset(path)
        self.check_external_storage(dataset, path)
        if math.prod(dataset.shape or ()) > MAX_TEXT_CHARACTERS:
            raise DataError(f"{self.path}: {path} is {dataset.dtype} of shape {dataset.shape}; expected one text")
        value = guard(self.path, path, lambda: dataset[()])
        if isinstance(value, np.ndarray):
            if value.dtype.kind == "u" and value.dtype.itemsize == 2:
                return "".join(map(chr, value.reshape(-1, order="F")))
            value = value.reshape(-1)[0] if value.size == 1 else None
        if isinstance(value, bytes):
            return value.decode("utf-8", "replace")
        if isinstance(value, str):
            return value
        raise DataError(f"{self.path}: {path} is {dataset.dtype} of shape {dataset.shape}; expected one text")

    def _require_dataset(self, path: str) -> Any:
        node = self.find_node(path)
        if node is None:
            names = ", ".join(self.list_members(str(PurePosixPath(path).parent))) or "nothing"
            raise DataError(f"{self.path}: there is no {path} (its group holds {names}); expected a dataset")
        if not hasattr(node, "dtype"):
            raise DataError(f"{self.path}: {path} is a group; expected a dataset")
        return node


def _read_attribute(node: Any, name: str) -> Any:
    """Return an attribute as text or as an array of numbers; None for other types and damaged ones."""
    try:
        value = node.attrs[name]
    except (OSError, KeyError, RuntimeError, ValueError, TypeError):
        return None
    if isinstance(value, np.ndarray) and value.size == 1 and value.dtype.kind in "OSU":
        value = value.reshape(-1)[0]
    if isinstance(value, bytes):
        return value.decode("utf-8", "replace")
    if isinstance(value, str):
        return value
    array = np.asarray(value)
    return array if array.dtype.kind in "biufc" else None


def _find_complex_names(dtype: np.dtype[Any]) -> tuple[str, str] | None:
    """Return the names of real and imaginary part of a compound dtype; None if it is no complex number."""
    names = dtype.names
    if names is None or len(names) != 2 or any(dtype[name].kind not in "fiu" for name in names):
        return None
    for pair in (("r", "i"), ("real", "imag"), ("re", "im")):
        if tuple(name.lower() for name in names) == pair:
            return names[0], names[1]
    return None


def _describe_kinds(kinds: str) -> str:
    if "c" in kinds and "f" not in kinds:
        return "complex numbers"
    if kinds in ("i", "iu", "u"):
        return "integers"
    return "real or complex numbers" if "c" in kinds else "real numbers"
