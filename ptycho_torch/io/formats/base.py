"""The interface of a file format."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar

from ptycho_torch.config.input import InputSettings
from ptycho_torch.data.reconstruction import Reconstruction
from ptycho_torch.data.scan import Scan
from ptycho_torch.io.container import InputFile
from ptycho_torch.io.parts import ScanParts


class Format(ABC):
    """A file format: recognition by content, reading, and optionally writing.

    A reader converts axis orders, units and signs of the file to those of :class:`~ptycho_torch.io.parts.ScanParts`,
    and records the place of each quantity in its report. It does not crop, center or rescale.
    """

    name: ClassVar[str]
    """Value of the setting ``format``."""

    title: ClassVar[str]
    """Description for people, with the programs that write the format."""

    scan_suffixes: ClassVar[tuple[str, ...]] = ()
    """Suffixes that select this format for writing a scan; empty: :meth:`write_scan` is not available."""

    result_suffixes: ClassVar[tuple[str, ...]] = ()
    """Suffixes that select this format for writing a result; empty: :meth:`write_result` is not available."""

    omitted_parts: ClassVar[tuple[str, ...]] = ()
    """Quantities of a scan for which the written file has no place: ``probe``, ``object``, ``mask``, ``scan_index``,
    or attributes of the geometry."""

    writes_pair: ClassVar[bool] = False
    """True if a scan is written to two files: the path, and the first of :meth:`list_partners`."""

    writes_scans: ClassVar[bool] = False
    writes_results: ClassVar[bool] = False

    @abstractmethod
    def matches(self, file: InputFile) -> bool:
        """Return True if the content of ``file`` is of this format, in milliseconds."""

    @abstractmethod
    def read(self, file: InputFile, settings: InputSettings) -> ScanParts:
        """Read all that the file holds.

        Raises:
            DataError: the file is damaged, or lacks something that the format requires.
        """

    def list_partners(self, path: Path) -> Sequence[Path]:
        """Return the paths at which the other file of a pair may be, by the naming rule of the format."""
        del path
        return ()

    def write_scan(self, path: Path, scan: Scan) -> None:
        """Write ``scan`` to ``path``; the file appears whole or not at all.

        Raises:
            DataError: the scan lacks a quantity that the format requires, or the file cannot be written.
        """
        raise NotImplementedError(self.name)

    def write_result(self, path: Path, result: Reconstruction) -> None:
        """Write ``result`` to ``path``; the file appears whole or not at all.

        Raises:
            DataError: the result lacks a quantity that the format requires, or the file cannot be written.
        """
        raise NotImplementedError(self.name)
