"""Settings of the commands inference, export and evaluate."""

from dataclasses import MISSING, dataclass
from pathlib import Path

from ptycho_torch.config.base import (
    DEVICE_HELP,
    PRECISION_HELP,
    CommonOptions,
    Device,
    Precision,
    ScanReadOptions,
    option,
    require_positive,
)
from ptycho_torch.core.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class InferenceConfig(ScanReadOptions):
    """Settings of ``python -m ptycho_torch.inference``."""

    model_path: Path = option(MISSING, "folder written by train or pretrain")
    test_data: Path = option(MISSING, "scan file (NPZ) to reconstruct")
    output_dir: Path = option(MISSING, "folder for the reconstruction, pictures and report")
    probe: Path | None = option(
        None,
        "scan file or reconstruction.npz whose probe lights the scan; default: the one that the model learned on this "
        "scan, else the model's only one, else the scan's own",
    )
    positions: Path | None = option(
        None,
        "reconstruction.npz or scan file whose positions to take; default: those that the model learned on this scan, "
        "else the scan's own",
    )
    update_positions: bool = option(
        False,
        "move positions that are in doubt to where the network's picture explains the patterns best, and let it look "
        "again",
    )
    position_bound: float = option(5.0, "farthest that a position is moved on either axis, in pixels")
    n_images: int | None = option(None, "groups to reconstruct, spread over the scan; default: all")
    gridsize: int | None = option(None, "g: a group is a position and its g*g-1 nearest; default: as trained")
    batch_size: int = option(64, "patterns computed together; the result does not depend on it but for rounding")
    precision: Precision = option("auto", PRECISION_HELP)
    device: Device = option("auto", DEVICE_HELP)
    onnx: Path | None = option(
        None, "file written by export: onnxruntime runs its network in place of torch, on the CPU"
    )
    uncertainty: bool = option(
        False, "state the standard deviation of each pixel, which takes about as long again as the network"
    )
    report: bool = option(True, "write report.html and the pictures, which take about half of the time")

    def __post_init__(self) -> None:
        super().__post_init__()
        require_positive(self, "n_images", "gridsize", "batch_size", "position_bound")
        if self.onnx and (self.precision == "bf16" or self.device not in ("auto", "cpu")):
            raise ConfigError("--onnx computes in fp32 on the CPU: leave out --precision and --device, or --onnx")


@dataclass(frozen=True, kw_only=True)
class ExportConfig(CommonOptions):
    """Settings of ``python -m ptycho_torch.export``."""

    model_path: Path = option(MISSING, "folder written by train", positional=True)
    output: Path = option(MISSING, "ONNX file to write; its name ends in .onnx")

    def __post_init__(self) -> None:
        if self.output.suffix != ".onnx":  # a slip then overwrites neither a model nor a scan
            raise ConfigError(f"--output is {self.output}: give a name that ends in .onnx")


@dataclass(frozen=True, kw_only=True)
class EvaluateConfig(ScanReadOptions):
    """Settings of ``python -m ptycho_torch.evaluate``."""

    reconstruction: Path = option(MISSING, "reconstruction.npz of inference", positional=True)
    output_dir: Path = option(MISSING, "folder for metrics.json and report.html")
    truth: Path | None = option(None, "scan file whose objectGuess is the true object, on the coordinate grid")
    scan: Path | None = option(None, "scan file with the measured patterns, for R and its floor")
    remove_ramp: bool = option(False, "also divide out a linear phase ramp before comparing with the truth")
    remove_shift: bool = option(False, "also register the result to the truth by a sub-pixel shift")
    report: bool = option(True, "write report.html and the pictures, which take about half of the time")
