"""Metadata of EMPAD scans: the XML of the microscope, the JSON of phaser, and the name of the raw file."""

import json
import math
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from ptycho_torch.core.errors import DataError
from ptycho_torch.io.formats.lengths import parse_number

MAX_METADATA_BYTES = 1 << 20
"""Largest file of metadata that is read."""

MAX_SIDECARS = 100
"""Largest number of files of metadata in the folder that are compared with the name of the raw file."""

MAX_SCAN_SIDE = 100_000
"""Largest number of rows or columns of a scan."""

DEFAULT_FLIPS = (True, False, False)
"""Flip of rows, flip of columns, and transpose of stored frames; the orientation that EMPADs usually have."""

NAME_PATTERN = re.compile(r"x(\d{1,6})_y(\d{1,6})")


@dataclass(frozen=True)
class EmpadMetadata:
    """Facts about an EMPAD scan; None where unknown."""

    path: Path | None = None
    """File of the metadata; None: the name of the raw file."""

    raw_name: str | None = None
    """Name of the raw file, without folder."""

    shape: tuple[int, int] | None = None
    """Rows and columns of the scan."""

    step_m: tuple[float, float] | None = None
    """Scan steps (y, x) in meters."""

    rotation: float = 0.0
    """Rotation of the scan in radians, as stored."""

    voltage_v: float | None = None

    camera_length_m: float | None = None
    """Nominal camera length."""

    pixel_mrad: float | None = None
    """Angle per detector pixel."""

    counts_per_electron: float | None = None

    flips: tuple[bool, bool, bool] = DEFAULT_FLIPS
    """Flip of rows, flip of columns, and transpose, which is last."""


def parse_metadata(path: Path) -> EmpadMetadata | None:
    """Return the facts of a file of metadata; None if the file is of another kind.

    Raises:
        DataError: the file names a raw file of an EMPAD and is damaged, or declares entities.
    """
    try:
        with open(path, "rb") as stream:
            content = stream.read(MAX_METADATA_BYTES + 1)
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror or error}); give the path of a scan file") from error
    if len(content) > MAX_METADATA_BYTES:
        return None
    text = content.decode("utf-8", "replace").lstrip("\ufeff \r\n\t")
    if text.startswith("<") and "<raw_file" in text:
        return _parse_xml(text, path)
    if text.startswith("{") and '"empad_metadata"' in text:
        return _parse_json(text, path)
    return None


def find_metadata(raw: Path) -> EmpadMetadata:
    """Return the facts about a raw file, from a file beside it that names the raw file, otherwise from its name.

    Raises:
        DataError: a file of the same name as the raw file is damaged.
    """
    for candidate in _list_sidecars(raw):
        found = parse_metadata(candidate)
        if found is not None and found.raw_name == raw.name:
            return found if found.shape else EmpadMetadata(**(vars(found) | {"shape": parse_shape(raw.name)}))
    return EmpadMetadata(shape=parse_shape(raw.name))


def _list_sidecars(raw: Path) -> Iterator[Path]:
    count = 0
    for path in sorted(raw.parent.iterdir(), key=lambda each: (each.stem != raw.stem, each.name)):
        if path.suffix.lower() in (".xml", ".json") and path.is_file():
            count += 1
            if count > MAX_SIDECARS:
                return
            yield path


def parse_shape(name: str) -> tuple[int, int] | None:
    """Return rows and columns of a scan from a file name such as ``scan_x256_y128.raw``; None if it has none."""
    found = NAME_PATTERN.search(name)
    return None if found is None else (int(found[2]), int(found[1]))


def _parse_xml(text: str, path: Path) -> EmpadMetadata:
    if "<!DOCTYPE" in text or "<!ENTITY" in text:
        raise DataError(f"{path}: the XML declares a document type or entities; expected plain elements")
    try:
        root = ElementTree.fromstring(text)
    except ElementTree.ParseError as error:
        raise DataError(f"{path}: the XML is damaged ({error}); copy it again") from error

    def get(place: str) -> float | None:
        return parse_number(root.findtext(place))

    raw_file = root.find("raw_file")
    columns, rows = (get(f"scan_parameters[@mode='acquire']/scan_resolution_{axis}") for axis in "xy")
    shape = _check_shape((rows, columns), path)
    measured = "iom_measurements"
    fields = [get(f"{measured}/full_scan_field_of_view/{axis}") for axis in "yx"]
    scale = (get("scan_parameters[@mode='acquire']/scan_size") or 1.0) / (
        get(f"{measured}/full_scan_field_of_view/scale_factor") or 1.0
    )
    # The field of view spans the longer side of the scan, in both directions.
    longer = max(shape) if shape else None
    step = _check_pair([None if each is None or longer is None else each * scale / longer for each in fields])
    return EmpadMetadata(
        path=path,
        raw_name=None if raw_file is None else _get_file_name(raw_file.get("filename", "")),
        shape=shape,
        step_m=step,
        rotation=get(f"{measured}/scan_rotation") or 0.0,
        voltage_v=get(f"{measured}/high_voltage"),
        camera_length_m=get(f"{measured}/nominal_camera_length"),
    )


def _parse_json(text: str, path: Path) -> EmpadMetadata:
    try:
        values = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path}: the JSON is damaged ({error}); copy it again") from error
    if not isinstance(values, dict):
        raise DataError(f"{path}: the JSON is no object; expected names and values")
    columns, rows = _get_pair(values.get("scan_shape"))
    step_x, step_y = _get_pair(values.get("scan_step"))
    flips = values.get("det_flips")
    if flips is not None and (not isinstance(flips, list) or len(flips) != 3):
        raise DataError(f"{path}: det_flips is {flips}; expected three truth values: rows, columns, transpose")
    return EmpadMetadata(
        path=path,
        raw_name=_get_file_name(str(values.get("raw_filename", ""))),
        shape=_check_shape((rows, columns), path),
        step_m=_check_pair([step_y, step_x]),
        rotation=math.radians(
            (parse_number(values.get("scan_rotation")) or 0.0) - (parse_number(values.get("det_rotation")) or 0.0)
        ),
        voltage_v=parse_number(values.get("voltage")),
        camera_length_m=parse_number(values.get("camera_length")),
        pixel_mrad=parse_number(values.get("diff_step")),
        counts_per_electron=parse_number(values.get("adu")),
        flips=DEFAULT_FLIPS if flips is None else (bool(flips[0]), bool(flips[1]), bool(flips[2])),
    )


def _get_pair(value: Any) -> tuple[float | None, float | None]:
    if not isinstance(value, list) or len(value) != 2:
        return None, None
    return parse_number(value[0]), parse_number(value[1])


def _check_shape(sides: tuple[float | None, float | None], path: Path) -> tuple[int, int] | None:
    rows, columns = sides
    if rows is None or columns is None:
        return None
    if not (0 < rows <= MAX_SCAN_SIDE and 0 < columns <= MAX_SCAN_SIDE) or rows % 1 or columns % 1:
        raise DataError(f"{path}: the scan has {rows} rows and {columns} columns; expected positive whole numbers")
    return int(rows), int(columns)


def _check_pair(values: list[float | None]) -> tuple[float, float] | None:
    first, second = values
    return (first, second) if first is not None and second is not None and first > 0 and second > 0 else None


def _get_file_name(path: str) -> str | None:
    """Return the last part of a path of any operating system."""
    return re.split(r"[\\/]", path)[-1] or None
