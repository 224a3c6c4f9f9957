"""Settings of the command ``pretrain``."""

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
    require_share,
    require_supported_size,
)
from ptycho_torch.config.train import DEFAULT_LEARNING_RATE
from ptycho_torch.core.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class PretrainConfig(CommonOptions):
    """Settings of the command ``pretrain``."""

    output_dir: Path = option(MISSING, "folder for the model, its history and checkpoints", group="Files")
    size: int | None = option(
        None,
        "N: side of the patterns in pixels, a multiple of 8, at least 32",
        group="Simulation",
        default_help="that of the given probes, otherwise 64",
    )
    objects: tuple[str, ...] = option(
        (),
        "kinds of objects, drawn with equal probability: dead_leaves, clouds, photographs, lines, bars, gratings, "
        "spokes, letters, star, cells, texture or flat",
        group="Simulation",
        default_help="a mixture of the first seven",
        several=True,
    )
    min_photons: float = option(
        1e3, "smallest mean number of photons per pattern; each batch draws its own", group="Simulation"
    )
    max_photons: float = option(1e7, "largest mean number of photons per pattern", group="Simulation")
    min_overlap: float = option(0.3, "smallest linear overlap of neighboring probes, 0 to below 1", group="Simulation")
    max_overlap: float = option(0.95, "largest linear overlap of neighboring probes, 0 to below 1", group="Simulation")
    masked_fraction: float = option(
        0.25, "fraction of batches with masked detector pixels", group="Simulation", aliases=("masked",)
    )
    network: str = option(
        "unrolled_unet",
        "network, as for train except unet; overlap_unet exchanges information between overlapping patterns",
        group="Network",
    )
    head: str = option(
        "residual",
        "conversion of the network's output a, b to a complex patch: polar (exp(a + ib)) or residual (1 + a + ib)",
        group="Network",
    )
    width: int = option(16, "channels of the network's finest scale", group="Network")
    time_limit: float = option(600.0, "time in seconds after which no step begins", group="Training")
    steps: int | None = option(
        None,
        "training steps in total, each with one simulated batch",
        group="Training",
        default_help="as many as the time limit allows",
        aliases=("lessons",),
    )
    batch_size: int | None = option(
        None,
        "overlapping patterns per batch",
        group="Training",
        default_help="16 for patterns of up to 64 pixels, otherwise 8",
    )
    learning_rate: float = option(
        DEFAULT_LEARNING_RATE,
        "largest step of the network's biases after a short warm-up; the steps of its kernels are proportional to it",
        group="Training",
    )
    resume: bool = option(False, "continue from the checkpoint in the output folder", group="Training")
    seed: int = option(0, "seed of all random numbers", group="Training")
    probe: tuple[Path, ...] = option(
        (),
        "scan files or reconstruction.npz with probes that illuminate the simulated objects, with all their modes",
        group="Probe",
        several=True,
    )
    probe_family: tuple[str, ...] = option(
        (),
        "families from which probes are drawn: fresnel, zone_plate, zernike, defocus, vortex, speckle or all",
        group="Probe",
        default_help="none if probes are given, otherwise all",
        several=True,
    )
    probe_variation: float = option(
        0.0, "random change of given probes in shape and focus, per batch: 0 none, 1 small", group="Probe"
    )
    logger: Literal["mlflow", "tensorboard", "csv", "none"] = option(
        "csv", "experiment tracker in addition to history.csv", group="Output"
    )
    precision: Precision = option("auto", PRECISION_HELP, group="Computing")
    device: Device = option("auto", DEVICE_HELP, group="Computing")

    def __post_init__(self) -> None:
        require_positive(self, "size", "time_limit", "steps", "batch_size", "min_photons", "max_photons")
        require_positive(self, "learning_rate", "width")
        require_not_negative(self, "seed", "probe_variation")
        require_share(self, "masked_fraction")
        require_supported_size(self)
        if self.probe_variation and not self.probe:
            raise ConfigError(
                f"`probe_variation` is {self.probe_variation} without a given probe; expected files in `probe`"
            )
