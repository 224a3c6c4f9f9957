"""Settings of the commands ``simulate``, ``describe``, ``convert`` and ``subset``."""

from dataclasses import MISSING, dataclass
from pathlib import Path
from typing import Literal

from ptycho_torch.config.base import (
    CommonOptions,
    option,
    require_not_negative,
    require_positive,
)
from ptycho_torch.config.input import ScanReadOptions
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
class DescribeConfig(ScanReadOptions):
    """Settings of the command ``describe``."""

    file: Path = option(MISSING, "scan file of any supported format to describe", group="Files", positional=True)
    json: bool = option(False, "print JSON; the same file gives the same bytes", group="Output")
    stats: bool = option(True, "read the arrays; with --no_stats, read only their headers", group="Output")
    orientation: bool = option(
        False,
        "find flips and transpose of the detector, rotation and scale of the positions by short reconstructions; "
        "takes about 15 to 50 s",
        group="Output",
    )


@dataclass(frozen=True, kw_only=True)
class ConvertConfig(ScanReadOptions):
    """Settings of the command ``convert``."""

    source: Path = option(
        MISSING,
        "scan file of any supported format, also .npz.bz2",
        group="Files",
        positional=True,
    )
    destination: Path = option(
        MISSING, "scan file to write; the suffix selects the format", group="Files", positional=True
    )
    output_format: str | None = option(
        None, "name of the format to write, as in docs/formats.md", group="Files", default_help="by the suffix"
    )
    orientation: Literal["given", "auto"] = option(
        "given",
        "given: by the settings; auto: also find flips and transpose of the detector, rotation and scale of the "
        "positions by short reconstructions (about 15 to 50 s), and apply them",
        group="Patterns",
    )


@dataclass(frozen=True, kw_only=True)
class SubsetConfig(ScanReadOptions):
    """Settings of the command ``subset``."""

    source: Path = option(MISSING, "scan file of any supported format to cut from", group="Files")
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
    crop: int = option(  # a factor here, not a side in pixels
        1, "c: keep the central N/c detector pixels, which enlarges the object pixel c times", group="Patterns"
    )
    bin: int = option(
        1, "b: sum the counts of b x b detector pixels, which shrinks the field of the probe b times", group="Patterns"
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        require_positive(self, "subset_size", "crop", "bin")
        require_not_negative(self, "seed")
