"""Read HDF5 files safely: links, sizes, types and filters are checked before anything is read.

External links and virtual datasets are resolved relative to the folder of the file that holds them; absolute paths and
paths with ``..`` are refused. Every failure is a :class:`~ptycho_torch.core.errors.DataError` that names the file and
the path inside the file.
"""

import math
import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ptycho_torch.core.errors import DataError

MAX_LINK_DEPTH = 32
"""Largest number of soft and external links from a path to its data."""

MAX_NODES = 100_000
"""Largest number of groups and datasets that a search visits."""

MEMORY_FRACTION = 0.8
"""Largest array that is read, as a fraction of the memory of the machine."""

MAX_SPARSE_BYTES = 1 << 28
"""Largest array that is read whatever the number of bytes stored for it."""

MAX_COMPRESSION = 10_000
"""Largest ratio of the bytes of a large array to the bytes stored for it; gzip reaches 1032."""

MAX_TEXT_CHARACTERS = 1 << 20
"""Largest number of character codes of a text."""

UNIT_FACTORS: dict[str, float] = {
    "m": 1.0, "meter": 1.0, "meters": 1.0, "metre": 1.0, "mm": 1e-3, "um": 1e-6, "µm": 1e-6, "μm": 1e-6,
    "micron": 1e-6, "microns": 1e-6, "micrometer": 1e-6, "nm": 1e-9, "nanometer": 1e-9, "pm": 1e-12,
    "a": 1e-10, "å": 1e-10, "angstrom": 1e-10, "angstroms": 1e-10,
    "j": 1.0, "joule": 1.0, "ev": 1.602176634e-19, "kev": 1.602176634e-16,
    "rad": 1.0, "deg": math.pi / 180, "degree": math.pi / 180, "degrees": math.pi / 180,
    "s": 1.0, "ms": 1e-3, "v": 1.0, "kv": 1e3,
}  # fmt: skip
"""Factor of each unit to its SI unit (meter, joule, radian, second, volt), by its name in lower case."""

HDF5_SIGNATURE = b"\x89HDF\r\n\x1a\n"


def is_hdf5(path: Path) -> bool:
    """Return True if the file at ``path`` has the signature of HDF5, also behind a user block as MATLAB writes it."""
    with open(path, "rb") as stream:
        size = os.fstat(stream.fileno()).st_size
        offset = 0
        while offset + len(HDF5_SIGNATURE) <= size and offset <= 1 << 20:
            stream.seek(offset)
            if stream.read(len(HDF5_SIGNATURE)) == HDF5_SIGNATURE:
                return True
            offset = 512 if offset == 0 else offset * 2
    return False


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


class Hdf5File:
    """An open HDF5 file. All paths are absolute paths inside the file, such as ``/entry_1/data_1/data``."""

    def __init__(self, path: Path, stack: ExitStack) -> None:
        self.path = path
        self._stack = stack
        self._handle = _open_handle(path, path, "")
        stack.callback(self._handle.close)
        self._externals: dict[Path, Hdf5File] = {}

    def has(self, path: str) -> bool:
        """Return True if ``path`` exists, also through links to files that exist."""
        return self._find_node(path) is not None

    def find(self, *paths: str) -> str | None:
        """Return the first of ``paths`` that exists; None if none does."""
        return next((path for path in paths if self.has(path)), None)

    def is_group(self, path: str) -> bool:
        """Return True if ``path`` is a group."""
        node = self._find_node(path)
        return node is not None and not hasattr(node, "dtype")

    def is_dataset(self, path: str) -> bool:
        """Return True if ``path`` is a dataset."""
        node = self._find_node(path)
        return node is not None and hasattr(node, "dtype")

    def list_members(self, path: str = "/") -> list[str]:
        """Return the names of the members of a group in alphabetical order; empty if ``path`` is no group."""
        node = self._find_node(path)
        if node is None or hasattr(node, "dtype"):
            return []
        names: list[str] = _guard(self.path, path, lambda: sorted(node))
        return names

    def list_groups(self, path: str = "/") -> list[str]:
        """Return the paths of the member groups of a group; links that lead to no group are left out."""
        children = [f"{path.rstrip('/')}/{name}" for name in self.list_members(path)]
        nodes = ((child, self._find_node(child, strict=False)) for child in children)
        return [child for child, node in nodes if node is not None and not hasattr(node, "dtype")]

    def walk_datasets(self) -> Iterator[str]:
        """Iterate over the paths of all datasets that can be read, without following a link into a parent group."""
        visited = 0
        pending, groups = ["/"], set()
        while pending:
            path = pending.pop(0)
            for name in self.list_members(path):
                visited += 1
                if visited > MAX_NODES:
                    raise DataError(f"{self.path}: more than {MAX_NODES} groups and datasets; expected a scan file")
                child = f"{path.rstrip('/')}/{name}"
                node = self._find_node(child, strict=False)
                if node is None:
                    continue
                if hasattr(node, "dtype"):
                    yield child
                elif (node.file.filename, node.id.__hash__()) not in groups:
                    groups.add((node.file.filename, node.id.__hash__()))
                    pending.append(child)

    def get_shape(self, path: str) -> tuple[int, ...]:
        """Return the shape of a dataset."""
        return tuple(self._require_dataset(path).shape or ())

    def get_dtype(self, path: str) -> np.dtype[Any]:
        """Return the dtype of a dataset."""
        dtype: np.dtype[Any] = self._require_dataset(path).dtype
        return dtype

    def get_attributes(self, path: str = "/") -> dict[str, Any]:
        """Return the attributes of a node by name: text as str, numbers as arrays; others are left out."""
        node = self._find_node(path)
        if node is None:
            return {}
        found: dict[str, Any] = {}
        for name in _guard(self.path, path, lambda: list(node.attrs)):
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
        self._check_external_storage(dataset, path)
        if not dataset.is_virtual:
            check_stored_size(names, needed, dtype, _guard(self.path, path, dataset.id.get_storage_size))
        array = _guard(self.path, path, lambda: dataset[()] if rows is None else dataset[rows])
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
            default_unit: unit where the dataset has no attribute ``units``; one of :data:`UNIT_FACTORS`.

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
        self._check_external_storage(dataset, path)
        if math.prod(dataset.shape or ()) > MAX_TEXT_CHARACTERS:
            raise DataError(f"{self.path}: {path} is {dataset.dtype} of shape {dataset.shape}; expected one text")
        value = _guard(self.path, path, lambda: dataset[()])
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
        node = self._find_node(path)
        if node is None:
            names = ", ".join(self.list_members(str(PurePosixPath(path).parent))) or "nothing"
            raise DataError(f"{self.path}: there is no {path} (its group holds {names}); expected a dataset")
        if not hasattr(node, "dtype"):
            raise DataError(f"{self.path}: {path} is a group; expected a dataset")
        return node

    def _find_node(self, path: str, *, strict: bool = True) -> Any:
        """Return the group or dataset at ``path``; None if it does not exist.

        A link that leaves the folder raises, or counts as missing without ``strict``.
        """
        try:
            return self._resolve(path, 0, path)
        except DataError:
            if strict:
                raise
            return None

    def _resolve(self, path: str, depth: int, origin: str) -> Any:
        """Return the node at ``path``, which ``depth`` links have led to from the path ``origin``."""
        if depth > MAX_LINK_DEPTH:
            raise DataError(f"{self.path}: {origin} is a chain of more than {MAX_LINK_DEPTH} links; expected a dataset")
        node, place = self._handle, ""
        for name in PurePosixPath(path).parts:
            if name in ("/", "."):
                continue
            if hasattr(node, "dtype"):
                return None
            node = self._follow(node, name, place, depth, origin)
            if node is None:
                return None
            place = f"{place}/{name}"
        return node

    def _follow(self, group: Any, name: str, place: str, depth: int, origin: str) -> Any:
        """Return the member ``name`` of ``group``; None if it is missing."""
        import h5py

        path = f"{place}/{name}"
        link: Any = _guard(self.path, path, lambda: group.get(name, getlink=True))
        if link is None:
            return None
        if isinstance(link, h5py.SoftLink):
            target = link.path if link.path.startswith("/") else f"{group.name.rstrip('/')}/{link.path}"
            return self._owner(group)._resolve(target, depth + 1, origin)
        if isinstance(link, h5py.ExternalLink):
            return self._owner(group)._open_external(link.filename, path)._resolve(link.path, depth + 1, origin)
        return _guard(self.path, path, lambda: group[name])

    def _owner(self, group: Any) -> "Hdf5File":
        """Return the file that holds ``group``, which an external link may have reached."""
        name = Path(group.file.filename)
        for candidate in (self, *self._all_externals()):
            if candidate.path == name:
                return candidate
        return self

    def _all_externals(self) -> Iterator["Hdf5File"]:
        for external in self._externals.values():
            yield external
            yield from external._all_externals()

    def _open_external(self, filename: str, path: str) -> "Hdf5File":
        target = resolve_sibling(self.path, filename, path)
        if target not in self._externals:
            if not target.is_file():
                raise DataError(
                    f"{self.path}: {path} is a link to {filename}, which does not exist; copy that file to "
                    f"{target.parent}"
                )
            self._externals[target] = Hdf5File(target, self._stack)
        return self._externals[target]

    def _check_external_storage(self, dataset: Any, path: str) -> None:
        """Check that a dataset takes no data from files outside the folder of this file."""
        if dataset.external:
            raise DataError(f"{self.path}: {path} is stored in another raw file; expected data in an HDF5 file")
        if dataset.is_virtual:
            for source in _guard(self.path, path, dataset.virtual_sources):
                if source.file_name not in (".", ""):
                    target = resolve_sibling(Path(dataset.file.filename), source.file_name, path)
                    if "%" not in target.name and not target.is_file():
                        raise DataError(
                            f"{self.path}: {path} takes data from {source.file_name}, which does not exist; copy that "
                            f"file to {target.parent}"
                        )


def resolve_sibling(path: Path, filename: str, place: str) -> Path:
    """Return the path of ``filename`` relative to the folder of the file at ``path``.

    Args:
        path: file with a link.
        filename: name in the link.
        place: path of the link inside the file, for the error.

    Raises:
        DataError: ``filename`` is absolute or contains ``..``.
    """
    parts = PurePosixPath(filename.replace("\\", "/")).parts
    absolute = PurePosixPath(filename).is_absolute() or PureWindowsPath(filename).is_absolute()
    if absolute or PureWindowsPath(filename).drive or ".." in parts or not parts or "\0" in filename:
        raise DataError(
            f"{path}: {place} is a link to {filename!r}, outside the folder of the file; expected a file name relative "
            "to it; copy the file there and write the link again"
        )
    target = path.parent.joinpath(*parts)
    if not target.resolve().is_relative_to(path.parent.resolve()):
        raise DataError(
            f"{path}: {place} is a link to {filename!r}, which leads outside the folder of the file; expected a file "
            "inside it"
        )
    return target


def _open_handle(path: Path, owner: Path, place: str) -> Any:
    import h5py

    _register_filters()
    return _guard(owner, place or "/", lambda: h5py.File(path, "r", locking=False))


def _register_filters() -> bool:
    """Register the compression filters of ``hdf5plugin``; return False where it is not installed."""
    try:
        import hdf5plugin
    except ImportError:
        return False
    return hdf5plugin is not None


def _guard(path: Path, place: str, read: Callable[[], Any]) -> Any:
    """Return ``read()``; every failure of the library becomes a :class:`DataError` that names the place."""
    try:
        return read()
    except (OSError, KeyError, RuntimeError, ValueError, TypeError, OverflowError, MemoryError, EOFError) as error:
        text = " ".join(str(error).split())[:200]
        if isinstance(error, FileNotFoundError):
            raise DataError(f"{path}: there is no such file; give the path of a scan file") from error
        if "filter" in text.lower() or "plugin" in text.lower():
            hint = "" if _register_filters() else '; install the filters: pip install "ptycho-torch[formats]"'
            raise DataError(f"{path}: {place} is compressed with a filter that is missing ({text}){hint}") from error
        raise DataError(f"{path}: {place} cannot be read ({text}); the file may be damaged; copy it again") from error


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
