"""The interfaces of file formats: reading, writing scans, and writing results."""

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
    """A file format: recognition by content and reading; :class:`ScanWriter` and :class:`ResultWriter` also write.

    A reader converts axis orders, units and signs of the file to those of :class:`~ptycho_torch.io.parts.ScanParts`,
    and records the place of each quantity in its report. It does not crop, center or rescale.
    """

    name: ClassVar[str]
    """Value of the setting ``format``."""

    title: ClassVar[str]
    """Description for people, with the programs that write the format."""

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


class ScanWriter(Format):
    """A format to which scans can be written."""

    scan_suffixes: ClassVar[tuple[str, ...]] = ()
    """Suffixes that select this format; empty: by name only."""

    omitted_parts: ClassVar[tuple[str, ...]] = ()
    """Quantities of a scan for which the written file has no place: ``probe``, ``object``, ``mask``, ``scan_index``,
    or attributes of the geometry."""

    writes_pair: ClassVar[bool] = False
    """True if a scan is written to two files: the path, and the first of :meth:`list_partners`."""

    @abstractmethod
    def write_scan(self, path: Path, scan: Scan) -> None:
        """Write ``scan`` to ``path``; the file appears whole or not at all.

        Raises:
            DataError: the scan lacks a quantity that the format requires, or the file cannot be written.
        """


class ResultWriter(Format):
    """A format to which results can be written."""

    result_suffixes: ClassVar[tuple[str, ...]]
    """Suffixes that select this format."""

    @abstractmethod
    def write_result(self, path: Path, result: Reconstruction) -> None:
        """Write ``result`` to ``path``; the file appears whole or not at all.

        Raises:
            DataError: the result lacks a quantity that the format requires, or the file cannot be written.
        """
