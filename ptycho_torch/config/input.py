"""Settings of reading a scan file, common to all commands and to :func:`ptycho_torch.load_scan`."""

import dataclasses
import math
import typing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from ptycho_torch.config.base import (
    AxisOrder,
    CommonOptions,
    Measurement,
    option,
    require_positive,
)
from ptycho_torch.config.values import require_type
from ptycho_torch.core.errors import ConfigError

PositionUnit = Literal["pixel", "meter", "millimeter", "micrometer", "nanometer", "angstrom"]

METERS_PER_UNIT: dict[str, float] = {
    "meter": 1.0,
    "millimeter": 1e-3,
    "micrometer": 1e-6,
    "nanometer": 1e-9,
    "angstrom": 1e-10,
}
"""Length of each unit of scan positions in meters; ``pixel`` is an object pixel."""

UNIT_ALIASES = {
    "px": "pixel",
    "pixels": "pixel",
    "m": "meter",
    "metre": "meter",
    "meters": "meter",
    "mm": "millimeter",
    "um": "micrometer",
    "µm": "micrometer",
    "micron": "micrometer",
    "nm": "nanometer",
    "A": "angstrom",
    "Å": "angstrom",
}


@dataclass(frozen=True, kw_only=True)
class InputSettings:
    """Settings of reading a scan file; each default takes what the file records.

    Patterns are corrected by dark and flat, moved to a centered origin, flipped, transposed, centered, cropped, then
    binned. Positions are exchanged, negated, scaled, converted to object pixels, then rotated.
    """

    format: str | None = option(
        None,
        "name of the file format, as in docs/formats.md",
        group="Scan file",
        default_help="detected from the content",
    )
    patterns_file: Path | None = option(
        None,
        "file with the patterns, if the scan file has none",
        group="Scan file",
        default_help="the partner by the naming rule of the format",
        aliases=("patterns",),
    )
    positions_file: Path | None = option(
        None,
        "file with the scan positions, if the scan file has none: a table (CSV, .dat, .txt), an array or a scan file",
        group="Scan file",
        default_help="the partner by the naming rule of the format",
        aliases=("positions",),
    )
    frames: str | None = option(
        None,
        "patterns to read: a range such as 0:500:2, indices such as 1,5,9, or a text file of indices",
        group="Scan file",
        default_help="all",
    )
    scan_index: int | None = option(
        None, "number of the scan to read from a file of several scans", group="Scan file", default_help="all"
    )
    fix: bool = option(
        False,
        "correct the faults that describe reports and that are safe to correct, and record them in the metadata",
        group="Scan file",
    )
    diffraction_key: str | None = option(
        None,
        "key of the patterns",
        group="Keys",
        default_help="diffraction, diff3d or data, otherwise the only array of three or four axes",
        aliases=("patterns_key",),
    )
    probe_key: str | None = option(
        None, "key of the probe", group="Keys", default_help="probeGuess or probe, if present"
    )
    object_key: str | None = option(
        None, "key of the object", group="Keys", default_help="objectGuess or object, if present"
    )
    positions_key: str | None = option(
        None, "key of an (n, 2) array of (y, x)", group="Keys", default_help="scan or positions, if present"
    )
    x_key: str | None = option(
        None, "key, or column of a table, of the column coordinates", group="Keys", default_help="xcoords"
    )
    y_key: str | None = option(
        None, "key, or column of a table, of the row coordinates", group="Keys", default_help="ycoords"
    )
    mask_key: str | None = option(
        None, "key of the mask, True where a pixel counts", group="Keys", default_help="mask, if present"
    )
    axis_order: AxisOrder | None = option(
        None,
        "axis order of the diffraction array: nhw is (n, H, W), hwn is (H, W, n)",
        group="Patterns",
        default_help="detected from the shape",
    )
    measurement: Measurement | None = option(
        None,
        "quantity in the diffraction array; integers require it",
        group="Patterns",
        default_help="from the file's metadata, otherwise amplitude",
    )
    photons_per_unit: float | None = option(
        None,
        "photons per squared unit of stored amplitude; for counts, photons per count",
        group="Patterns",
        default_help="from the file's metadata, otherwise from the integer lattice of the data, otherwise a mean of "
        "1e6 photons per pattern, with a warning",
    )
    origin: Literal["centered", "corner"] = option(
        "centered",
        "location of the zero frequency in the patterns",
        group="Patterns",
        value_aliases={"centred": "centered"},
    )
    flip_y: bool = option(False, "reverse the rows of each pattern", group="Patterns")
    flip_x: bool = option(False, "reverse the columns of each pattern", group="Patterns")
    transpose: bool = option(False, "exchange rows and columns of each pattern, after the flips", group="Patterns")
    center: str | None = option(
        None,
        "pixel of the zero frequency before flips, as ROW,COLUMN; auto estimates it from the patterns; middle ignores "
        "the center that the file records",
        group="Patterns",
        default_help="that of the file, otherwise the middle, [H//2, W//2]",
    )
    crop: int | None = option(
        None,
        "side in pixels of the square about the center that is read; pixels outside the detector are masked",
        group="Patterns",
        default_help="the side of the probe, otherwise the longer side of the detector",
    )
    bin: int = option(1, "b: sum the counts of b x b detector pixels", group="Patterns")
    dark: Path | None = option(
        None, "file with one or more dark frames in counts, whose mean is subtracted", group="Patterns"
    )
    flat: Path | None = option(
        None, "file with the relative efficiency of the pixels, by which counts are divided", group="Patterns"
    )
    mask: Path | None = option(
        None, "file with a mask, True where a pixel counts, combined with the mask of the scan file", group="Patterns"
    )
    invert_mask: bool = option(
        False,
        "the mask (the file of mask, otherwise that of the scan file) is True where a pixel does not count",
        group="Patterns",
    )
    position_unit: PositionUnit | None = option(
        None,
        "unit of the coordinates in the file",
        group="Positions",
        default_help="that of the format; of a table, that in the names of its columns, otherwise meter if all numbers "
        "are below 0.01; of arrays by key, pixel",
        value_aliases=UNIT_ALIASES,
    )
    swap_xy: bool = option(False, "exchange the two coordinates, before negation and scale", group="Positions")
    negate_y: bool = option(False, "negate the row coordinate", group="Positions")
    negate_x: bool = option(False, "negate the column coordinate", group="Positions")
    position_scale: float = option(1.0, "factor on both coordinates, after the unit", group="Positions")
    rotation: float = option(
        0.0, "rotation of the scan positions from the row axis to the column axis, in degrees", group="Positions"
    )
    energy_ev: float | None = option(
        None, "photon energy in electronvolts", group="Geometry", default_help="that of the file", aliases=("energy",)
    )
    voltage_kv: float | None = option(
        None,
        "acceleration voltage of electrons in kilovolts",
        group="Geometry",
        default_help="that of the file",
        aliases=("voltage",),
    )
    wavelength: float | None = option(None, "wavelength in meters", group="Geometry", default_help="that of the file")
    distance: float | None = option(
        None, "distance from object to detector in meters", group="Geometry", default_help="that of the file"
    )
    detector_pixel: float | None = option(
        None, "side of a detector pixel in meters", group="Geometry", default_help="that of the file"
    )
    pixel_size: float | None = option(
        None,
        "side of an object pixel of the patterns as read, in meters",
        group="Geometry",
        default_help="that of the file, otherwise wavelength x distance / (N x detector pixel)",
    )

    propagation: Literal["far_field", "near_field"] | None = option(
        None,
        "propagation from object to detector; near_field is refused by this version",
        group="Geometry",
        default_help="that of the file, otherwise judged by the motion of the patterns with the positions",
    )

    def __post_init__(self) -> None:
        require_positive(self, "photons_per_unit", "pixel_size", "position_scale", "energy_ev", "voltage_kv")
        require_positive(self, "wavelength", "distance", "detector_pixel", "crop", "bin")
        if not math.isfinite(self.rotation):
            raise ConfigError(f"`rotation` is {self.rotation}; expected a finite angle in degrees")
        given = [name for name in ("energy_ev", "voltage_kv", "wavelength") if getattr(self, name) is not None]
        if len(given) > 1:
            raise ConfigError(f"{' and '.join(f'`{name}`' for name in given)} are given; expected one of them")


@dataclass(frozen=True, kw_only=True)
class ScanReadOptions(InputSettings, CommonOptions):
    """Settings of a command that reads a scan file."""


INPUT_SETTING_NAMES = tuple(field.name for field in dataclasses.fields(InputSettings))
"""Names of the settings of reading a scan file."""


def make_input_settings(settings: dict[str, Any]) -> InputSettings:
    """Return the settings of reading a scan file from keyword arguments.

    Raises:
        ConfigError: a name is unknown, or a value is of another type, not one of the choices, or out of range.
    """
    for name in settings:
        if name not in INPUT_SETTING_NAMES:
            raise ConfigError(
                f"`{name}` is not a setting of reading a scan file; expected one of {', '.join(INPUT_SETTING_NAMES)}"
            )
    settings = dict(settings)
    hints = typing.get_type_hints(InputSettings)
    for name, value in settings.items():
        require_type(name, value, hints[name])
    for name, choices in CHOICES.items():
        value = settings.get(name)
        if name not in settings or (value is None and name != "origin"):
            continue
        if name == "position_unit" and isinstance(value, str):
            settings[name] = value = UNIT_ALIASES.get(value, value)
        if value not in choices:
            raise ConfigError(f"`{name}` is {value}; expected {' or '.join(choices)}")
    for name in ("patterns_file", "positions_file", "dark", "flat", "mask"):
        if settings.get(name) is not None:
            if str(settings[name]) == "" or "\0" in str(settings[name]):
                raise ConfigError(f"`{name}` is {str(settings[name])!r}; expected the path of a file")
            settings[name] = Path(settings[name])
    return InputSettings(**settings)


CHOICES: dict[str, tuple[str, ...]] = {
    "axis_order": ("nhw", "hwn"),
    "measurement": ("amplitude", "counts"),
    "origin": ("centered", "corner"),
    "position_unit": ("pixel", *METERS_PER_UNIT),
    "propagation": ("far_field", "near_field"),
}
"""Values of the settings that are words."""


def collect_input_settings(config: Any) -> dict[str, Any]:
    """Return the settings of reading that differ from their defaults, from the settings of a command.

    A setting that a command defines anew, with another meaning, is left out.
    """
    own = {field.name: field for field in dataclasses.fields(config)}
    return {
        field.name: getattr(config, field.name)
        for field in dataclasses.fields(InputSettings)
        if own[field.name].metadata["help"] == field.metadata["help"] and getattr(config, field.name) != field.default
    }
