"""Settings of the commands ``inference``, ``export`` and ``evaluate``."""

from dataclasses import MISSING, dataclass
from pathlib import Path

from ptycho_torch.config.base import (
    DEVICE_HELP,
    PRECISION_HELP,
    REPORT_HELP,
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
    """Settings of the command ``inference``."""

    model_path: Path = option(MISSING, "folder of a model from train or pretrain", group="Files")
    test_data: Path = option(MISSING, "scan file (NPZ) to reconstruct", group="Files")
    output_dir: Path = option(MISSING, "folder for the reconstruction, images and report", group="Files")
    onnx: Path | None = option(
        None, "file from export; onnxruntime runs its network on the CPU in place of torch", group="Files"
    )
    probe: Path | None = option(
        None,
        "scan file or reconstruction.npz with the probe",
        group="Probe",
        default_help="the probe trained on this scan, otherwise the only probe of the model, otherwise that of the "
        "scan file",
    )
    positions: Path | None = option(
        None,
        "reconstruction.npz or scan file with the scan positions",
        group="Positions",
        default_help="the positions trained on this scan, otherwise those of the scan file",
    )
    update_positions: bool = option(
        False,
        "refine the scan positions against the reconstructed object and run the network again",
        group="Positions",
    )
    position_bound: float = option(
        5.0, "largest displacement of a scan position along each axis, in pixels", group="Positions"
    )
    n_images: int | None = option(
        None, "number of groups to reconstruct, spread over the scan", group="Result", default_help="all"
    )
    gridsize: int | None = option(
        None,
        "g: a group is a scan position and its g*g-1 nearest neighbors",
        group="Result",
        default_help="as in training",
    )
    uncertainty: bool = option(
        False, "compute the standard deviation of each pixel, which doubles the time of the network", group="Result"
    )
    report: bool = option(True, REPORT_HELP, group="Output")
    batch_size: int = option(64, "patterns per batch; the result depends on it only by rounding", group="Computing")
    precision: Precision = option("auto", PRECISION_HELP, group="Computing")
    device: Device = option("auto", DEVICE_HELP, group="Computing")

    def __post_init__(self) -> None:
        super().__post_init__()
        require_positive(self, "n_images", "gridsize", "batch_size", "position_bound")
        if self.onnx and (self.precision == "bf16" or self.device not in ("auto", "cpu")):
            raise ConfigError(
                f"`onnx` is set with `precision` {self.precision} and `device` {self.device}; expected fp32 on the "
                "CPU, as onnxruntime computes; omit `onnx`, or both others"
            )


@dataclass(frozen=True, kw_only=True)
class ExportConfig(CommonOptions):
    """Settings of the command ``export``."""

    model_path: Path = option(MISSING, "folder of a model from train", group="Files", positional=True)
    output: Path = option(MISSING, "ONNX file to write, with the suffix .onnx", group="Files")

    def __post_init__(self) -> None:
        if self.output.suffix != ".onnx":  # a typing error must not overwrite a model or a scan
            raise ConfigError(f"`output` is {self.output}; expected a name with the suffix .onnx")


@dataclass(frozen=True, kw_only=True)
class EvaluateConfig(ScanReadOptions):
    """Settings of the command ``evaluate``."""

    reconstruction: Path = option(MISSING, "reconstruction.npz to score", group="Files", positional=True)
    output_dir: Path = option(MISSING, "folder for metrics.json and report.html", group="Files")
    truth: Path | None = option(
        None, "scan file whose objectGuess is the true object, on the same pixel grid", group="Files"
    )
    scan: Path | None = option(
        None, "scan file with the measured patterns, for R (the Fourier error) and its noise floor", group="Files"
    )
    remove_ramp: bool = option(False, "remove a linear phase ramp before the comparison with the truth", group="Result")
    remove_shift: bool = option(
        False, "register the object to the truth by a sub-pixel shift before the comparison", group="Result"
    )
    report: bool = option(True, REPORT_HELP, group="Output")
