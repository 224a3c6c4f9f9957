"""Settings of the commands sweep and demo."""

from dataclasses import MISSING, dataclass
from pathlib import Path

from ptycho_torch.config.base import CommonOptions, Device, option, require_positive


@dataclass(frozen=True, kw_only=True)
class SweepConfig(CommonOptions):
    """Settings of ``python -m ptycho_torch.sweep``."""

    train_data_file: Path = option(MISSING, "scan file (NPZ) to train on")
    output_dir: Path = option(MISSING, "folder for scope.json, scope.md and the log of each run")
    run: tuple[str, ...] = option(
        MISSING, "one training as name=value,name=value with names of train's flags; epochs is max_epochs; repeat it"
    )
    device: Device = option("cpu", "device of every run; with cpu, CUDA is hidden from them")
    limit: float = option(120.0, "seconds after which a run is stopped and said to be so")
    keep: bool = option(False, "keep what the runs wrote; else only their logs and small text files stay")

    def __post_init__(self) -> None:
        require_positive(self, "limit")


@dataclass(frozen=True, kw_only=True)
class DemoConfig(CommonOptions):
    """Settings of ``python -m ptycho_torch.demo``."""

    output_dir: Path = option(Path("demo_output"), "folder for the scan, the model and the reconstruction")
    seed: int = option(0, "seed of every random choice")
