"""Scan positions from a table of numbers: CSV, ``.dat`` or ``.txt``."""

import logging
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ptycho_torch.config.input import METERS_PER_UNIT, UNIT_ALIASES, InputSettings, PositionUnit
from ptycho_torch.core.errors import ConfigError, DataError
from ptycho_torch.io.container import HEAD_BYTES, InputFile
from ptycho_torch.io.formats.base import Format
from ptycho_torch.io.parts import InputReport, ScanParts

logger = logging.getLogger(__name__)

MAX_TABLE_BYTES = 1 << 28
"""Largest table; positions of a scan of 10 million patterns."""

VELOCIPROBE_COLUMNS = 8
"""Smallest number of columns of the tables of the Velociprobe."""

VELOCIPROBE_X, VELOCIPROBE_Y, VELOCIPROBE_TRIGGER = 1, 5, 7
"""Columns of x in nanometers, of the negated y in nanometers, and of the number of the trigger."""

MAX_METERS = 0.01
"""Largest extent of a scan in meters; numbers of other units are larger."""

DECIMAL_COMMA_NUMBER = r"[-+]?\d+(,\d+)?([eE][-+]?\d+)?"
DECIMAL_COMMAS = "the numbers have decimal commas"

COLUMN_WORDS = {
    "y": {"y", "row", "rows", "ypos", "posy", "ycoord", "ycoords", "vertical", "slow", "positiony"},
    "x": {"x", "column", "columns", "col", "xpos", "posx", "xcoord", "xcoords", "horizontal", "fast", "positionx"},
    "number": {"index", "frame", "trigger", "number"},
}
"""Words in the names of columns."""


class Table(NamedTuple):
    """The numbers of a table."""

    values: NDArray[np.float64]
    """(rows, columns)."""

    names: list[str] | None
    """Names of the columns; None: the table has none."""

    separator: str | None
    """Character between the columns; None: white space."""


class TableFormat(Format):
    """Positions in a table."""

    name = "table"
    title = "scan positions in a table (CSV, .dat, .txt), for `positions_file`"

    def matches(self, file: InputFile) -> bool:
        if file.kind != "text":
            return False
        with open(file.path, "rb") as stream:
            lines = stream.read(HEAD_BYTES * 4).decode("utf-8", "replace").splitlines()
        rows = (_parse_row(line, _find_separator(line)) for line in lines if not _is_comment(line))
        return any(row is not None and len(row) > 1 for row in rows)

    def read(self, file: InputFile, settings: InputSettings) -> ScanParts:
        table = read_table(file.path)
        report = InputReport(self.name)
        report.missing.append("patterns: give the scan file as the path, and this table as `positions_file`")
        if _is_velociprobe(table, settings):
            return _read_velociprobe(table, report)
        y, x = _choose_columns(table, settings, file.path, report)
        values = table.values[:, [y, x]]
        number = _find_named(table, "number")
        return ScanParts(
            positions=values,
            position_unit=settings.position_unit or _find_unit(table, (y, x), values, file.path, report),
            position_numbers=None if number is None else table.values[:, number].astype(np.int64),
            report=report,
        )


def read_table(path: Path) -> Table:
    """Read a table of numbers: lines before the numbers and lines after ``#`` are comments or names of the columns.

    Raises:
        DataError: the file is no text, has no rows of numbers, or rows differ in length.
    """
    if path.stat().st_size > MAX_TABLE_BYTES:
        raise DataError(f"{path}: the table takes {path.stat().st_size} bytes; expected at most {MAX_TABLE_BYTES}")
    try:
        lines = path.read_text("utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: the table cannot be read as text ({error}); expected UTF-8") from error
    rows: list[list[float]] = []
    header, separator = "", None
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        if not rows:
            separator = _find_separator(line)
        row = None if _is_comment(line) else _parse_row(line, separator)
        if row is not None and (not rows or len(row) == len(rows[0])):
            rows.append(row)
        elif not rows:
            header = line.strip().lstrip("#%/ ")
        elif not _is_comment(line):
            raise DataError(f"{path}: line {number} is {line.strip()[:60]!r}; expected {len(rows[0])} numbers")
    if not rows or len(rows[0]) < 2:
        found = DECIMAL_COMMAS if has_decimal_commas(lines) else "no row of two or more numbers"
        raise DataError(f"{path}: {found}; expected a table of scan positions with decimal points")
    values = np.asarray(rows)
    if not np.isfinite(values).all():
        raise DataError(f"{path}: row {int(np.argwhere(~np.isfinite(values))[0, 0]) + 1} is not finite")
    names = [name.strip().strip("\"'") for name in _split(header, _find_separator(header))]
    return Table(values, names if len(names) == values.shape[1] else None, separator)


def has_decimal_commas(lines: Sequence[str]) -> bool:
    """Return True if a line holds two or more numbers with decimal commas, between semicolons or white space."""
    for line in lines:
        cells = [cell.strip() for cell in re.split(r"[;\s]+", line.strip()) if cell.strip()]
        if len(cells) > 1 and all(re.fullmatch(DECIMAL_COMMA_NUMBER, cell) for cell in cells):
            return any("," in cell for cell in cells)
    return False


def _is_comment(line: str) -> bool:
    return line.lstrip().startswith(("#", "%", "//"))


def _find_separator(line: str) -> str | None:
    return next((mark for mark in (",", ";", "\t") if mark in line), None)


def _split(line: str, separator: str | None) -> list[str]:
    return line.strip().rstrip(separator or " ").split(separator)


def _parse_row(line: str, separator: str | None) -> list[float] | None:
    """Return the numbers of a line; None if it is no row of numbers."""
    try:
        return [float(each) for each in _split(line, separator)]
    except ValueError:
        return None


def _choose_columns(table: Table, settings: InputSettings, path: Path, report: InputReport) -> tuple[int, int]:
    """Return the columns of y and x: from settings, from names, otherwise by the usual order."""
    y_key, x_key = settings.y_key, settings.x_key
    if (y_key is None) != (x_key is None):
        raise ConfigError(f"{path}: one of `y_key` and `x_key` is given; expected both, names or numbers from 0")
    if y_key is not None and x_key is not None:
        y, x = _find_column(table, y_key, path, "y_key"), _find_column(table, x_key, path, "x_key")
    else:
        named_y, named_x = _find_named(table, "y"), _find_named(table, "x")
        if named_y is None or named_x is None:
            y, x = _guess_columns(table, path, report)
        else:
            y, x = named_y, named_x
    label = ", ".join(table.names[each] if table.names else f"column {each}" for each in (y, x))
    report.add("positions", label, settings.position_unit or "", "(row, column)")
    return y, x


def _guess_columns(table: Table, path: Path, report: InputReport) -> tuple[int, int]:
    first, count = 0, table.values.shape[1]
    if count > 2:
        steps = np.diff(table.values[:, 0])
        first = int(len(steps) > 0 and bool((steps == 1).all()) and table.values[0, 0] in (0, 1))
    y, x = (first, first + 1) if table.separator == "," else (first + 1, first)
    text = f"column {y} of the table is y and column {x} is x, counted from 0; set `y_key` and `x_key` otherwise"
    report.assumptions.append(text)
    if count > 2:
        logger.warning("%s: no names of the %d columns: %s", path, count, text)
    return y, x


def _find_column(table: Table, key: str, path: Path, setting: str) -> int:
    """Return the column of a name, or of a number from 0."""
    if table.names is not None and key in table.names:
        return table.names.index(key)
    if key.isdecimal() and int(key) < table.values.shape[1]:
        return int(key)
    names = ", ".join(table.names or ())
    raise ConfigError(
        f"{path}: `{setting}` is {key}; expected a column from 0 to {table.values.shape[1] - 1}"
        f"{f' or one of {names}' if names else ''}"
    )


def _split_words(name: str) -> list[str]:
    return [word for word in re.split(r"[^a-z0-9µμå]+", name.lower()) if word]


def _find_named(table: Table, label: str) -> int | None:
    """Return the only column whose name has a word of ``label``."""
    words = COLUMN_WORDS[label]
    found = [index for index, name in enumerate(table.names or ()) if words.intersection(_split_words(name))]
    return found[0] if len(found) == 1 else None


def _find_unit(
    table: Table, columns: Sequence[int], values: NDArray[np.float64], path: Path, report: InputReport
) -> PositionUnit:
    """Return the unit of the positions: in the names of the columns, otherwise meters if the numbers are small."""
    known: dict[str, Any] = {**UNIT_ALIASES, **{name: name for name in METERS_PER_UNIT}, "pixel": "pixel"}
    units = set()
    for column in columns if table.names else ():
        words = _split_words((table.names or [])[column])
        units |= {known[word] for word in words[1:] if word in known}
    if len(units) == 1:
        unit: PositionUnit = units.pop()
        return unit
    if 0 < np.abs(values).max() < MAX_METERS:
        report.assumptions.append("the positions are in meters by their size; set `position_unit` otherwise")
        return "meter"
    raise ConfigError(f"{path}: the unit of the positions is unknown; set `position_unit`")


def _is_velociprobe(table: Table, settings: InputSettings) -> bool:
    plain = table.names is None and settings.y_key is None and settings.x_key is None
    return plain and table.values.shape[1] >= VELOCIPROBE_COLUMNS


def _read_velociprobe(table: Table, report: InputReport) -> ScanParts:
    """Return the mean position of each trigger, about the mean of the scan."""
    numbers, inverse = np.unique(table.values[:, VELOCIPROBE_TRIGGER].astype(np.int64), return_inverse=True)
    counts = np.bincount(inverse)
    columns = (-table.values[:, VELOCIPROBE_Y], table.values[:, VELOCIPROBE_X])
    positions = np.stack([np.bincount(inverse, column) / counts for column in columns], 1)
    first = 1 if len(numbers) and numbers[0] >= 1 else 0
    report.add("positions", f"columns {VELOCIPROBE_Y}, {VELOCIPROBE_X}", "nanometer", "-y and x, mean per trigger")
    report.assumptions.append(
        f"{table.values.shape[1]} columns without names: those of the Velociprobe, with triggers from {first}; the "
        "angle chi is 0"
    )
    return ScanParts(
        positions=positions - positions.mean(0),
        position_unit="nanometer",
        position_numbers=numbers - first,
        report=report,
    )
