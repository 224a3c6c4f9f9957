"""All file formats, in the order in which their tests decide."""

from pathlib import Path

from ptycho_torch.core.errors import ConfigError, DataError
from ptycho_torch.io.container import HEAD_BYTES, InputFile
from ptycho_torch.io.formats.base import Format, ResultWriter, ScanWriter
from ptycho_torch.io.formats.beamlines import BeamlineFormat
from ptycho_torch.io.formats.canonical import CanonicalFormat
from ptycho_torch.io.formats.cxi import CxiFormat
from ptycho_torch.io.formats.eiger import EigerFormat
from ptycho_torch.io.formats.emd import EmdFormat
from ptycho_torch.io.formats.empad import EmpadFormat
from ptycho_torch.io.formats.fold_slice import FoldSliceFormat
from ptycho_torch.io.formats.generic import GenericFormat
from ptycho_torch.io.formats.nexus import NexusFormat
from ptycho_torch.io.formats.nsls_mat import NslsMatFormat
from ptycho_torch.io.formats.phaser import PhaserFormat
from ptycho_torch.io.formats.ptychodus_exports import PtychodusTrainingFormat, PtychoPinnFormat
from ptycho_torch.io.formats.ptychodus_patterns import PtychodusPatternsFormat
from ptycho_torch.io.formats.ptychodus_product import PtychodusProductFormat
from ptycho_torch.io.formats.ptychovit import PtychoVitFormat
from ptycho_torch.io.formats.ptyd import PtydFormat
from ptycho_torch.io.formats.ptydy import PtydyFormat
from ptycho_torch.io.formats.ptylab import PtyLabFormat
from ptycho_torch.io.formats.ptyr import PtyrFormat
from ptycho_torch.io.formats.ptyrad import PtyradFormat
from ptycho_torch.io.formats.shelves_prepared import ShelvesPreparedFormat
from ptycho_torch.io.formats.shelves_result import ShelvesResultFormat
from ptycho_torch.io.formats.table import DECIMAL_COMMAS, TableFormat, has_decimal_commas
from ptycho_torch.io.formats.xptycho import XptychoFormat

FORMATS: tuple[Format, ...] = (
    NexusFormat(),
    CxiFormat(),
    PtydFormat(),
    PtyrFormat(),
    PtychodusProductFormat(),
    PtychoVitFormat(),
    PtychodusPatternsFormat(),
    PtychodusTrainingFormat(),
    PtychoPinnFormat(),
    PtyLabFormat(),
    XptychoFormat(),
    CanonicalFormat(),
    FoldSliceFormat(),
    EmdFormat(),
    PtydyFormat(),
    PtyradFormat(),
    PhaserFormat(),
    ShelvesResultFormat(),
    ShelvesPreparedFormat(),
    NslsMatFormat(),
    EmpadFormat(),
    EigerFormat(),
    BeamlineFormat(),
    TableFormat(),
    GenericFormat(),
)
"""Formats from the most to the least specific test; the first that matches reads a file."""

SCAN_WRITERS = tuple(each for each in FORMATS if isinstance(each, ScanWriter))
RESULT_WRITERS = tuple(each for each in FORMATS if isinstance(each, ResultWriter))

RESULT_NAME = "reconstruction.npz"
"""Name of the result in the folder of a reconstruction."""

FORMATS_BY_NAME = {each.name: each for each in FORMATS}


def get_format(name: str) -> Format:
    """Return the format of a name.

    Raises:
        ConfigError: there is no such format.
    """
    if name not in FORMATS_BY_NAME:
        raise ConfigError(f"`format` is {name}; expected one of {', '.join(FORMATS_BY_NAME)}")
    return FORMATS_BY_NAME[name]


def recognize_format(file: InputFile, name: str | None = None) -> Format:
    """Return the format of an open file, from its content or from the setting ``format``.

    Raises:
        ConfigError: ``name`` is unknown.
        DataError: no format matches.
    """
    if name is not None:
        return get_format(name)
    for each in FORMATS:
        if each.matches(file):
            return each
    hint = _find_hint(file)
    if hint is not None:
        raise DataError(f"{file.path}: the format is unknown: {hint}")
    raise DataError(
        f"{file.path}: the format is unknown (a file of the kind {file.kind}); expected one of "
        f"{', '.join(FORMATS_BY_NAME)}; set `format`"
    )


def _find_hint(file: InputFile) -> str | None:
    """Return the likely cause of an unknown format and its remedy; None if there is none."""
    if file.kind == "folder" and (file.path / RESULT_NAME).is_file():
        return f"this is the folder of a result; give the file {RESULT_NAME} in the folder"
    if file.kind == "text":
        with open(file.path, "rb") as stream:
            lines = stream.read(HEAD_BYTES * 4).decode("utf-8", "replace").splitlines()
        if has_decimal_commas(lines):
            return f"{DECIMAL_COMMAS}; expected decimal points; replace the commas"
    return None


def find_scan_writer(path: Path, name: str | None = None) -> ScanWriter:
    """Return the format that writes a scan to ``path``, by name or by suffix.

    Raises:
        ConfigError: no such format, or the format cannot write scans.
    """
    if name is not None:
        chosen = get_format(name)
        if isinstance(chosen, ScanWriter):
            return chosen
    else:
        for each in SCAN_WRITERS:
            if path.suffix.lower() in each.scan_suffixes:
                return each
    listed = ", ".join(f"{each.name} ({' '.join(each.scan_suffixes) or 'by name'})" for each in SCAN_WRITERS)
    found = f"`output_format` is {name}, which is read only" if name else f"the suffix is {path.suffix!r}"
    raise ConfigError(f"{path}: {found}; expected a format that can be written: {listed}; set `output_format`")


def find_result_writer(path: Path, name: str | None = None) -> ResultWriter:
    """Return the format that writes a result to ``path``, by name or by suffix.

    Raises:
        ConfigError: no such format, or the format cannot write results.
    """
    for each in RESULT_WRITERS:
        if each.name == name if name else path.suffix.lower() in each.result_suffixes:
            return each
    listed = ", ".join(["npz (.npz)", *(f"{each.name} ({' '.join(each.result_suffixes)})" for each in RESULT_WRITERS)])
    raise ConfigError(f"{path}: the suffix is {path.suffix!r}; expected a format of results: {listed}")
