"""Settings of the command ``train``."""

from dataclasses import MISSING, dataclass
from pathlib import Path
from typing import Literal

from ptycho_torch.config.base import (
    DEVICE_HELP,
    PRECISION_HELP,
    Device,
    Precision,
    option,
    require_not_negative,
    require_positive,
    require_supported_size,
)
from ptycho_torch.config.input import ScanReadOptions
from ptycho_torch.core.errors import ConfigError

DEFAULT_LEARNING_RATE = 3e-3
"""Largest step of Adam in a training and in a pretraining."""

DEFAULT_WARM_UP_STEPS = 50
"""Steps over which the learning rate rises, from fresh weights."""

DEFAULT_POSITION_BOUND = 3.0
"""Largest change of a position by a training, in pixels."""


@dataclass(frozen=True, kw_only=True)
class TrainConfig(ScanReadOptions):
    """Settings of the command ``train``."""

    train_data_file: tuple[Path, ...] = option(
        MISSING,
        "scan files (NPZ) for training, each with its own probe and photon scale",
        group="Files",
        several=True,
    )
    output_dir: Path = option(MISSING, "folder for the model, its history and checkpoints", group="Files")
    test_data_file: Path | None = option(
        None,
        "scan file for the validation loss",
        group="Files",
        default_help="a held-out region of each training scan",
    )
    init_model: Path | None = option(
        None,
        "folder of a model from train or pretrain to fine-tune; the probe is still that of the scan, or of probe",
        group="Files",
        aliases=("init",),
    )
    network: str | None = option(
        None,
        "network: stepped_unet, lifted_unet, unrolled_unet, refined_unet, overlap_unet, unet, ffno or vit",
        group="Network",
        default_help="that of the initial model, otherwise stepped_unet",
    )
    head: str | None = option(
        None,
        "conversion of the network's output to a complex patch: polar (amplitude and phase) or residual (1 + a + ib)",
        group="Network",
        default_help="that of the initial model, otherwise polar",
    )
    width: int | None = option(
        None,
        "channels of the network's finest scale",
        group="Network",
        default_help="that of the initial model, otherwise 16",
    )
    max_epochs: int | None = option(
        None,
        "passes over all groups; 0 writes the untrained model",
        group="Training",
        default_help="900 steps for patterns of 64 pixels, 200 steps when fine-tuning",
    )
    n_images: int | None = option(
        None, "groups per scan and epoch, drawn once by the seed", group="Training", default_help="all"
    )
    gridsize: int = option(
        1, "g: a group is a scan position and its g*g-1 nearest neighbors, whose patches must agree", group="Training"
    )
    batch_size: int | None = option(
        None,
        "groups per batch",
        group="Training",
        default_help="24 for patterns of 64 pixels, fewer for larger ones",
    )
    learning_rate: float | None = option(
        None,
        "largest step of the network's biases after a short warm-up; the steps of its kernels are proportional to it",
        group="Training",
        default_help=f"{DEFAULT_LEARNING_RATE:g}",
    )
    loss: Literal["poisson", "amplitude"] = option(
        "amplitude", "noise model whose negative log-likelihood is minimized", group="Training"
    )
    teacher: str | None = option(
        None,
        'engine that reconstructs the object first, as a target of the network: pie, or with settings "pie:epochs=12"',
        group="Training",
    )
    supervised: bool = option(
        False,
        "also train on the labels in the scan files (Y), which must be object patches, not exit waves",
        group="Training",
    )
    resume: bool = option(False, "continue from the checkpoint in the output folder", group="Training")
    seed: int = option(0, "seed of all random numbers", group="Training")
    probe: tuple[Path, ...] = option(
        (),
        "scan file or reconstruction.npz with the probe: one for all scans, or one per scan",
        group="Probe",
        default_help="the probe of each scan file",
        several=True,
    )
    update_probe: bool = option(False, "train the probe of each scan together with the network", group="Probe")
    probe_modes: int | None = option(
        None, "incoherent modes per probe", group="Probe", default_help="as many as in the file"
    )
    update_positions: bool = option(False, "train the scan positions together with the network", group="Positions")
    position_bound: float = option(
        DEFAULT_POSITION_BOUND, "largest displacement of a scan position along each axis, in pixels", group="Positions"
    )
    update_background: bool = option(
        False, "train a background per scan that is common to all of its patterns", group="Nuisance parameters"
    )
    logger: Literal["mlflow", "tensorboard", "csv", "none"] = option(
        "mlflow",
        "experiment tracker in addition to history.csv; --disable_mlflow is short for --logger csv",
        group="Output",
    )
    precision: Precision = option("auto", PRECISION_HELP, group="Computing")
    num_workers: int = option(0, "processes that prepare batches; 0 uses the main process", group="Computing")
    device: Device = option("auto", DEVICE_HELP, group="Computing")

    def __post_init__(self) -> None:
        super().__post_init__()
        if isinstance(self.train_data_file, str | Path):  # a caller may give one path without a tuple
            object.__setattr__(self, "train_data_file", (Path(self.train_data_file),))
        if not self.train_data_file:
            raise ConfigError("`train_data_file` is empty; expected at least one scan file")
        if self.supervised and self.teacher:
            raise ConfigError("`supervised` and `teacher` both define the target; expected one of them")
        require_positive(self, "n_images", "gridsize", "batch_size", "learning_rate", "width")
        require_positive(self, "probe_modes", "position_bound")
        require_not_negative(self, "max_epochs", "num_workers", "seed")
        require_supported_size(self)
