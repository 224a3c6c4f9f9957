"""Settings of the commands ``inference``, ``export`` and ``evaluate``."""

from dataclasses import MISSING, dataclass
from pathlib import Path

from ptycho_torch.config.base import (
    DEVICE_HELP,
    REPORT_HELP,
    CommonOptions,
    Device,
    Precision,
    copy_option,
    option,
    require_positive,
)
from ptycho_torch.config.engines import NetworkEngine
from ptycho_torch.config.input import ScanReadOptions
from ptycho_torch.core.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class InferenceConfig(ScanReadOptions):
    """Settings of the command ``inference``."""

    model_path: Path = option(MISSING, "folder of a model from train or pretrain", group="Files")
    test_data: Path = option(MISSING, "scan file of any supported format to reconstruct", group="Files")
    output_dir: Path = option(MISSING, "folder for the reconstruction, images and report", group="Files")
    save_as: tuple[Path, ...] = option(
        (),
        "file for the result in another format, by its suffix: .cxi, .h5, .ptyr or .npz; may be repeated",
        group="Files",
    )
    onnx: Path | None = copy_option(NetworkEngine, "onnx")
    probe: Path | None = copy_option(NetworkEngine, "probe")
    positions: Path | None = copy_option(NetworkEngine, "positions")
    update_positions: bool = copy_option(
        NetworkEngine,
        "update_positions",
        "refine the scan positions against the reconstructed object and run the network again",
    )
    position_bound: float = copy_option(NetworkEngine, "position_bound")
    n_images: int | None = copy_option(NetworkEngine, "n_images")
    gridsize: int | None = copy_option(NetworkEngine, "gridsize")
    uncertainty: bool = copy_option(NetworkEngine, "uncertainty")
    report: bool = option(True, REPORT_HELP, group="Output")
    batch_size: int = copy_option(NetworkEngine, "batch_size")
    precision: Precision = copy_option(NetworkEngine, "precision")
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
