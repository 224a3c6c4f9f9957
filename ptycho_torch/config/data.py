"""Settings of the commands ``simulate``, ``describe``, ``convert`` and ``subset``."""

from dataclasses import MISSING, dataclass
from pathlib import Path
from typing import Literal

from ptycho_torch.config.base import (
    AxisOrder,
    CommonOptions,
    Measurement,
    ScanReadOptions,
    option,
    require_not_negative,
    require_positive,
)
from ptycho_torch.core.errors import ConfigError

PRESET_HELP = "that of the preset"


@dataclass(frozen=True, kw_only=True)
class SimulateConfig(CommonOptions):
    """Settings of the command ``simulate``; None selects the value of the preset."""

    output: Path = option(MISSING, "scan file (NPZ) to write", group="Files", positional=True)
    layout: Literal["canonical", "legacy"] = option(
        "canonical", "key names, axis order and dtypes of the file", group="Files"
    )
    preset: Literal["run1084", "star", "tiny"] = option(
        "run1084", "set of defaults for all settings below", group="Simulation"
    )
    object: str | None = option(
        None,
        "kind of object. The same for every seed except details: letters, star, cells, texture or flat. Different for "
        "every seed, with amplitudes from 0 and phases over ±π: dead_leaves, bars, gratings, lines, clouds, spokes or "
        "photographs",
        group="Simulation",
        default_help=PRESET_HELP,
    )
    size: int | None = option(None, "N: side of a pattern in pixels", group="Simulation", default_help=PRESET_HELP)
    photons: float | None = option(
        None,
        "mean number of photons per pattern; 0 writes the noiseless expectation",
        group="Simulation",
        default_help=PRESET_HELP,
    )
    seed: int = option(0, "seed of the object, the scan positions and the photon counts", group="Simulation")
    probe: str | None = option(
        None,
        "kind of probe: structured, disk, gaussian, fresnel, zone_plate, zernike, defocus, vortex or speckle",
        group="Probe",
        default_help=PRESET_HELP,
    )
    modes: int | None = option(None, "incoherent probe modes", group="Probe", default_help=PRESET_HELP)
    trajectory: Literal["raster", "spiral", "grid", "scattered"] | None = option(
        None, "arrangement and order of the scan positions", group="Positions", default_help=PRESET_HELP
    )
    positions: int | None = option(None, "number of scan positions", group="Positions", default_help=PRESET_HELP)
    overlap: float | None = option(
        None,
        "linear overlap of neighboring probes, 0 to below 1",
        group="Positions",
        default_help=PRESET_HELP,
    )
    jitter: float | None = option(
        None,
        "largest random displacement of a position, as a fraction of the scan step",
        group="Positions",
        default_help=PRESET_HELP,
    )

    def __post_init__(self) -> None:
        require_positive(self, "size", "positions", "modes")
        require_not_negative(self, "photons", "jitter", "seed")
        if self.overlap is not None and not 0 <= self.overlap < 1:
            raise ConfigError(f"`overlap` is {self.overlap}; expected a number from 0 to below 1")


@dataclass(frozen=True, kw_only=True)
class DescribeConfig(CommonOptions):
    """Settings of the command ``describe``."""

    file: Path = option(MISSING, "scan file (NPZ) to describe", group="Files", positional=True)
    axis_order: AxisOrder | None = option(
        None,
        "axis order of the diffraction array: nhw is (n, H, W), hwn is (H, W, n)",
        group="Scan file",
        default_help="detected from the shape",
    )
    measurement: Measurement | None = option(
        None, "quantity in the diffraction array", group="Scan file", default_help="from the file's metadata"
    )
    json: bool = option(False, "print JSON; the same file gives the same bytes", group="Output")
    stats: bool = option(True, "read the arrays; with --no_stats, read only their headers", group="Output")


@dataclass(frozen=True, kw_only=True)
class ConvertConfig(CommonOptions):
    """Settings of the command ``convert``."""

    source: Path = option(
        MISSING, "foreign NPZ file, optionally compressed as .npz.bz2", group="Files", positional=True
    )
    destination: Path = option(MISSING, "canonical scan file to write", group="Files", positional=True)
    diffraction_key: str | None = option(
        None, "key of the patterns", group="Keys", default_help="diffraction, diff3d or data"
    )
    probe_key: str | None = option(None, "key of the probe", group="Keys", default_help="probeGuess or probe")
    object_key: str | None = option(
        None, "key of the object", group="Keys", default_help="objectGuess or object, if present"
    )
    positions_key: str | None = option(
        None, "key of an (n, 2) array of (y, x)", group="Keys", default_help="scan or positions, if present"
    )
    x_key: str | None = option(None, "key of the column coordinates", group="Keys", default_help="xcoords")
    y_key: str | None = option(None, "key of the row coordinates", group="Keys", default_help="ycoords")
    mask_key: str | None = option(
        None, "key of the mask, True where a pixel counts", group="Keys", default_help="mask, if present"
    )
    axis_order: AxisOrder | None = option(
        None,
        "axis order of the patterns: nhw is (n, H, W), hwn is (H, W, n)",
        group="Patterns",
        default_help="detected from the shape",
    )
    measurement: Measurement | None = option(
        None, "quantity in the patterns; required unless the metadata name it", group="Patterns"
    )
    photons_per_unit: float | None = option(
        None,
        "photons per count, or per squared unit of amplitude",
        group="Patterns",
        default_help="1 for counts, otherwise not written",
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
    swap_xy: bool = option(False, "exchange the two coordinates, before negation and scale", group="Positions")
    negate_y: bool = option(False, "negate the row coordinate", group="Positions")
    negate_x: bool = option(False, "negate the column coordinate", group="Positions")
    position_unit: Literal["pixel", "meter"] = option(
        "pixel", "unit of the coordinates in the file", group="Positions", value_aliases={"metre": "meter"}
    )
    pixel_size: float | None = option(
        None, "object pixel in meters; required for positions in meters", group="Positions"
    )
    position_scale: float = option(1.0, "factor on both coordinates, after the unit", group="Positions")

    def __post_init__(self) -> None:
        require_positive(self, "photons_per_unit", "pixel_size", "position_scale")
        if self.position_unit == "meter" and self.pixel_size is None:
            raise ConfigError(
                "`position_unit` is meter and `pixel_size` is not set; expected the object pixel in meters"
            )


@dataclass(frozen=True, kw_only=True)
class SubsetConfig(ScanReadOptions):
    """Settings of the command ``subset``."""

    source: Path = option(MISSING, "scan file (NPZ) to cut from, canonical or legacy", group="Files")
    output: Path = option(MISSING, "canonical scan file to write", group="Files")
    metadata_out: Path | None = option(
        None,
        "JSON record of the cut",
        group="Files",
        default_help="next to the output, with the suffix .json",
    )
    subset_size: int = option(64, "number of patterns to keep", group="Patterns")
    strategy: Literal["even", "compact", "seeded"] = option(
        "even",
        "selection of patterns: even spreads neighborhoods of four over the field, compact is a contiguous window, "
        "seeded draws them at random",
        group="Patterns",
    )
    seed: int = option(0, "seed of the seeded strategy", group="Patterns")
    crop: int = option(
        1, "c: keep the central N/c detector pixels, which enlarges the object pixel c times", group="Patterns"
    )
    bin: int = option(
        1, "b: sum the counts of b x b detector pixels, which shrinks the field of the probe b times", group="Patterns"
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        require_positive(self, "subset_size", "crop", "bin")
        require_not_negative(self, "seed")
