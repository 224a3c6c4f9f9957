"""Settings of the commands ``sweep`` and ``demo``."""

from dataclasses import MISSING, dataclass
from pathlib import Path

from ptycho_torch.config.base import CommonOptions, Device, option, require_positive


@dataclass(frozen=True, kw_only=True)
class SweepConfig(CommonOptions):
    """Settings of the command ``sweep``."""

    train_data_file: Path = option(MISSING, "scan file of any supported format for training", group="Files")
    output_dir: Path = option(MISSING, "folder for scope.json, scope.md and the log of each run", group="Files")
    run: tuple[str, ...] = option(
        MISSING,
        "settings of one training as name=value,name=value, with the names of train and epochs for max_epochs; "
        "repeat the flag for more runs",
        group="Training",
    )
    timeout: float = option(
        120.0,
        "time in seconds after which a run is stopped and recorded as failed",
        group="Training",
        aliases=("limit",),
    )
    keep_outputs: bool = option(
        False, "keep all files of the runs; otherwise only small text files remain", group="Output", aliases=("keep",)
    )
    device: Device = option("cpu", "device of every run; cpu also hides CUDA from the runs", group="Computing")

    def __post_init__(self) -> None:
        require_positive(self, "timeout")


@dataclass(frozen=True, kw_only=True)
class DemoConfig(CommonOptions):
    """Settings of the command ``demo``."""

    output_dir: Path = option(
        Path("demo_output"), "folder for the scan, the model and the reconstruction", group="Files"
    )
    seed: int = option(0, "seed of all random numbers", group="Training")
