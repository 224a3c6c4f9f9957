"""Settings of the command train."""

from dataclasses import MISSING, dataclass
from pathlib import Path
from typing import Literal

from ptycho_torch.config.base import (
    DEVICE_HELP,
    PRECISION_HELP,
    Device,
    Precision,
    ScanReadOptions,
    option,
    require_not_negative,
    require_positive,
    require_supported_size,
)
from ptycho_torch.core.errors import ConfigError

DEFAULT_LEARNING_RATE = 3e-3
"""Largest step of Adam in a training and in a pretraining."""

DEFAULT_WARM_UP_STEPS = 50
"""Steps over which the learning rate rises, from fresh weights."""

DEFAULT_POSITION_BOUND = 3.0
"""Largest change of a position by a training, in pixels."""


@dataclass(frozen=True, kw_only=True)
class TrainConfig(ScanReadOptions):
    """Settings of ``python -m ptycho_torch.train``."""

    train_data_file: tuple[Path, ...] = option(
        MISSING, "scan files (NPZ) to train on, each with its own probe and photon scale", several=True
    )
    output_dir: Path = option(MISSING, "folder for the model bundle, history and checkpoints")
    test_data_file: Path | None = option(
        None, "scan file for the validation figure; default: a region of each training scan is held out"
    )
    max_epochs: int | None = option(None, "passes over the groups; default: the recipe's; 0 writes the untrained model")
    n_images: int | None = option(None, "groups of each scan an epoch, drawn once by the seed; default: all")
    gridsize: int = option(1, "g: a group is a position and its g*g-1 nearest neighbours")
    batch_size: int | None = option(None, "groups a batch; default: the recipe's")
    learning_rate: float | None = option(
        None,
        "step for the network's biases, and in proportion its kernels', after a short warm-up; default: the recipe's, "
        f"{DEFAULT_LEARNING_RATE:g} from fresh weights",
    )
    seed: int = option(0, "seed of every random choice")
    init: Path | None = option(
        None,
        "folder written by train or pretrain whose network to start from, by a short recipe; the probe is the scan's, "
        "or --probe",
    )
    probe: tuple[Path, ...] = option(
        (),
        "scan file or reconstruction.npz whose probe lights the scans, or one for each of them; default: each its own",
        several=True,
    )
    network: str | None = option(
        None,
        "stepped_unet (default), lifted_unet, unrolled_unet, refined_unet, overlap_unet, unet, ffno, vit; or --init's",
    )
    head: str | None = option(
        None,
        "how the network states the object: polar, amplitude and phase (default), or residual, 1 + a + ib; "
        "with --init it is as there",
    )
    width: int | None = option(None, "channels of the network's finest scale; default: 16, with --init as there")
    loss: Literal["poisson", "amplitude"] = option(
        "amplitude", "noise model whose negative log likelihood is minimised"
    )
    update_probe: bool = option(False, "learn the probe of each scan together with the network")
    probe_modes: int | None = option(None, "incoherent modes of each probe; default: as many as its file has")
    update_positions: bool = option(False, "learn the scan positions together with the network")
    position_bound: float = option(DEFAULT_POSITION_BOUND, "farthest that a position moves on either axis, in pixels")
    update_background: bool = option(False, "learn a background of each scan, the same in all of its patterns")
    teacher: str | None = option(
        None, 'an engine whose object teaches the network, run first: pie, or with settings "pie:epochs=12"'
    )
    supervised: bool = option(
        False, "learn from the labels in the scan files (Y) beside the patterns; they must be the object, not lit"
    )
    precision: Precision = option("auto", PRECISION_HELP)
    num_workers: int = option(0, "processes that prepare batches; 0 prepares them in the main process")
    device: Device = option("auto", DEVICE_HELP)
    logger: Literal["mlflow", "tensorboard", "csv", "none"] = option(
        "mlflow", "tracker beside history.csv, which is always written (--disable_mlflow is --logger csv)"
    )
    resume: bool = option(False, "go on from checkpoints/last of the output folder")

    def __post_init__(self) -> None:
        super().__post_init__()
        if isinstance(self.train_data_file, str | Path):  # one scan may be given as it is
            object.__setattr__(self, "train_data_file", (Path(self.train_data_file),))
        if not self.train_data_file:
            raise ConfigError("--train_data_file names no scan: give at least one")
        if self.supervised and self.teacher:
            raise ConfigError("--supervised and --teacher both say what the object is: leave one of them out")
        require_positive(self, "n_images", "gridsize", "batch_size", "learning_rate", "width")
        require_positive(self, "probe_modes", "position_bound")
        require_not_negative(self, "max_epochs", "num_workers", "seed")
        require_supported_size(self)
