"""The settings of every command, as frozen dataclasses: each default stands here and nowhere else.

A field made with :func:`option` carries its help text and choices; :mod:`ptycho_torch.cli` builds the flags from
them. Fields without a default are required. Units are in the help texts.
"""

import dataclasses
import math
from dataclasses import MISSING, dataclass
from pathlib import Path
from typing import Any, Literal

from ptycho_torch.core.errors import ConfigError

AxisOrder = Literal["nhw", "hwn"]
Measurement = Literal["amplitude", "counts"]
Device = Literal["auto", "cpu", "cuda", "mps"]
Precision = Literal["auto", "fp32", "bf16"]

DEVICE_HELP = "device to compute on (--accelerator is an alias); auto takes CUDA, then MPS, then CPU"
PRECISION_HELP = "arithmetic of the network (physics is always complex64); auto takes bf16 where that is faster"

MAX_WIDTH = 1024
"""Most channels of a network's finest scale: more of them fit into no memory."""


def option(default: Any, help: str, *, positional: bool = False, several: bool = False) -> Any:
    """A dataclass field with its help text. ``default`` is ``MISSING`` for a required setting.

    ``several``: the flag of a tuple takes one value or more; of other tuples it takes one, and may be repeated.
    """
    return dataclasses.field(default=default, metadata={"help": help, "positional": positional, "several": several})


def require_positive(config: Any, *names: str) -> None:
    """Raise :class:`ConfigError` unless each named setting is None or above zero and finite."""
    for name in names:
        value = getattr(config, name)
        if value is not None and not 0 < value < math.inf:
            raise ConfigError(f"--{name} is {value}: it must be above 0{' and finite' if value == math.inf else ''}")


def require_not_negative(config: Any, *names: str) -> None:
    """Raise :class:`ConfigError` unless each named setting is None or from zero on and finite."""
    for name in names:
        value = getattr(config, name)
        if value is not None and not 0 <= value < math.inf:
            raise ConfigError(f"--{name} is {value}: it must not be {'infinite' if value == math.inf else 'negative'}")


def require_within_reach(config: "TrainConfig | PretrainConfig") -> None:
    """Raise :class:`ConfigError` where memory does not hold the network, or torch does not take the seed."""
    if config.width is not None and config.width > MAX_WIDTH:
        raise ConfigError(f"--width is {config.width}: it must be at most {MAX_WIDTH}")
    if config.seed >= 2**63:
        raise ConfigError(f"--seed is {config.seed}: it must be below 2**63")


@dataclass(frozen=True, kw_only=True)
class Verbosity:
    """What every command offers."""

    quiet: bool = option(False, "no progress bar and no messages below a warning")
    debug: bool = option(False, "show debug messages, and the traceback of an error")


@dataclass(frozen=True, kw_only=True)
class Reading(Verbosity):
    """How a scan file is to be read where the file itself leaves it open."""

    axis_order: AxisOrder | None = option(
        None, "axis order of the diffraction: nhw is (n, H, W), hwn is (H, W, n); default: found from the file"
    )
    measurement: Measurement | None = option(
        None, "what the diffraction array holds; default: the file's metadata, else amplitude (integers are refused)"
    )
    photons_per_unit: float | None = option(
        None,
        "photons for one squared unit of stored amplitude; default: the file's metadata, else the integer lattice of "
        "the data, else 1e6 photons a pattern with a warning",
    )

    def __post_init__(self) -> None:
        require_positive(self, "photons_per_unit")


@dataclass(frozen=True, kw_only=True)
class TrainConfig(Reading):
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
        "3e-3 from fresh weights",
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
    position_bound: float = option(3.0, "farthest that a position moves on either axis, in pixels")
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
        require_within_reach(self)


@dataclass(frozen=True, kw_only=True)
class PretrainConfig(Verbosity):
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
        3e-3, "step for the network's biases, and in proportion its kernels', after a short warm-up"
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
        require_within_reach(self)
        if self.probe_variation and not self.probe:
            raise ConfigError("--probe_variation changes given probes, and none is given: set --probe, or leave it out")


@dataclass(frozen=True, kw_only=True)
class InferenceConfig(Reading):
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
class ExportConfig(Verbosity):
    """Settings of ``python -m ptycho_torch.export``."""

    model_path: Path = option(MISSING, "folder written by train", positional=True)
    output: Path = option(MISSING, "ONNX file to write; its name ends in .onnx")

    def __post_init__(self) -> None:
        if self.output.suffix != ".onnx":  # a slip then overwrites neither a model nor a scan
            raise ConfigError(f"--output is {self.output}: give a name that ends in .onnx")


@dataclass(frozen=True, kw_only=True)
class StageConfig:
    """Settings of one engine. None means: the engine's own default."""

    engine: str = option("pie", "pie, epie, rpie, lsqml, dm, raar, gradient or neural")
    epochs: int | None = option(None, "passes over all patterns; default: the engine's")
    time_limit: float | None = option(None, "seconds after which no batch is begun; default: none")
    patience: int | None = option(
        None,
        "epochs without a better prediction of the held-out pixels (--holdout) after which the stage ends, with the "
        "estimate of its best epoch; default: it runs to its end",
    )
    batch_size: int | None = option(None, "patterns a batch; default: the engine's")
    batches: Literal["random", "compact"] | None = option(
        None, "random: each batch from all over the field; compact: each a neighbourhood; default: the engine's"
    )
    loss: Literal["amplitude", "poisson"] = option("amplitude", "noise model of the patterns")
    step: float | None = option(
        None, "step of the object: 1 is the exact one, for adam a change of |O| a batch; default: the engine's"
    )
    momentum: float | None = option(None, "share of the last step that is taken again; default: the engine's")
    update_probe: bool = option(False, "learn the probe too, which measured data needs")
    probe_start: int = option(0, "epoch from which on the probe is learned")
    probe_modes: int | None = option(None, "incoherent probe modes; default: as many as the start has")
    update_positions: bool = option(False, "refine the scan positions")
    position_start: int = option(3, "epoch from which on positions are refined")
    position_bound: float = option(5.0, "farthest that a position is moved, in pixels")
    position_method: Literal["gradient", "correlation"] = option(
        "gradient", "how positions are refined: gradient, by least squares; correlation, by peaks of cross-correlations"
    )
    position_model: Literal["free", "affine"] = option(
        "free", "free: each position by itself; affine: all by one scale, rotation and shear"
    )
    update_background: bool = option(False, "learn a background that is the same in all patterns")
    update_intensity: bool = option(False, "learn how bright the probe was in each pattern: sources fluctuate")
    support: Path | None = option(
        None, "NPZ file with support, 0 to 1 on the object's pixels, and origin_yx; outside the object is one value"
    )
    max_amplitude: float | None = option(
        None, "largest amplitude of the object, in the result's unit, in which vacuum is not exactly 1; default: none"
    )
    alpha: float | None = option(None, "rpie: share of the brightest pixel in the divisor, 1 being epie; default: 0.1")
    relaxation: float | None = option(None, "beta of dm and raar; default: the engine's")
    optimizer: Literal["adam", "sgd", "lbfgs"] | None = option(None, "optimiser of the gradient engine; default: adam")
    tv: float = option(0.0, "weight of the object's total variation, gradient engine")
    smoothness: float = option(0.0, "weight of the object's squared differences, gradient engine")
    model_path: Path | None = option(None, "folder written by train or pretrain, neural engine")

    def __post_init__(self) -> None:
        require_positive(self, "time_limit", "batch_size", "step", "probe_modes", "position_bound", "relaxation")
        require_positive(self, "patience", "max_amplitude")
        require_not_negative(self, "epochs", "probe_start", "position_start", "tv", "smoothness")
        if self.alpha is not None and not 0 < self.alpha <= 1:
            raise ConfigError(f"--alpha is {self.alpha}: it must be above 0 and at most 1")
        if self.momentum is not None and self.optimizer == "lbfgs":
            raise ConfigError(f"--momentum is {self.momentum}, and lbfgs has none: leave it out, or --optimizer sgd")
        if self.momentum is not None and not 0 <= self.momentum < 1:
            raise ConfigError(f"--momentum is {self.momentum}: it must be at least 0 and below 1")


@dataclass(frozen=True, kw_only=True)
class ReconstructConfig(StageConfig, Reading):
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
        Reading.__post_init__(self)
        if not 0 <= self.holdout <= 0.5:
            raise ConfigError(f"--holdout is {self.holdout}: it must be a share from 0 to 0.5")
        require_not_negative(self, "seed")


@dataclass(frozen=True, kw_only=True)
class SimulateConfig(Verbosity):
    """Settings of ``python -m ptycho_torch.simulate``. None means: the preset's."""

    output: Path = option(MISSING, "scan file (NPZ) to write", positional=True)
    preset: Literal["run1084", "star", "tiny"] = option("run1084", "a set of defaults for all that follows")
    photons: float | None = option(None, "mean photons a pattern; 0 writes the noiseless expectation")
    seed: int = option(0, "seed of the object, the positions and the counts")
    layout: Literal["canonical", "legacy"] = option("canonical", "key names, axis order and dtypes of the file")
    object: str | None = option(
        None,
        "kind of object: letters, star, cells, texture or flat, which are alike for every seed; dead_leaves, bars, "
        "gratings, lines, clouds, spokes or photographs, whose contrast is drawn too, down to no amplitude and over ±π",
    )
    probe: str | None = option(
        None,
        "kind of probe: structured, disk, gaussian, fresnel, zone_plate, zernike, defocus, vortex or speckle",
    )
    trajectory: Literal["raster", "spiral", "grid", "scattered"] | None = option(
        None, "order and pattern of the positions"
    )
    size: int | None = option(None, "N: side of a pattern in pixels")
    positions: int | None = option(None, "number of scan positions")
    overlap: float | None = option(None, "linear overlap of neighbouring probes, 0 to below 1")
    jitter: float | None = option(None, "random displacement of each position, in steps")
    modes: int | None = option(None, "incoherent probe modes")

    def __post_init__(self) -> None:
        require_positive(self, "size", "positions", "modes")
        require_not_negative(self, "photons", "jitter", "seed")
        if self.overlap is not None and not 0 <= self.overlap < 1:
            raise ConfigError(f"--overlap is {self.overlap}: it must be at least 0 and below 1")


@dataclass(frozen=True, kw_only=True)
class DescribeConfig(Verbosity):
    """Settings of ``python -m ptycho_torch.describe``."""

    file: Path = option(MISSING, "scan file (NPZ) to describe", positional=True)
    json: bool = option(False, "machine-readable output, the same bytes for the same file")
    stats: bool = option(True, "read the arrays; --no_stats reads their headers only")
    axis_order: AxisOrder | None = option(None, "axis order of the diffraction, where the file leaves it open")
    measurement: Measurement | None = option(None, "what the diffraction array holds")


@dataclass(frozen=True, kw_only=True)
class ConvertConfig(Verbosity):
    """Settings of ``python -m ptycho_torch.convert``."""

    source: Path = option(MISSING, "foreign NPZ file, also compressed as .npz.bz2", positional=True)
    destination: Path = option(MISSING, "canonical scan file to write", positional=True)
    diffraction_key: str | None = option(None, "key of the patterns; default: diffraction, diff3d or data")
    probe_key: str | None = option(None, "key of the probe; default: probeGuess or probe")
    object_key: str | None = option(None, "key of the object; default: objectGuess or object, if there")
    positions_key: str | None = option(None, "key of an (n, 2) array of (y, x); default: scan or positions, if there")
    x_key: str | None = option(None, "key of the column coordinates; default: xcoords")
    y_key: str | None = option(None, "key of the row coordinates; default: ycoords")
    mask_key: str | None = option(None, "key of the mask, True where a pixel counts; default: mask, if there")
    axis_order: AxisOrder | None = option(None, "axis order of the patterns; default: found from the file")
    measurement: Measurement | None = option(None, "what the patterns hold; needed unless the file's metadata say it")
    photons_per_unit: float | None = option(
        None, "photons for one count, or for one squared unit of amplitude; default: 1 for counts, else left open"
    )
    origin: Literal["centred", "corner"] = option("centred", "where zero frequency lies in the patterns")
    flip_y: bool = option(False, "turn the rows of each pattern round")
    flip_x: bool = option(False, "turn the columns of each pattern round")
    transpose: bool = option(False, "exchange rows and columns of each pattern (after the flips)")
    swap_xy: bool = option(False, "exchange the two coordinates (before negation and scale)")
    negate_y: bool = option(False, "turn the sign of the row coordinate")
    negate_x: bool = option(False, "turn the sign of the column coordinate")
    position_unit: Literal["pixel", "metre"] = option("pixel", "unit of the coordinates in the file")
    pixel_size: float | None = option(None, "object pixel in metres; needed where positions are in metres")
    position_scale: float = option(1.0, "factor on both coordinates, after the unit")

    def __post_init__(self) -> None:
        require_positive(self, "photons_per_unit", "pixel_size", "position_scale")
        if self.position_unit == "metre" and self.pixel_size is None:
            raise ConfigError("--position_unit metre needs the object's pixel in metres: set --pixel_size")


@dataclass(frozen=True, kw_only=True)
class SubsetConfig(Reading):
    """Settings of ``python -m ptycho_torch.subset``."""

    source: Path = option(MISSING, "scan file (NPZ) to cut from, canonical or legacy")
    output: Path = option(MISSING, "canonical scan file to write")
    subset_size: int = option(64, "number of patterns to keep")
    strategy: Literal["even", "compact", "seeded"] = option(
        "even",
        "which patterns: even spreads neighbourhoods of four over the field, compact is a contiguous window, seeded "
        "is drawn by --seed",
    )
    seed: int = option(0, "seed of the seeded strategy")
    crop: int = option(1, "c: keep the central N/c detector pixels; the object pixel grows by c")
    bin: int = option(1, "b: sum the counts of b x b detector pixels; the field of the probe shrinks by b")
    metadata_out: Path | None = option(None, "JSON record of the cut; default: beside the output, same name, .json")

    def __post_init__(self) -> None:
        super().__post_init__()
        require_positive(self, "subset_size", "crop", "bin")
        require_not_negative(self, "seed")


@dataclass(frozen=True, kw_only=True)
class SweepConfig(Verbosity):
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
class EvaluateConfig(Reading):
    """Settings of ``python -m ptycho_torch.evaluate``."""

    reconstruction: Path = option(MISSING, "reconstruction.npz of inference", positional=True)
    output_dir: Path = option(MISSING, "folder for metrics.json and report.html")
    truth: Path | None = option(None, "scan file whose objectGuess is the true object, on the coordinate grid")
    scan: Path | None = option(None, "scan file with the measured patterns, for R and its floor")
    remove_ramp: bool = option(False, "also divide out a linear phase ramp before comparing with the truth")
    remove_shift: bool = option(False, "also register the result to the truth by a sub-pixel shift")
    report: bool = option(True, "write report.html and the pictures, which take about half of the time")


@dataclass(frozen=True, kw_only=True)
class DemoConfig(Verbosity):
    """Settings of ``python -m ptycho_torch.demo``."""

    output_dir: Path = option(Path("demo_output"), "folder for the scan, the model and the reconstruction")
    seed: int = option(0, "seed of every random choice")
