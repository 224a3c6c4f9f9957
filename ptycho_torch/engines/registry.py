"""The iterative engines by name. A new one is a new entry here; its tests follow from the name."""

from collections.abc import Callable
from dataclasses import fields
from typing import NamedTuple

from ptycho_torch.config.engines import StageConfig
from ptycho_torch.core.errors import ConfigError
from ptycho_torch.engines.constraints import Constraint, read_support
from ptycho_torch.engines.difference_map import DifferenceMap, Projections, ProjectionSettings, Raar
from ptycho_torch.engines.epie import Epie, EpieSettings
from ptycho_torch.engines.gradient import Gradient, GradientSettings
from ptycho_torch.engines.lsqml import Lsqml, LsqmlSettings
from ptycho_torch.engines.nuisance import RefinementSettings
from ptycho_torch.engines.pie import Pie, PieSettings
from ptycho_torch.engines.runner import Engine, EngineSchedule
from ptycho_torch.engines.state import Measurement, ReconstructionState


class EngineEntry(NamedTuple):
    """How to make an engine, and what it runs with unless told otherwise."""

    make: Callable[[Measurement, ReconstructionState, StageConfig, int], Engine]
    """From the measurement, the estimate that it improves, the settings and the batch size."""

    epochs: int
    batch_size: int
    probe_batch_size: int
    """Patterns a batch where the probe is learned too."""

    batches: str = "random"
    specific_settings: frozenset[str] = frozenset()
    """Settings that it uses, of those that not every iterative engine does."""


def make_refinement_settings(stage: StageConfig) -> RefinementSettings:
    """What a stage learns besides the object."""
    return RefinementSettings(
        stage.update_probe,
        stage.update_positions,
        stage.position_start,
        stage.position_bound,
        stage.position_method,
        stage.position_model,
        update_background=stage.update_background,
        update_intensity=stage.update_intensity,
    )


def _make_pie(measurement: Measurement, state: ReconstructionState, stage: StageConfig, batch_size: int) -> Engine:
    given = {"step": stage.step, "momentum": stage.momentum}
    settings = PieSettings(
        refine=make_refinement_settings(stage),
        probe_start=stage.probe_start,
        **{name: value for name, value in given.items() if value is not None},
    )
    return Pie(measurement, state, settings, batch_size)


def _make_lsqml(measurement: Measurement, state: ReconstructionState, stage: StageConfig, batch_size: int) -> Engine:
    given = {"step": stage.step, "momentum": stage.momentum}
    settings = LsqmlSettings(
        refine=make_refinement_settings(stage),
        probe_start=stage.probe_start,
        **{name: value for name, value in given.items() if value is not None},
    )
    return Lsqml(measurement, state, settings, batch_size)


def _make_epie_factory(
    alpha: float,
) -> Callable[[Measurement, ReconstructionState, StageConfig, int], Engine]:
    def make(measurement: Measurement, state: ReconstructionState, stage: StageConfig, batch_size: int) -> Engine:
        del batch_size  # each batch is bounded by its own light
        settings = EpieSettings(
            alpha=alpha if stage.alpha is None else stage.alpha,
            refine=make_refinement_settings(stage),
            probe_start=stage.probe_start,
            **({} if stage.step is None else {"step": stage.step}),
        )
        return Epie(measurement, state, settings)

    return make


def _make_projections_factory(
    kind: type[Projections], relaxation: float
) -> Callable[[Measurement, ReconstructionState, StageConfig, int], Engine]:
    def make(measurement: Measurement, state: ReconstructionState, stage: StageConfig, batch_size: int) -> Engine:
        settings = ProjectionSettings(
            relaxation if stage.relaxation is None else stage.relaxation,
            refine=make_refinement_settings(stage),
            probe_start=stage.probe_start,
        )
        return kind(measurement, state, settings, batch_size)

    return make


def _make_gradient(measurement: Measurement, state: ReconstructionState, stage: StageConfig, batch_size: int) -> Engine:
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
    return Gradient(measurement, state, settings, batch_size)


REFINEMENT_SETTING_NAMES = frozenset({"position_method", "position_model", "update_intensity"})
"""What engines use that refine by :mod:`~ptycho_torch.engines.nuisance`."""

ENGINES: dict[str, EngineEntry] = {
    "pie": EngineEntry(_make_pie, 20, 48, 32, specific_settings=REFINEMENT_SETTING_NAMES | {"step", "momentum"}),
    "epie": EngineEntry(_make_epie_factory(1.0), 30, 8, 8, specific_settings=REFINEMENT_SETTING_NAMES | {"step"}),
    "rpie": EngineEntry(
        _make_epie_factory(0.1), 20, 8, 8, specific_settings=REFINEMENT_SETTING_NAMES | {"step", "alpha"}
    ),
    "lsqml": EngineEntry(
        _make_lsqml, 16, 16, 16, "compact", specific_settings=REFINEMENT_SETTING_NAMES | {"step", "momentum"}
    ),
    "dm": EngineEntry(
        _make_projections_factory(DifferenceMap, 0.8),
        60,
        64,
        64,
        specific_settings=REFINEMENT_SETTING_NAMES | {"relaxation"},
    ),
    "raar": EngineEntry(
        _make_projections_factory(Raar, 0.9), 60, 64, 64, specific_settings=REFINEMENT_SETTING_NAMES | {"relaxation"}
    ),
    "gradient": EngineEntry(
        _make_gradient, 24, 32, 32, specific_settings=frozenset({"step", "momentum", "optimizer", "tv", "smoothness"})
    ),
}

NETWORK_SETTING_NAMES = frozenset({"engine", "batch_size", "model_path", "update_positions", "position_bound"})
"""All the settings that the neural engine uses."""


def check_engine(stage: StageConfig) -> None:
    """Raise ConfigError where there is no engine of that name, or it would ignore a setting that was made."""
    known = sorted([*ENGINES, "neural"])
    if stage.engine not in known:
        raise ConfigError(f"--engine is {stage.engine}: known are {', '.join(known)}")
    for setting in fields(StageConfig):
        value = getattr(stage, setting.name)
        if value != setting.default and not is_setting_used(stage.engine, setting.name):
            others = ", ".join(name for name in known if is_setting_used(name, setting.name))
            raise ConfigError(
                f"--{setting.name} is {value}, and {stage.engine} does not use it; leave it out, or take an --engine "
                f"that does: {others}"
            )


def is_setting_used(engine: str, setting: str) -> bool:
    """Whether the setting of a stage has an effect on an engine. What no entry names, every iterative engine uses."""
    if engine == "neural":
        return setting in NETWORK_SETTING_NAMES
    named = {"model_path"}.union(*(entry.specific_settings for entry in ENGINES.values()))
    return setting not in named or setting in ENGINES[engine].specific_settings


def make_schedule(stage: StageConfig) -> EngineSchedule:
    """The schedule of a stage: what it says, else its engine's.

    Raises:
        ConfigError: there is no engine of that name.
    """
    check_engine(stage)
    entry = ENGINES[stage.engine]
    return EngineSchedule(
        entry.epochs if stage.epochs is None else stage.epochs,
        stage.batch_size or (entry.probe_batch_size if stage.update_probe else entry.batch_size),
        stage.batches or entry.batches,
        stage.time_limit,
        stage.patience,
    )


def make_engine(measurement: Measurement, state: ReconstructionState, stage: StageConfig) -> Engine:
    """The engine of ``stage``, ready to run.

    Raises:
        ConfigError: there is no engine of that name.
    """
    batch_size = min(make_schedule(stage).batch_size, len(measurement))
    engine = ENGINES[stage.engine].make(measurement, state, stage, batch_size)
    engine.constraint = make_constraint(stage, state)
    return engine


def make_constraint(stage: StageConfig, state: ReconstructionState) -> Constraint | None:
    """What ``stage`` holds the object to; None: to nothing.

    Raises:
        DataError: the file with the support cannot be used.
    """
    if stage.support is None and stage.max_amplitude is None:
        return None
    support = None if stage.support is None else read_support(stage.support, state)
    return Constraint(support, stage.max_amplitude)
