"""Options of the engines: one class per engine, each with a method that runs the engine on a scan."""

import dataclasses
import difflib
import typing
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from ptycho_torch.config.base import (
    PRECISION_HELP,
    Precision,
    document_settings,
    option,
    require_not_negative,
    require_positive,
)
from ptycho_torch.config.values import convert_text, require_type, value_type
from ptycho_torch.core.deferred import call_deferred
from ptycho_torch.core.errors import ConfigError
from ptycho_torch.core.observer import Observer

if TYPE_CHECKING:  # the layer above; at run time it would make --help of every command import NumPy
    from ptycho_torch.data.reconstruction import Reconstruction
    from ptycho_torch.data.scan import Scan

EPOCHS_HELP = "passes over all patterns"
BATCH_SIZE_HELP = "patterns per batch"
BATCHES_HELP = "random: patterns of a batch from the whole field; compact: neighboring patterns"
STEP_HELP = "step of the object: 1 is the exact step; for adam the change of |object| per batch"
MOMENTUM_HELP = "fraction of the previous step that is repeated"
RELAXATION_HELP = "relaxation parameter beta"


def internal(default: Any, help: str) -> Any:
    """Return a dataclass field for a setting that Python code may set, and that has no flag."""
    return dataclasses.field(default=default, metadata={"help": help, "internal": True})


@document_settings
@dataclass(frozen=True, kw_only=True)
class EngineOptions:
    """Options of an engine: the base class, with the options that all engines share."""

    engine: ClassVar[str] = ""
    """Name of the engine on the command line."""

    batch_size: int | None = option(None, BATCH_SIZE_HELP)
    update_positions: bool = option(False, "refine the scan positions", group="Positions")
    position_bound: float = option(
        5.0, "largest displacement of a scan position along each axis, in pixels", group="Positions"
    )

    def __post_init__(self) -> None:
        hints = typing.get_type_hints(type(self))
        for name, hint in hints.items():
            require_type(name, getattr(self, name), hint)
        require_positive(self, "batch_size", "position_bound")
        for name, hint in hints.items():
            value, (kind, choices) = getattr(self, name), value_type(hint)
            if kind is Path and isinstance(value, str):
                object.__setattr__(self, name, Path(value))
            if choices and value not in choices:
                raise ConfigError(f"`{name}` is {value}; expected one of {', '.join(sorted(choices))}")

    def run(
        self,
        scan: "Scan",
        *,
        initial: Any = None,
        device: str = "auto",
        seed: int = 0,
        holdout: float = 0.0,
        observer: Observer | None = None,
    ) -> "Reconstruction":
        """Reconstruct ``scan`` with this engine alone.

        Args:
            scan: the diffraction patterns, positions and probe.
            initial: initial estimate: a :class:`~ptycho_torch.data.reconstruction.Reconstruction`, or a complex object
                (rows, columns) whose pixel [0, 0] is at the origin of the object coordinates. None: an object of ones.
            device: ``auto``, ``cpu``, ``cuda`` or ``mps``.
            seed: seed of every random choice.
            holdout: fraction of the detector pixels that iterative engines do not use, for cross-validation.
            observer: receives the progress.

        Returns:
            The reconstruction, with its history and metadata.

        Raises:
            PtychoError: an option or the scan cannot be used.
        """
        result: Reconstruction = call_deferred(
            "ptycho_torch.engines.pipeline:run_stages",
            (self,),
            scan,
            initial=initial,
            device=device,
            seed=seed,
            holdout=holdout,
            observer=observer,
        )
        return result


@document_settings
@dataclass(frozen=True, kw_only=True)
class IterativeOptions(EngineOptions):
    """Options that all iterative engines share."""

    epochs: int = option(20, EPOCHS_HELP)
    time_limit: float | None = option(None, "seconds after which no further batch starts; default: none")
    patience: int | None = option(
        None,
        "epochs without a better prediction of the held-out pixels after which the engine stops and "
        "restores its best epoch; default: no early stop",
    )
    batches: Literal["random", "compact"] = option("random", BATCHES_HELP)
    loss: Literal["amplitude", "poisson"] = option("amplitude", "noise model of the patterns")
    update_probe: bool = option(False, "update the probe too, which measured data needs", group="Probe")
    probe_start: int = option(0, "first epoch that updates the probe", group="Probe")
    probe_modes: int | None = option(
        None, "incoherent probe modes; default: as many as the initial probe has", group="Probe"
    )
    position_start: int = option(
        3, "first epoch that refines positions: in earlier epochs the object is too rough", group="Positions"
    )
    update_background: bool = option(
        False, "fit a background that is the same in all patterns", group="Nuisance parameters"
    )
    position_model: Literal["free", "affine"] = option(
        "free",
        "free: each position by itself; affine: all positions by one scale, rotation and shear",
        group="Positions",
    )
    update_intensity: bool = option(
        False, "fit the power of the probe in each pattern, for sources that fluctuate", group="Nuisance parameters"
    )
    background_start: float = internal(
        0.3, "fraction of the run after which the background is fitted: an earlier fit takes up errors of the object"
    )
    support: Path | None = option(
        None,
        "NPZ file with support (0 to 1 per object pixel) and origin_yx; the object is constant outside the support",
        group="Object",
    )
    max_amplitude: float | None = option(
        None,
        "largest amplitude of the object, in the result's unit, in which vacuum is not exactly 1; default: none",
        group="Object",
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        require_positive(self, "time_limit", "probe_modes", "patience", "max_amplitude")
        require_not_negative(self, "epochs", "probe_start", "position_start")

    def is_background_fitted(self, epoch: int) -> bool:
        """Return True if the background is fitted in ``epoch``, counted from 0."""
        return self.update_background and epoch >= self.background_start * self.epochs

    @property
    def fixed_probe(self) -> bool:
        """Return True if the probe at every position stays the same during the run."""
        return not (self.update_probe or self.update_positions or self.update_intensity)

    def resolve_batch_size(self, patterns: int) -> int:
        """Return the patterns per batch for a scan of so many ``patterns``."""
        assert self.batch_size is not None  # each engine has a default
        return max(1, min(self.batch_size, patterns))


@document_settings
@dataclass(frozen=True, kw_only=True)
class RefinementOptions(IterativeOptions):
    """Options of the engines that refine positions from their exit wave updates."""

    position_method: Literal["gradient", "correlation"] = option(
        "gradient",
        "estimator of the displacements: gradient, by least squares; correlation, by cross-correlation peaks",
        group="Positions",
    )


def _require_momentum(momentum: float | None) -> None:
    if momentum is not None and not 0 <= momentum < 1:
        raise ConfigError(f"`momentum` is {momentum}; expected at least 0 and below 1")


@document_settings
@dataclass(frozen=True, kw_only=True)
class PIE(RefinementOptions):
    """Options of the batched ptychographic iterative engine."""

    engine: ClassVar[str] = "pie"

    batch_size: int | None = option(None, f"{BATCH_SIZE_HELP}; default: 48, or 32 where the probe is updated")
    step: float = option(0.5, STEP_HELP)
    momentum: float | None = option(None, f"{MOMENTUM_HELP}; default: estimated from the overlap")
    decay_start: float = internal(0.4, "fraction of the run after which momentum ends and the steps decrease")
    final_step: float = internal(0.05, "step at the end of the run")
    overload_ratio: float = internal(
        1.5, "illumination of a batch over the mean of all batches beyond which the batch shortens its step"
    )
    probe_step: float = internal(1.0, "step of the probe: 1 is the exact step")
    divisor_floor: float = internal(0.01, "illumination added to the divisor, as a fraction of its maximum")

    def __post_init__(self) -> None:
        super().__post_init__()
        require_positive(self, "step")
        _require_momentum(self.momentum)

    def resolve_batch_size(self, patterns: int) -> int:
        return max(1, min(self.batch_size or (32 if self.update_probe else 48), patterns))


@document_settings
@dataclass(frozen=True, kw_only=True)
class EPIE(RefinementOptions):
    """Options of the extended ptychographic iterative engine."""

    engine: ClassVar[str] = "epie"

    epochs: int = option(30, EPOCHS_HELP)
    batch_size: int | None = option(8, BATCH_SIZE_HELP)
    step: float = option(1.0, STEP_HELP)
    decay_start: float = internal(0.5, "fraction of the run after which the steps decrease")
    final_step: float = internal(0.1, "step at the end of the run")

    def __post_init__(self) -> None:
        super().__post_init__()
        require_positive(self, "step")


@document_settings
@dataclass(frozen=True, kw_only=True)
class RPIE(EPIE):
    """Options of the regularized ptychographic iterative engine."""

    engine: ClassVar[str] = "rpie"

    epochs: int = option(20, EPOCHS_HELP)
    alpha: float = option(0.1, "weight of the maximum illumination in the divisor; 1 is epie")

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.alpha <= 1:
            raise ConfigError(f"`alpha` is {self.alpha}; expected above 0 and at most 1")


@document_settings
@dataclass(frozen=True, kw_only=True)
class LSQML(RefinementOptions):
    """Options of the least-squares maximum likelihood engine."""

    engine: ClassVar[str] = "lsqml"

    epochs: int = option(16, EPOCHS_HELP)
    batch_size: int | None = option(16, BATCH_SIZE_HELP)
    batches: Literal["random", "compact"] = option("compact", BATCHES_HELP)
    step: float = option(1.0, STEP_HELP)
    momentum: float | None = option(None, f"{MOMENTUM_HELP}; default: estimated from the overlap")
    decay_start: float = internal(0.5, "fraction of the run after which the steps decrease")
    final_step: float = internal(0.05, "step at the end of the run, momentum included")
    edge_damping: float = internal(0.2, "fraction of the illumination by all patterns that is added to the divisor")
    damping: float = internal(
        0.01, "fraction of the mean square of a direction below which a pattern has no weight in the step length"
    )
    probe_step: float = internal(1.0, "step of the probe: 1 is the least-squares step")

    def __post_init__(self) -> None:
        super().__post_init__()
        require_positive(self, "step")
        _require_momentum(self.momentum)


@document_settings
@dataclass(frozen=True, kw_only=True)
class ProjectionOptions(RefinementOptions):
    """Options that difference map and RAAR share."""

    epochs: int = option(60, EPOCHS_HELP)
    batch_size: int | None = option(64, BATCH_SIZE_HELP)
    relaxation: float = option(0.8, RELAXATION_HELP)
    raar_start: float = internal(0.3, "fraction of the run after which the difference map continues as RAAR")
    alternation_start: float = internal(0.9, "fraction of the run after which the projections alternate")
    divisor_floor: float = internal(1e-4, "illumination added to the divisors, as a fraction of its maximum")

    def __post_init__(self) -> None:
        super().__post_init__()
        require_positive(self, "relaxation")


@document_settings
@dataclass(frozen=True, kw_only=True)
class DifferenceMap(ProjectionOptions):
    """Options of the difference map."""

    engine: ClassVar[str] = "dm"


@document_settings
@dataclass(frozen=True, kw_only=True)
class RAAR(ProjectionOptions):
    """Options of relaxed averaged alternating reflections."""

    engine: ClassVar[str] = "raar"

    relaxation: float = option(0.9, RELAXATION_HELP)


@document_settings
@dataclass(frozen=True, kw_only=True)
class Gradient(IterativeOptions):
    """Options of the gradient engine: a differentiated likelihood, minimized by an optimizer of torch."""

    engine: ClassVar[str] = "gradient"

    epochs: int = option(24, EPOCHS_HELP)
    batch_size: int | None = option(32, BATCH_SIZE_HELP)
    optimizer: Literal["adam", "sgd", "lbfgs"] = option("adam", "optimizer")
    step: float | None = option(None, f"{STEP_HELP}; default: the optimizer's")
    momentum: float | None = option(None, f"{MOMENTUM_HELP}; default: the optimizer's")
    tv: float = option(0.0, "weight of the total variation of the object", group="Object")
    smoothness: float = option(
        0.0, "weight of the squared differences between neighboring pixels of the object", group="Object"
    )
    decay_start: float = internal(0.3, "fraction of the run after which the steps of adam and sgd decrease")
    final_step: float = internal(0.02, "step at the end of the run, as a fraction of the first step")
    eps: float = internal(
        0.06, "adam: errors below eps, in units of the step, are corrected in proportion, so that noise is not fitted"
    )
    probe_step: float = internal(0.2, "adam: step of the probe over the step of the object, relative to its maximum")
    background_step: float = internal(1.0, "adam: step of the square root of the background, relative to the data")
    position_step: float = internal(1.0, "adam: step of a position per epoch, in pixels")

    def __post_init__(self) -> None:
        super().__post_init__()
        require_positive(self, "step")
        require_not_negative(self, "tv", "smoothness")
        if self.momentum is not None and self.optimizer == "lbfgs":
            raise ConfigError(
                f"`momentum` is {self.momentum}, and lbfgs has none; leave it out, or set `optimizer` to sgd"
            )
        _require_momentum(self.momentum)


@document_settings
@dataclass(frozen=True, kw_only=True)
class NetworkEngine(EngineOptions):
    """Options of a trained network as an engine: one pass over the scan, whose patches are stitched."""

    engine: ClassVar[str] = "neural"

    model: Any = dataclasses.field(
        default=None, kw_only=False, metadata={"help": "a trained model in memory, or its folder", "internal": True}
    )
    model_path: Path | None = option(None, "folder of a model from train or pretrain", group="Files")
    batch_size: int | None = option(
        64, f"{BATCH_SIZE_HELP}; the result depends on it only by rounding", group="Computing"
    )
    probe: Path | None = option(
        None,
        "scan file or reconstruction.npz with the probe",
        group="Probe",
        default_help="the probe trained on this scan, otherwise the only probe of the model, otherwise the probe of "
        "the scan file",
    )
    positions: Path | None = option(
        None,
        "reconstruction.npz or scan file with the scan positions",
        group="Positions",
        default_help="the positions trained on this scan, otherwise the positions of the scan file",
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
    precision: Precision = option("auto", PRECISION_HELP, group="Computing")
    onnx: Path | None = option(
        None, "file from export; onnxruntime runs its network on the CPU in place of torch", group="Files"
    )
    uncertainty: bool = option(
        False, "compute the standard deviation of each pixel, which doubles the time of the network", group="Result"
    )

    def __post_init__(self) -> None:
        if isinstance(self.model, str | Path):
            object.__setattr__(self, "model_path", Path(self.model))
            object.__setattr__(self, "model", None)
        super().__post_init__()
        if self.model is not None and not hasattr(self.model, "predict"):
            raise ConfigError(
                f"`model` is of type {type(self.model).__name__}; expected a Model or the folder of one; read a folder "
                "with load_model(folder)"
            )
        require_positive(self, "n_images", "gridsize")
        if self.onnx and self.precision == "bf16":
            raise ConfigError(
                "`precision` is bf16 and `onnx` is set; expected fp32, as onnxruntime computes; omit one of them"
            )


ENGINES: dict[str, type[EngineOptions]] = {
    options.engine: options for options in (PIE, EPIE, RPIE, LSQML, DifferenceMap, RAAR, Gradient, NetworkEngine)
}
"""The options class of each engine by the name of the engine."""

ITERATIVE_ENGINES = tuple(name for name, options in ENGINES.items() if issubclass(options, IterativeOptions))
"""Names of the iterative engines."""


def get_engine_class(name: str) -> type[EngineOptions]:
    """Return the options class of the engine ``name``.

    Raises:
        ConfigError: no engine has that name.
    """
    if name not in ENGINES:
        raise ConfigError(f"`engine` is {name}; expected one of {', '.join(sorted(ENGINES))}")
    return ENGINES[name]


def iterate_settings(options: type[EngineOptions]) -> Iterator[dataclasses.Field[Any]]:
    """Iterate over the fields of an options class that text can set."""
    return (field for field in dataclasses.fields(options) if not field.metadata.get("internal"))


def find_engines_with(setting: str) -> list[str]:
    """Return the sorted names of the engines that have ``setting``."""
    return sorted(
        name for name, options in ENGINES.items() if setting in {field.name for field in iterate_settings(options)}
    )


def make_engine_options(engine: str, values: dict[str, Any]) -> EngineOptions:
    """Return the options of the engine ``engine`` with ``values`` by name.

    Raises:
        ConfigError: an unknown engine, a setting that the engine does not use, or a value out of range.
    """
    options = get_engine_class(engine)
    used = {field.name for field in iterate_settings(options)}
    for name, value in values.items():
        if name not in used:
            raise ConfigError(
                f"`{name}` is {value}, and {engine} does not use it; leave it out, or set `engine` to one that does: "
                f"{', '.join(find_engines_with(name))}"
            )
    return options(**values)


def parse_stage(text: str, setting: str) -> EngineOptions:
    """Return the engine options that ``engine:name=value,name=value`` describes.

    Args:
        text: the name of an engine, with its settings behind a colon.
        setting: name of the setting that holds the text, for errors.

    Raises:
        ConfigError: an unknown engine or setting, or a bad value.
    """
    engine, _, rest = text.partition(":")
    prefix = f"`{setting}` {text!r}"
    hints = {
        field.name: typing.get_type_hints(options)[field.name]
        for options in ENGINES.values()
        for field in iterate_settings(options)
    }
    values: dict[str, Any] = {}
    for part in filter(None, rest.split(",")):
        name, equals, value = (piece.strip() for piece in part.partition("="))
        name = name.replace("-", "_")
        if name not in hints:
            classes = [ENGINES[engine]] if engine in ENGINES else list(ENGINES.values())
            names = sorted({field.name for options in classes for field in iterate_settings(options)})
            nearest = difflib.get_close_matches(name, names, n=1)
            hint = f" (did you mean {nearest[0]}?)" if nearest else ""
            raise ConfigError(f"{prefix}: unknown setting {name}{hint}; expected one of {', '.join(names)}")
        if value_type(hints[name])[0] is bool and not value:
            value = "true"
        if not value or not (equals or value == "true"):
            raise ConfigError(f"{prefix}: {part!r} is not name=value, as in gradient:epochs=20,batch_size=64")
        try:
            values[name] = convert_text(value, hints[name])
        except (ValueError, OverflowError) as error:
            raise ConfigError(f"{prefix}: {name} is {value!r} ({error})") from error
    try:
        return make_engine_options(engine, values)
    except ConfigError as error:
        raise ConfigError(f"{prefix}: {error}") from error
