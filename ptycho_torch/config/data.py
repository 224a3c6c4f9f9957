"""Settings of the commands simulate, describe, convert and subset."""

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


@dataclass(frozen=True, kw_only=True)
class SimulateConfig(CommonOptions):
    """Settings of ``python -m ptycho_torch.simulate``. None means: the preset's."""

    output: Path = option(MISSING, "scan file (NPZ) to write", positional=True)
    preset: Literal["run1084", "star", "tiny"] = option("run1084", "a set of defaults for all that follows")
    photons: float | None = option(None, "mean photons a pattern; 0 writes the noiseless expectation")
    seed: int = option(0, "seed of the object, the positions and the counts")
    layout: Literal["canonical", "legacy"] = option("canonical", "key names, axis order and dtypes of the file")
    object: str | None = option(
        None,
        "kind of object: letters, star, cells, texture or flat, which are alike for every seed; dead_leaves, bars, "
        "gratings, lines, clouds, spokes or photographs, whose contrast is drawn too, down to no amplitude and over ±π",
    )
    probe: str | None = option(
        None,
        "kind of probe: structured, disk, gaussian, fresnel, zone_plate, zernike, defocus, vortex or speckle",
    )
    trajectory: Literal["raster", "spiral", "grid", "scattered"] | None = option(
        None, "order and pattern of the positions"
    )
    size: int | None = option(None, "N: side of a pattern in pixels")
    positions: int | None = option(None, "number of scan positions")
    overlap: float | None = option(None, "linear overlap of neighbouring probes, 0 to below 1")
    jitter: float | None = option(None, "random displacement of each position, in steps")
    modes: int | None = option(None, "incoherent probe modes")

    def __post_init__(self) -> None:
        require_positive(self, "size", "positions", "modes")
        require_not_negative(self, "photons", "jitter", "seed")
        if self.overlap is not None and not 0 <= self.overlap < 1:
            raise ConfigError(f"--overlap is {self.overlap}: it must be at least 0 and below 1")


@dataclass(frozen=True, kw_only=True)
class DescribeConfig(CommonOptions):
    """Settings of ``python -m ptycho_torch.describe``."""

    file: Path = option(MISSING, "scan file (NPZ) to describe", positional=True)
    json: bool = option(False, "machine-readable output, the same bytes for the same file")
    stats: bool = option(True, "read the arrays; --no_stats reads their headers only")
    axis_order: AxisOrder | None = option(None, "axis order of the diffraction, where the file leaves it open")
    measurement: Measurement | None = option(None, "what the diffraction array holds")


@dataclass(frozen=True, kw_only=True)
class ConvertConfig(CommonOptions):
    """Settings of ``python -m ptycho_torch.convert``."""

    source: Path = option(MISSING, "foreign NPZ file, also compressed as .npz.bz2", positional=True)
    destination: Path = option(MISSING, "canonical scan file to write", positional=True)
    diffraction_key: str | None = option(None, "key of the patterns; default: diffraction, diff3d or data")
    probe_key: str | None = option(None, "key of the probe; default: probeGuess or probe")
    object_key: str | None = option(None, "key of the object; default: objectGuess or object, if there")
    positions_key: str | None = option(None, "key of an (n, 2) array of (y, x); default: scan or positions, if there")
    x_key: str | None = option(None, "key of the column coordinates; default: xcoords")
    y_key: str | None = option(None, "key of the row coordinates; default: ycoords")
    mask_key: str | None = option(None, "key of the mask, True where a pixel counts; default: mask, if there")
    axis_order: AxisOrder | None = option(None, "axis order of the patterns; default: found from the file")
    measurement: Measurement | None = option(None, "what the patterns hold; needed unless the file's metadata say it")
    photons_per_unit: float | None = option(
        None, "photons for one count, or for one squared unit of amplitude; default: 1 for counts, else left open"
    )
    origin: Literal["centred", "corner"] = option("centred", "where zero frequency lies in the patterns")
    flip_y: bool = option(False, "turn the rows of each pattern round")
    flip_x: bool = option(False, "turn the columns of each pattern round")
    transpose: bool = option(False, "exchange rows and columns of each pattern (after the flips)")
    swap_xy: bool = option(False, "exchange the two coordinates (before negation and scale)")
    negate_y: bool = option(False, "turn the sign of the row coordinate")
    negate_x: bool = option(False, "turn the sign of the column coordinate")
    position_unit: Literal["pixel", "metre"] = option("pixel", "unit of the coordinates in the file")
    pixel_size: float | None = option(None, "object pixel in metres; needed where positions are in metres")
    position_scale: float = option(1.0, "factor on both coordinates, after the unit")

    def __post_init__(self) -> None:
        require_positive(self, "photons_per_unit", "pixel_size", "position_scale")
        if self.position_unit == "metre" and self.pixel_size is None:
            raise ConfigError("--position_unit metre needs the object's pixel in metres: set --pixel_size")


@dataclass(frozen=True, kw_only=True)
class SubsetConfig(ScanReadOptions):
    """Settings of ``python -m ptycho_torch.subset``."""

    source: Path = option(MISSING, "scan file (NPZ) to cut from, canonical or legacy")
    output: Path = option(MISSING, "canonical scan file to write")
    subset_size: int = option(64, "number of patterns to keep")
    strategy: Literal["even", "compact", "seeded"] = option(
        "even",
        "which patterns: even spreads neighbourhoods of four over the field, compact is a contiguous window, seeded "
        "is drawn by --seed",
    )
    seed: int = option(0, "seed of the seeded strategy")
    crop: int = option(1, "c: keep the central N/c detector pixels; the object pixel grows by c")
    bin: int = option(1, "b: sum the counts of b x b detector pixels; the field of the probe shrinks by b")
    metadata_out: Path | None = option(None, "JSON record of the cut; default: beside the output, same name, .json")

    def __post_init__(self) -> None:
        super().__post_init__()
        require_positive(self, "subset_size", "crop", "bin")
        require_not_negative(self, "seed")
