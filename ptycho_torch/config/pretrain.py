"""Settings of the command pretrain."""

from dataclasses import MISSING, dataclass
from pathlib import Path
from typing import Literal

from ptycho_torch.config.base import (
    DEVICE_HELP,
    PRECISION_HELP,
    CommonOptions,
    Device,
    Precision,
    option,
    require_not_negative,
    require_positive,
    require_supported_size,
)
from ptycho_torch.config.train import DEFAULT_LEARNING_RATE
from ptycho_torch.core.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class PretrainConfig(CommonOptions):
    """Settings of ``python -m ptycho_torch.pretrain``."""

    output_dir: Path = option(MISSING, "folder for the model bundle, history and checkpoints")
    probe: tuple[Path, ...] = option(
        (),
        "scan files or reconstruction.npz whose probes light the simulated objects, in all their modes",
        several=True,
    )
    probe_family: tuple[str, ...] = option(
        (),
        "families that probes are drawn from: fresnel, zone_plate, zernike, defocus, vortex, speckle, or all; default: "
        "all, or with --probe none",
        several=True,
    )
    objects: tuple[str, ...] = option(
        (),
        "kinds of objects to draw from, evenly: dead_leaves, clouds, photographs, lines, bars, gratings, spokes, "
        "letters, star, cells, texture or flat; default: a mixture of the first seven",
        several=True,
    )
    probe_variation: float = option(0.0, "change of given probes in shape and focus each lesson: 0 none, 1 a little")
    size: int | None = option(
        None, "N: side of the patterns in pixels, a multiple of 8 from 32 on; default: that of --probe, else 64"
    )
    time_limit: float = option(600.0, "seconds after which no lesson begins")
    lessons: int | None = option(None, "lessons in all, each one step; default: as many as the time allows")
    batch_size: int | None = option(None, "overlapping patterns a lesson; default: 16 up to 64 pixels, else 8")
    min_photons: float = option(1e3, "lowest mean total of a pattern, drawn anew for each lesson")
    max_photons: float = option(1e7, "highest mean total of a pattern")
    min_overlap: float = option(0.3, "smallest linear overlap of neighbouring probes")
    max_overlap: float = option(0.95, "largest linear overlap of neighbouring probes")
    masked: float = option(0.25, "share of the lessons with detector pixels that do not count")
    learning_rate: float = option(
        DEFAULT_LEARNING_RATE, "step for the network's biases, and in proportion its kernels', after a short warm-up"
    )
    seed: int = option(0, "seed of every random choice")
    network: str = option("unrolled_unet", "name of the network, as of train but for unet; overlap_unet uses overlap")
    head: str = option("residual", "how the network states the object: polar (exp(a + ib)) or residual (1 + a + ib)")
    width: int = option(16, "channels of the network's finest scale")
    precision: Precision = option("auto", PRECISION_HELP)
    device: Device = option("auto", DEVICE_HELP)
    logger: Literal["mlflow", "tensorboard", "csv", "none"] = option(
        "csv", "tracker beside history.csv, which is always written"
    )
    resume: bool = option(False, "go on from checkpoints/last of the output folder")

    def __post_init__(self) -> None:
        require_positive(self, "size", "time_limit", "lessons", "batch_size", "min_photons", "max_photons")
        require_positive(self, "learning_rate", "width")
        require_not_negative(self, "seed")
        require_supported_size(self)
        if self.probe_variation and not self.probe:
            raise ConfigError("--probe_variation changes given probes, and none is given: set --probe, or leave it out")
