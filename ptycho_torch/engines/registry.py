"""The engine and the stage that belong to each options class."""

import logging
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from ptycho_torch.config.engines import (
    EPIE,
    LSQML,
    PIE,
    RAAR,
    RPIE,
    DifferenceMap,
    EngineOptions,
    Gradient,
    IterativeOptions,
    NetworkEngine,
)
from ptycho_torch.core.errors import ConfigError
from ptycho_torch.data.grouping import Indices
from ptycho_torch.data.holdout import mask_pixels
from ptycho_torch.data.outlier_frames import describe_excluded
from ptycho_torch.data.scan import Scan
from ptycho_torch.engines.constraints import Constraint, read_support
from ptycho_torch.engines.cross_validation import HoldoutPixels
from ptycho_torch.engines.difference_map import DifferenceMapEngine, RaarEngine
from ptycho_torch.engines.epie import EpieEngine
from ptycho_torch.engines.gradient import GradientEngine
from ptycho_torch.engines.initialization import fit_object_scale, set_num_modes
from ptycho_torch.engines.lsqml import LsqmlEngine
from ptycho_torch.engines.network import NetworkStage
from ptycho_torch.engines.pattern_start import (
    compute_totals,
    estimate_background,
    estimate_intensity_levels,
    find_outlier_totals,
)
from ptycho_torch.engines.pie import PieEngine
from ptycho_torch.engines.runner import Engine, EngineRunner
from ptycho_torch.engines.stage import Stage, StageInput
from ptycho_torch.engines.state import Measurement, ReconstructionState, make_measurement
from ptycho_torch.physics.noise import make_noise_model

log = logging.getLogger(__name__)

MAX_GRADIENT_POISSON_PHOTONS = 1e8
"""Photons per pattern above which the gradient engine replaces the Poisson likelihood."""

ITERATIVE_ENGINE_CLASSES: dict[type[IterativeOptions], Any] = {
    PIE: PieEngine,
    EPIE: EpieEngine,
    RPIE: EpieEngine,
    LSQML: LsqmlEngine,
    DifferenceMap: DifferenceMapEngine,
    RAAR: RaarEngine,
    Gradient: GradientEngine,
}
"""Engine class of each options class. A new engine needs both classes and an entry; the tests iterate over it."""


class IterativeStage(Stage):
    """A stage that runs an iterative engine."""

    options: IterativeOptions

    def compute_reach(self, scan: Scan, initial: NDArray[np.float64], device: torch.device) -> float:
        del scan, initial, device
        return self.options.position_bound if self.options.update_positions else 0.0

    def check(self, given: StageInput) -> None:
        if self.options.patience is not None and given.held_out is None:
            raise ConfigError(
                f"`patience` is {self.options.patience} for {self.options.engine}, which needs held-out pixels; set "
                "`holdout`, for example to 0.02"
            )
        make_constraint(self.options, given.state)

    def make_runner(self, given: StageInput) -> EngineRunner:
        self.check(given)
        state, options = given.state, self.options
        if options.update_positions and options.epochs <= options.position_start:
            log.warning(
                "no epoch of %s refines positions: `epochs` is %d and `position_start` is %d; set `epochs` higher",
                options.engine,
                options.epochs,
                options.position_start,
            )
        object_given = bool((state.object != state.object[0, 0]).any())
        scan = given.scan if given.held_out is None else mask_pixels(given.scan, given.held_out)
        measurement = make_measurement(scan, given.photons_per_unit, make_noise_model(options.loss), given.device)
        if options.probe_modes is not None:
            state.probe = set_num_modes(state.probe, options.probe_modes)
        measurement = replace_noise_at_high_dose(measurement, options)
        estimate_start_from_patterns(measurement, state, options)
        state.object = state.object * fit_object_scale(measurement, state)
        engine = make_engine(measurement, state, options)
        seed = given.seed + given.stage_number
        keeps_better_start = object_given and engine.constraint is None and not is_regularized(options)
        return EngineRunner(engine, seed, make_holdout(given), keeps_better_start=keeps_better_start)


def is_regularized(options: IterativeOptions) -> bool:
    """Return True if the engine minimizes more than the error of the patterns."""
    return isinstance(options, Gradient) and bool(options.tv or options.smoothness)


def replace_noise_at_high_dose(measurement: Measurement, options: IterativeOptions) -> Measurement:
    """Return the measurement with amplitudes as noise model where a differentiated Poisson likelihood is too steep.

    The derivative 1 − k / λ has no bound in dim pixels, and at a high dose their sum exceeds all others. There the
    amplitudes have a variance of ¼, and both models agree.
    """
    photons = measurement.photons / len(measurement)
    if options.loss != "poisson" or not isinstance(options, Gradient) or photons < MAX_GRADIENT_POISSON_PHOTONS:
        return measurement
    log.warning("`loss` is poisson at %.3g photons per pattern; gradient uses amplitude, which agrees there", photons)
    return replace(measurement, noise=make_noise_model("amplitude"))


def estimate_start_from_patterns(
    measurement: Measurement, state: ReconstructionState, options: IterativeOptions
) -> None:
    """Start background and intensities from the patterns where they are fitted and have no estimate yet.

    Frames that are far brighter or darker than their neighbors, or have no pixel that counts, are excluded.
    """
    if options.update_background and not bool(state.background.any()):
        background = estimate_background(measurement)
        if bool(background.any()):
            total = float(measurement.counts.sum((1, 2)).median())
            signal = max(0.01, 1 - float(background.sum()) / total)
            log.info("the background starts from the patterns, with %.3g of their photons", 1 - signal)
            state.background = background
            state.probe = state.probe * signal**0.5
    positions, totals = state.positions.numpy(), compute_totals(measurement, state.background)
    levels = estimate_intensity_levels(totals, positions)
    if options.update_intensity and bool((state.intensities == 1).all()) and (levels != 1).any():
        log.info("the source jumps by up to %.3g; the intensities start from the patterns", levels.max() / levels.min())
        state.intensities = torch.from_numpy(levels).to(state.intensities)
    excluded = torch.from_numpy(find_outlier_totals(totals / levels, positions))
    if measurement.mask is not None and len(measurement.mask) == len(measurement):
        excluded = excluded | torch.logical_not(measurement.mask.any(-1).any(-1)).cpu()
    if not bool(excluded.all()) and bool((excluded & torch.logical_not(state.excluded)).any()):
        state.excluded = state.excluded | excluded
        log.warning("%s", describe_excluded(state.excluded.numpy()))


STAGE_CLASSES: dict[type[EngineOptions], Any] = {NetworkEngine: NetworkStage} | dict.fromkeys(
    ITERATIVE_ENGINE_CLASSES, IterativeStage
)
"""The stage of each options class."""


def make_stage(options: EngineOptions) -> Stage:
    """Return the stage that ``options`` describe."""
    stage: Stage = STAGE_CLASSES[type(options)](options)
    return stage


def compute_required_margin(
    stages: Sequence[EngineOptions],
    scan: Scan,
    initial: NDArray[np.float64] | None = None,
    centers: Indices | None = None,
    device: torch.device | None = None,
) -> int:
    """Return the pixels of canvas beyond the outermost patches that suffice wherever ``stages`` move the positions.

    Args:
        stages: options of the stages.
        scan: the scan to reconstruct.
        initial: (m, 2) initial positions of the patterns ``centers``; None: the positions of the scan.
        centers: (m,) indices of the patterns to reconstruct; None: all patterns.
        device: device of the stages.
    """
    positions = scan.positions.copy()
    if initial is not None:
        positions[slice(None) if centers is None else centers] = initial
    where = device or torch.device("cpu")
    return 2 + int(np.ceil(sum(make_stage(options).compute_reach(scan, positions, where) for options in stages)))


def make_holdout(given: StageInput) -> HoldoutPixels | None:
    """Return the held-out pixels of ``given``; None: no pixels are held out."""
    if given.held_out is None:
        return None
    return HoldoutPixels(given.scan, given.held_out, given.photons_per_unit, given.device)


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
