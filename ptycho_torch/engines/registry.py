"""The iterative engine of each options class, and the constraint that the options describe."""

from typing import Any

from ptycho_torch.config.engines import (
    EPIE,
    LSQML,
    PIE,
    RAAR,
    RPIE,
    DifferenceMap,
    Gradient,
    IterativeOptions,
)
from ptycho_torch.engines.constraints import Constraint, read_support
from ptycho_torch.engines.difference_map import DifferenceMapEngine, RaarEngine
from ptycho_torch.engines.epie import EpieEngine
from ptycho_torch.engines.gradient import GradientEngine
from ptycho_torch.engines.lsqml import LsqmlEngine
from ptycho_torch.engines.pie import PieEngine
from ptycho_torch.engines.runner import Engine
from ptycho_torch.engines.state import Measurement, ReconstructionState

ITERATIVE_ENGINE_CLASSES: dict[type[IterativeOptions], Any] = {
    PIE: PieEngine,
    EPIE: EpieEngine,
    RPIE: EpieEngine,
    LSQML: LsqmlEngine,
    DifferenceMap: DifferenceMapEngine,
    RAAR: RaarEngine,
    Gradient: GradientEngine,
}
"""A new engine needs an options class, an engine class and an entry here; its tests follow from the entry."""


def make_engine(measurement: Measurement, state: ReconstructionState, options: IterativeOptions) -> Engine:
    """Return the engine that ``options`` belong to, ready to run.

    Args:
        measurement: the diffraction patterns.
        state: the initial estimate, which the engine updates.
        options: options of an iterative engine.
    """
    engine: Engine = ITERATIVE_ENGINE_CLASSES[type(options)](measurement, state, options)
    engine.constraint = make_constraint(options, state)
    return engine


def make_constraint(options: IterativeOptions, state: ReconstructionState) -> Constraint | None:
    """Return the constraint on the object that ``options`` describe; None: no constraint.

    Raises:
        DataError: the file with the support cannot be used.
    """
    if options.support is None and options.max_amplitude is None:
        return None
    support = None if options.support is None else read_support(options.support, state)
    return Constraint(support, options.max_amplitude)
