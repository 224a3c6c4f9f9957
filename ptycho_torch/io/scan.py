"""Read a scan from a file of any supported format, and write it."""

import logging
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, NamedTuple

from ptycho_torch.config.input import InputSettings, make_input_settings
from ptycho_torch.core.errors import ConfigError, DataError
from ptycho_torch.data.findings import find_measurement_fault, find_position_and_probe_faults, raise_for_faults
from ptycho_torch.data.fixes import fix_scan
from ptycho_torch.data.scan import Scan, require_scan
from ptycho_torch.io.assemble import assemble_scan, finish_scan, require_far_field
from ptycho_torch.io.container import InputFile, name_geometry, name_setting, open_input
from ptycho_torch.io.formats.base import Format
from ptycho_torch.io.formats.canonical import CanonicalFormat
from ptycho_torch.io.formats.generic import GenericFormat
from ptycho_torch.io.formats.registry import find_scan_writer, recognize_format
from ptycho_torch.io.npz import read_npz_scan, write_npz_scan
from ptycho_torch.io.parts import InputReport, ScanParts

logger = logging.getLogger(__name__)

DIRECT_SETTINGS = {
    "format", "axis_order", "measurement", "photons_per_unit", "frames", "scan_index", "fix", "energy_ev", "voltage_kv",
    "wavelength", "distance", "detector_pixel", "pixel_size", "propagation",
}  # fmt: skip
"""Settings that a canonical file takes without a conversion of its arrays."""

PATTERN_SETTINGS = frozenset({"diffraction_key", "mask_key"})
POSITION_SETTINGS = frozenset({"positions_key", "x_key", "y_key"})
KEY_SETTINGS = PATTERN_SETTINGS | POSITION_SETTINGS | {"probe_key", "object_key"}
"""Settings that are keys of arrays; those of patterns and positions belong to the file that holds them."""

OMITTED_LABELS = {
    "probe": "the probe",
    "object": "the object",
    "mask": "the mask (masked pixels are 0)",
    "scan_index": "the numbers of the scans",
    "wavelength_m": "the wavelength",
    "distance_m": "the distance",
    "detector_pixel_m": "the detector pixel",
}
"""Descriptions of the quantities that a format may omit."""


class InputScan(NamedTuple):
    """A scan and the record of its origin."""

    scan: Scan
    report: InputReport


def load_scan(path: str | Path, **settings: Any) -> Scan:
    """Read a scan file of any supported format; the content decides the format.

    Positions far from the scan and a probe with a corner origin are logged as warnings.

    Args:
        path: scan file. Of a pair of files, either may be named.
        **settings: settings of :class:`~ptycho_torch.config.input.InputSettings`, such as ``measurement="counts"``,
            ``positions_file="positions.csv"``, ``energy_ev=8000.0``, ``center="auto"`` or ``fix=True``.

    Raises:
        ConfigError: a setting is unknown, or is required and missing.
        DataError: the file cannot be read, or lacks patterns or positions.
        ContractError: the file breaks a MUST of ``specs/data_contracts.md``, whose number the error carries.
    """
    scan = read_input(path, **settings).scan
    raise_for_faults(scan)
    for finding in find_position_and_probe_faults(scan):
        logger.warning("%s: %s; set %s", path, finding.evidence, finding.setting)
    return scan


def read_input(path: str | Path, **settings: Any) -> InputScan:
    """Read a scan file of any supported format, with the record of its origin; see :func:`load_scan`."""
    path, options = Path(path), make_input_settings(settings)
    with open_input(path) as file:
        direct = is_read_directly(file, options)
        parts = None if direct else read_parts(file, options)
    if parts is None:
        scan = read_npz_scan(
            path,
            axis_order=options.axis_order,
            measurement=options.measurement,
            photons_per_unit=options.photons_per_unit,
        )
        report = InputReport("npz")
        with name_geometry(path):
            require_far_field(scan.geometry, options, str(path), report)
            scan = finish_scan(scan, options)
    else:
        with name_geometry(path):
            report, scan = parts.report, assemble_scan(parts, options, path)
    counts = find_measurement_fault(scan)
    if counts is not None:
        logger.warning("%s: %s; set %s", path, counts.evidence, counts.setting)
    return InputScan(_fix(scan, report) if options.fix else scan, report)


def _fix(scan: Scan, report: InputReport) -> Scan:
    """Return the scan with the faults corrected that are safe to correct; the metadata list the corrections."""
    fixed, applied = fix_scan(scan)
    for text in applied:
        logger.warning("%s: %s", scan.source, text)
    report.assumptions.extend(applied)
    return replace(fixed, metadata=fixed.metadata | {"fixes": applied})


def is_read_directly(file: InputFile, options: InputSettings) -> bool:
    """Return True if an open file keeps the data contract, or is judged by it, and no setting converts its arrays.

    Raises:
        DataError: the file cannot be read.
    """
    defaults = InputSettings()
    names = (name for name in vars(defaults) if name not in DIRECT_SETTINGS)
    if any(getattr(options, name) != getattr(defaults, name) for name in names):
        return False
    return file.kind == "npz" and isinstance(recognize_format(file, options.format), CanonicalFormat)


def read_parts(file: InputFile, options: InputSettings) -> ScanParts:
    """Read the content of an open scan file and of its partner.

    Raises:
        DataError: a file cannot be read.
    """
    partners = (
        ("patterns", options.patterns_file, "patterns_file", PATTERN_SETTINGS),
        ("positions", options.positions_file, "positions_file", POSITION_SETTINGS),
    )
    moved = {key for _, given, _, keys in partners if given is not None for key in keys}
    parts = _read_open(file, recognize_format(file, options.format), _clear(options, moved))
    for name, given, setting, keys in partners:
        if given is not None:
            with name_setting(setting):
                other = _read_one(given, _clear(options, KEY_SETTINGS - keys))
            if getattr(other, name) is None:
                hint = next((each for each in other.report.missing if each.startswith(f"{name}: found ")), "")
                found = hint.partition(": ")[2].partition("; ")[0]
                raise DataError(
                    f"{given}: the file holds no {name}{f' ({found})' if found else ''}; change `{setting}` or set "
                    f"{' or '.join(f'`{key}`' for key in sorted(keys))}"
                )
            # Of the partner, nothing else is expected.
            other.report.missing.clear()
            parts.report.missing[:] = [each for each in parts.report.missing if not each.startswith(f"{name}: ")]
            parts = _replace_part(parts, other, name)
    if parts.patterns is None or parts.positions is None:
        parts = _merge_partner(file, parts, options)
    return parts


def _clear(options: InputSettings, names: set[str] | frozenset[str]) -> InputSettings:
    """Return the settings without the keys ``names``, which are keys of another file."""
    cleared: dict[str, Any] = dict.fromkeys(names)
    return replace(options, **cleared)


def _replace_part(parts: ScanParts, other: ScanParts, name: str) -> ScanParts:
    """Return ``parts`` with ``name`` taken from ``other``, and with all else that is missing."""
    cleared: dict[str, Any] = {name: None}
    cleared |= {"position_numbers": None} if name == "positions" else {"pattern_numbers": None}
    return parts.__class__(**(vars(parts) | cleared)).merge(other)


def read_result_parts(path: Path) -> ScanParts:
    """Read object, probe and positions from a file of any supported format, without patterns.

    Raises:
        DataError: the file cannot be read.
    """
    return _read_one(path, InputSettings(measurement="counts"))


def _merge_partner(file: InputFile, parts: ScanParts, options: InputSettings) -> ScanParts:
    for candidate in recognize_format(file, options.format).list_partners(file.path):
        if candidate.exists() and candidate != file.path:
            other = _read_one(candidate, options)
            if (parts.patterns is None and other.patterns is not None) or (
                parts.positions is None and other.positions is not None
            ):
                parts = parts.merge(other)
            else:
                name = "patterns" if parts.patterns is None else "positions"
                hint = f"{name}: {candidate.name}, beside the file, holds none; set `{name}_file`"
                parts.report.missing.insert(0, hint)
        if parts.patterns is not None and parts.positions is not None:
            break
    return parts


def _read_one(path: Path, options: InputSettings) -> ScanParts:
    """Read the content of the file at ``path``, whose content decides the format."""
    with open_input(path) as file:
        return _read_open(file, recognize_format(file), options)


def _read_open(file: InputFile, chosen: Format, options: InputSettings) -> ScanParts:
    """Read the content of an open file; keys of a canonical file make it a file of arrays by key."""
    if isinstance(chosen, CanonicalFormat) and any(getattr(options, key) is not None for key in KEY_SETTINGS):
        chosen = GenericFormat()
    with name_geometry(file.path):
        return chosen.read(file, options)


def save_scan(
    path: str | Path, scan: Scan, layout: Literal["canonical", "legacy"] = "canonical", format: str | None = None
) -> None:
    """Write ``scan`` to ``path``. The file appears whole or not at all; equal scans give equal bytes of NPZ.

    Args:
        path: file to write; an existing file is replaced. The suffix selects the format.
        scan: the scan.
        layout: layout of NPZ files. ``canonical`` keeps the amplitudes to the bit and records axis order and
            measurement. ``legacy`` is the layout of the published Run1084 files: (N, N, n) float64 amplitudes scaled to
            a maximum of 1.7036, complex128, no metadata.
        format: name of the format; None: by suffix, and NPZ for an unknown suffix.

    Raises:
        ConfigError: the format is unknown or cannot be written.
        ContractError: the scan breaks the contract.
        DataError: the file cannot be written, or the format requires a quantity that the scan lacks.
    """
    path, scan = Path(path), require_scan(scan)
    if format in (None, "npz") and path.suffix.lower() in ("", ".npz"):
        write_npz_scan(path, scan, layout)
        return
    if layout != "canonical":
        raise ConfigError(f"`layout` is {layout}, which is a layout of NPZ files; expected a path with the suffix .npz")
    writer = find_scan_writer(path, format)
    writer.write_scan(path, scan)
    lost = [OMITTED_LABELS[part] for part in writer.omitted_parts if _holds(scan, part)]
    if lost:
        logger.warning("%s: the format %s has no place for %s: left out", path, writer.name, ", ".join(lost))


def _holds(scan: Scan, part: str) -> bool:
    """Return True if the scan has the quantity ``part`` of :attr:`ScanWriter.omitted_parts`."""
    if part.endswith("_m"):
        return getattr(scan.geometry, part, None) is not None
    return getattr(scan, "truth" if part == "object" else part) is not None


def list_written_files(path: Path, format: str | None = None) -> list[Path]:
    """Return the files that :func:`save_scan` writes for ``path`` and ``format``: one, or a pair."""
    if format in (None, "npz") and path.suffix.lower() in ("", ".npz"):
        return [path]
    writer = find_scan_writer(path, format)
    partners = [each for each in writer.list_partners(path) if each != path] if writer.writes_pair else []
    return [path, *partners[:1]]
