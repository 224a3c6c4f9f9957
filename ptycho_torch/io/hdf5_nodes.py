"""Groups and datasets of HDF5 files, with every link checked before it is followed.

External links and virtual datasets are resolved relative to the folder of the file that holds them; absolute paths and
paths with ``..`` are refused. Every failure is a :class:`~ptycho_torch.core.errors.DataError` that names the file and
the path inside the file.
"""

import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

from ptycho_torch.core.errors import DataError

MAX_LINK_DEPTH = 32
"""Largest number of soft and external links from a path to its data."""

MAX_NODES = 100_000
"""Largest number of groups and datasets that a search visits."""

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


class Hdf5Nodes:
    """The groups and datasets of an open HDF5 file.

    All paths are absolute paths inside the file, such as ``/entry_1/data_1/data``.
    """

    def __init__(self, path: Path, stack: ExitStack) -> None:
        self.path = path
        self._stack = stack
        self._handle = _open_handle(path)
        stack.callback(self._handle.close)
        self._externals: dict[Path, Hdf5Nodes] = {}

    def has(self, path: str) -> bool:
        """Return True if ``path`` exists, also through links to files that exist."""
        return self.find_node(path) is not None

    def find(self, *paths: str) -> str | None:
        """Return the first of ``paths`` that exists; None if none does."""
        return next((path for path in paths if self.has(path)), None)

    def is_group(self, path: str) -> bool:
        """Return True if ``path`` is a group."""
        node = self.find_node(path)
        return node is not None and not hasattr(node, "dtype")

    def is_dataset(self, path: str) -> bool:
        """Return True if ``path`` is a dataset."""
        node = self.find_node(path)
        return node is not None and hasattr(node, "dtype")

    def list_members(self, path: str = "/") -> list[str]:
        """Return the names of the members of a group in alphabetical order; empty if ``path`` is no group."""
        node = self.find_node(path)
        if node is None or hasattr(node, "dtype"):
            return []
        names: list[str] = guard(self.path, path, lambda: sorted(node))
        return names

    def list_groups(self, path: str = "/") -> list[str]:
        """Return the paths of the member groups of a group; links that lead to no group are left out."""
        children = [f"{path.rstrip('/')}/{name}" for name in self.list_members(path)]
        nodes = ((child, self.find_node(child, strict=False)) for child in children)
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
                node = self.find_node(child, strict=False)
                if node is None:
                    continue
                if hasattr(node, "dtype"):
                    yield child
                elif (node.file.filename, node.id.__hash__()) not in groups:
                    groups.add((node.file.filename, node.id.__hash__()))
                    pending.append(child)

    def find_node(self, path: str, *, strict: bool = True) -> Any:
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
        link: Any = guard(self.path, path, lambda: group.get(name, getlink=True))
        if link is None:
            return None
        if isinstance(link, h5py.SoftLink):
            target = link.path if link.path.startswith("/") else f"{group.name.rstrip('/')}/{link.path}"
            return self._owner(group)._resolve(target, depth + 1, origin)
        if isinstance(link, h5py.ExternalLink):
            return self._owner(group)._open_external(link.filename, path)._resolve(link.path, depth + 1, origin)
        return guard(self.path, path, lambda: group[name])

    def _owner(self, group: Any) -> "Hdf5Nodes":
        """Return the file that holds ``group``, which an external link may have reached."""
        name = Path(group.file.filename)
        for candidate in (self, *self._all_externals()):
            if candidate.path == name:
                return candidate
        return self

    def _all_externals(self) -> Iterator["Hdf5Nodes"]:
        for external in self._externals.values():
            yield external
            yield from external._all_externals()

    def _open_external(self, filename: str, path: str) -> "Hdf5Nodes":
        target = resolve_sibling(self.path, filename, path)
        if target not in self._externals:
            if not target.is_file():
                raise DataError(
                    f"{self.path}: {path} is a link to {filename}, which does not exist; copy that file to "
                    f"{target.parent}"
                )
            self._externals[target] = Hdf5Nodes(target, self._stack)
        return self._externals[target]

    def check_external_storage(self, dataset: Any, path: str) -> None:
        """Check that a dataset takes no data from files outside the folder of this file."""
        if dataset.external:
            raise DataError(f"{self.path}: {path} is stored in another raw file; expected data in an HDF5 file")
        if dataset.is_virtual:
            for source in guard(self.path, path, dataset.virtual_sources):
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


def _open_handle(path: Path) -> Any:
    import h5py

    _register_filters()
    return guard(path, "/", lambda: h5py.File(path, "r", locking=False))


def _register_filters() -> bool:
    """Register the compression filters of ``hdf5plugin``; return False where it is not installed."""
    try:
        import hdf5plugin
    except ImportError:
        return False
    return hdf5plugin is not None


def guard(path: Path, place: str, read: Callable[[], Any]) -> Any:
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
