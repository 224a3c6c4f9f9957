"""The iterative engines by name. A new one is a new entry here; its tests follow from the name."""

from collections.abc import Callable
from dataclasses import fields
from typing import NamedTuple

from ptycho_torch.config.engines import StageConfig
from ptycho_torch.core.errors import ConfigError
from ptycho_torch.engines.constraints import Constraint, read_support
from ptycho_torch.engines.difference_map import DifferenceMap, Projections, ProjectionSettings, Raar
from ptycho_torch.engines.epie import Sequential, SequentialSettings
from ptycho_torch.engines.gradient import Gradient, GradientSettings
from ptycho_torch.engines.lsqml import Lsqml, LsqmlSettings
from ptycho_torch.engines.nuisance import RefineSettings
from ptycho_torch.engines.pie import Pie, PieSettings
from ptycho_torch.engines.runner import Engine, Schedule
from ptycho_torch.engines.state import Estimate, Measurement


class Entry(NamedTuple):
    """How to make an engine, and what it runs with unless told otherwise."""

    make: Callable[[Measurement, Estimate, StageConfig, int], Engine]
    """From the measurement, the estimate that it improves, the settings and the batch size."""

    epochs: int
    batch_size: int
    probe_batch_size: int
    """Patterns a batch where the probe is learned too."""

    batches: str = "random"
    uses: frozenset[str] = frozenset()
    """Settings that it uses, of those that not every iterative engine does."""


def refinement_of(stage: StageConfig) -> RefineSettings:
    """What a stage learns besides the object."""
    return RefineSettings(
        stage.update_probe,
        stage.update_positions,
        stage.position_start,
        stage.position_bound,
        stage.position_method,
        stage.position_model,
        update_background=stage.update_background,
        update_intensity=stage.update_intensity,
    )


def _pie(measurement: Measurement, estimate: Estimate, stage: StageConfig, batch_size: int) -> Engine:
    given = {"step": stage.step, "momentum": stage.momentum}
    settings = PieSettings(
        refine=refinement_of(stage),
        probe_start=stage.probe_start,
        **{name: value for name, value in given.items() if value is not None},
    )
    return Pie(measurement, estimate, settings, batch_size)


def _lsqml(measurement: Measurement, estimate: Estimate, stage: StageConfig, batch_size: int) -> Engine:
    given = {"step": stage.step, "momentum": stage.momentum}
    settings = LsqmlSettings(
        refine=refinement_of(stage),
        probe_start=stage.probe_start,
        **{name: value for name, value in given.items() if value is not None},
    )
    return Lsqml(measurement, estimate, settings, batch_size)


def _sequential(
    alpha: float,
) -> Callable[[Measurement, Estimate, StageConfig, int], Engine]:
    def make(measurement: Measurement, estimate: Estimate, stage: StageConfig, batch_size: int) -> Engine:
        del batch_size  # each batch is bounded by its own light
        settings = SequentialSettings(
            alpha=alpha if stage.alpha is None else stage.alpha,
            refine=refinement_of(stage),
            probe_start=stage.probe_start,
            **({} if stage.step is None else {"step": stage.step}),
        )
        return Sequential(measurement, estimate, settings)

    return make


def _projections(
    kind: type[Projections], relaxation: float
) -> Callable[[Measurement, Estimate, StageConfig, int], Engine]:
    def make(measurement: Measurement, estimate: Estimate, stage: StageConfig, batch_size: int) -> Engine:
        settings = ProjectionSettings(
            relaxation if stage.relaxation is None else stage.relaxation,
            refine=refinement_of(stage),
            probe_start=stage.probe_start,
        )
        return kind(measurement, estimate, settings, batch_size)

    return make


def _gradient(measurement: Measurement, estimate: Estimate, stage: StageConfig, batch_size: int) -> Engine:
    settings = GradientSettings(
        optimizer=stage.optimizer or "adam",
        step=stage.step,
        momentum=stage.momentum,
        update_probe=stage.update_probe,
        probe_start=stage.probe_start,
        update_positions=stage.update_positions,
        position_start=stage.position_start,
        position_bound=stage.position_bound,
        update_background=stage.update_background,
        tv=stage.tv,
        smoothness=stage.smoothness,
    )
    return Gradient(measurement, estimate, settings, batch_size)


REFINED = frozenset({"position_method", "position_model", "update_intensity"})
"""What engines use that refine by :mod:`~ptycho_torch.engines.nuisance`."""

ENGINES: dict[str, Entry] = {
    "pie": Entry(_pie, 20, 48, 32, uses=REFINED | {"step", "momentum"}),
    "epie": Entry(_sequential(1.0), 30, 8, 8, uses=REFINED | {"step"}),
    "rpie": Entry(_sequential(0.1), 20, 8, 8, uses=REFINED | {"step", "alpha"}),
    "lsqml": Entry(_lsqml, 16, 16, 16, "compact", uses=REFINED | {"step", "momentum"}),
    "dm": Entry(_projections(DifferenceMap, 0.8), 60, 64, 64, uses=REFINED | {"relaxation"}),
    "raar": Entry(_projections(Raar, 0.9), 60, 64, 64, uses=REFINED | {"relaxation"}),
    "gradient": Entry(_gradient, 24, 32, 32, uses=frozenset({"step", "momentum", "optimizer", "tv", "smoothness"})),
}

OF_NETWORK = frozenset({"engine", "batch_size", "model_path", "update_positions", "position_bound"})
"""All the settings that the neural engine uses."""


def require_engine(stage: StageConfig) -> None:
    """Raise ConfigError where there is no engine of that name, or it would ignore a setting that was made."""
    known = sorted([*ENGINES, "neural"])
    if stage.engine not in known:
        raise ConfigError(f"--engine is {stage.engine}: known are {', '.join(known)}")
    for setting in fields(StageConfig):
        value = getattr(stage, setting.name)
        if value != setting.default and not uses(stage.engine, setting.name):
            others = ", ".join(name for name in known if uses(name, setting.name))
            raise ConfigError(
                f"--{setting.name} is {value}, and {stage.engine} does not use it; leave it out, or take an --engine "
                f"that does: {others}"
            )


def uses(engine: str, setting: str) -> bool:
    """Whether the setting of a stage has an effect on an engine. What no entry names, every iterative engine uses."""
    if engine == "neural":
        return setting in OF_NETWORK
    named = {"model_path"}.union(*(entry.uses for entry in ENGINES.values()))
    return setting not in named or setting in ENGINES[engine].uses


def schedule_of(stage: StageConfig) -> Schedule:
    """The schedule of a stage: what it says, else its engine's.

    Raises:
        ConfigError: there is no engine of that name.
    """
    require_engine(stage)
    entry = ENGINES[stage.engine]
    return Schedule(
        entry.epochs if stage.epochs is None else stage.epochs,
        stage.batch_size or (entry.probe_batch_size if stage.update_probe else entry.batch_size),
        stage.batches or entry.batches,
        stage.time_limit,
        stage.patience,
    )


def make_engine(measurement: Measurement, estimate: Estimate, stage: StageConfig) -> Engine:
    """The engine of ``stage``, ready to run.

    Raises:
        ConfigError: there is no engine of that name.
    """
    batch_size = min(schedule_of(stage).batch_size, len(measurement))
    engine = ENGINES[stage.engine].make(measurement, estimate, stage, batch_size)
    engine.constraint = constraint_of(stage, estimate)
    return engine


def constraint_of(stage: StageConfig, estimate: Estimate) -> Constraint | None:
    """What ``stage`` holds the object to; None: to nothing.

    Raises:
        DataError: the file with the support cannot be used.
    """
    if stage.support is None and stage.max_amplitude is None:
        return None
    support = None if stage.support is None else read_support(stage.support, estimate)
    return Constraint(support, stage.max_amplitude)
