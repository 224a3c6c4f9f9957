"""Settings of the iterative engines."""

import typing
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from ptycho_torch.config.base import option, require_not_negative, require_positive
from ptycho_torch.config.values import convert_text, value_type
from ptycho_torch.core.errors import ConfigError


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


def parse_stage(text: str, setting: str) -> StageConfig:
    """Return the stage that ``engine:name=value,name=value`` describes.

    Args:
        text: the name of an engine, and its settings behind a colon.
        setting: name of the setting that holds the text, for errors.

    Raises:
        ConfigError: an unknown setting or a bad value.
    """
    engine, _, rest = text.partition(":")
    hints = typing.get_type_hints(StageConfig)
    values: dict[str, typing.Any] = {"engine": engine}
    for part in filter(None, rest.split(",")):
        name, equals, value = (piece.strip() for piece in part.partition("="))
        name = name.replace("-", "_")
        if name not in hints:
            raise ConfigError(f"{setting} {text!r}: unknown setting {name}; known are {', '.join(sorted(hints))}")
        if value_type(hints[name])[0] is bool and not value:
            value = "true"
        if not value or not (equals or value == "true"):
            raise ConfigError(f"{setting} {text!r}: {part!r} is not name=value, as in gradient:epochs=20,batch_size=64")
        try:
            values[name] = convert_text(value, hints[name])
        except (ValueError, OverflowError) as error:
            raise ConfigError(f"{setting} {text!r}: {name} is {value!r} ({error})") from error
    try:
        return StageConfig(**values)
    except ConfigError as error:
        raise ConfigError(f"{setting} {text!r}: {error}") from error
