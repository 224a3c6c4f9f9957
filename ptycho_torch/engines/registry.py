"""The iterative engines by name. A new one is a new entry here; its tests follow from the name."""

from collections.abc import Callable
from typing import NamedTuple

from ptycho_torch.core.config import StageConfig
from ptycho_torch.core.errors import ConfigError
from ptycho_torch.engines.gradient import Gradient, GradientSettings
from ptycho_torch.engines.loop import Engine, Schedule
from ptycho_torch.engines.lsqml import Lsqml, LsqmlSettings
from ptycho_torch.engines.pie import Pie, PieSettings
from ptycho_torch.engines.problem import Estimate, Measurement
from ptycho_torch.engines.projections import DifferenceMap, Projections, ProjectionSettings, Raar
from ptycho_torch.engines.refine import RefineSettings


class Entry(NamedTuple):
    """How to make an engine, and what it runs with unless told otherwise."""

    make: Callable[[Measurement, Estimate, StageConfig, int], Engine]
    """From the measurement, the estimate that it improves, the settings and the batch size."""

    epochs: int
    batch_size: int
    probe_batch_size: int
    """Patterns a batch where the probe is learned too."""

    batches: str = "random"


def refinement_of(stage: StageConfig) -> RefineSettings:
    """What a stage learns besides the object."""
    return RefineSettings(
        stage.update_probe,
        stage.update_positions,
        stage.position_start,
        stage.position_bound,
        update_background=stage.update_background,
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


ENGINES: dict[str, Entry] = {
    "pie": Entry(_pie, epochs=20, batch_size=48, probe_batch_size=32),
    "lsqml": Entry(_lsqml, epochs=16, batch_size=16, probe_batch_size=16, batches="compact"),
    "dm": Entry(_projections(DifferenceMap, 0.8), epochs=60, batch_size=64, probe_batch_size=64),
    "raar": Entry(_projections(Raar, 0.9), epochs=60, batch_size=64, probe_batch_size=64),
    "gradient": Entry(_gradient, epochs=24, batch_size=32, probe_batch_size=32),
}


def require_engine(stage: StageConfig) -> None:
    """Raise ConfigError where there is no engine of that name."""
    known = sorted([*ENGINES, "neural"])
    if stage.engine not in known:
        raise ConfigError(f"--engine is {stage.engine}: known are {', '.join(known)}")


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
    )


def make_engine(measurement: Measurement, estimate: Estimate, stage: StageConfig) -> Engine:
    """The engine of ``stage``, ready to run.

    Raises:
        ConfigError: there is no engine of that name.
    """
    batch_size = min(schedule_of(stage).batch_size, len(measurement))
    return ENGINES[stage.engine].make(measurement, estimate, stage, batch_size)
