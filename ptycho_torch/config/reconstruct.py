"""Settings of the command reconstruct."""

from dataclasses import MISSING, dataclass
from pathlib import Path

from ptycho_torch.config.base import DEVICE_HELP, Device, ScanReadOptions, option, require_not_negative
from ptycho_torch.config.engines import StageConfig
from ptycho_torch.core.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class ReconstructConfig(StageConfig, ScanReadOptions):
    """Settings of ``python -m ptycho_torch.reconstruct``."""

    scan: Path = option(MISSING, "scan file (NPZ) to reconstruct", positional=True)
    output_dir: Path = option(MISSING, "folder for the reconstruction, pictures and report")
    then: tuple[str, ...] = option(
        (), 'a further engine with settings of its own, as "gradient:epochs=20,batch_size=64"; may be repeated'
    )
    init_object: Path | None = option(None, "reconstruction.npz or scan file whose object to start from; default: ones")
    init_probe: str = option(
        "file",
        "file: the scan's; gaussian:SIGMA: sigma in pixels, curved as the patterns tell; gaussian: as wide as they "
        "tell, too; or an NPZ file's",
    )
    init_positions: Path | None = option(None, "reconstruction.npz or scan file whose positions to start from")
    holdout: float = option(
        0.0,
        "share of detector pixels that no iterative engine sees, to judge its epochs by and to stop it (--patience)",
    )
    half_scan_frc: bool = option(
        False, "reconstruct each half of the positions too, and correlate both: the resolution without a truth"
    )
    seed: int = option(0, "seed of every random choice")
    device: Device = option("auto", DEVICE_HELP)
    resume: bool = option(False, "go on from the checkpoint in the output folder")
    report: bool = option(True, "write report.html and the pictures, which take about half of the time")

    def __post_init__(self) -> None:
        StageConfig.__post_init__(self)
        ScanReadOptions.__post_init__(self)
        if not 0 <= self.holdout <= 0.5:
            raise ConfigError(f"--holdout is {self.holdout}: it must be a share from 0 to 0.5")
        require_not_negative(self, "seed")
