"""PIE, the ptychographic iterative engine, on batches of patterns."""

from collections.abc import Callable

import torch
from torch import Tensor

from ptycho_torch.config.engines import PIE
from ptycho_torch.engines.measurement_model import (
    COARSE_BLOCK_PX,
    ExitWaveUpdate,
    MeasurementModel,
    compute_patterns_per_pixel,
)
from ptycho_torch.engines.nuisance import NuisanceRefiner
from ptycho_torch.engines.runner import Engine
from ptycho_torch.engines.state import Measurement, ReconstructionState

MAX_MOMENTUM = 0.9
"""Largest momentum that is derived from the overlap."""

PROBE_DIVISOR_FLOOR = 0.1
"""Regularization of the probe update, as a fraction of the maximum of ``Σ |O|²``."""


class PieEngine(Engine):
    """Batched PIE: ``O += s Σ P* Δψ / D`` over the patterns of a batch, with Nesterov momentum.

    D is the mean illumination of a pixel by a batch. Where the illumination by the batch exceeds it, D is raised such
    that a step with its full momentum does not exceed the exact step; otherwise a sparse scan, in which one batch is a
    large part of the illumination of a pixel, would diverge. In the last part of the run the momentum is dropped and
    the steps decrease, which averages the noise of the batches.

    For single patterns it is ePIE with a shared denominator: Maiden & Rodenburg, Ultramicroscopy 109, 1256 (2009).
    Momentum as in mPIE: Maiden, Johnson & Li, Optica 4, 736 (2017).
    """

    options: PIE

    def __init__(self, measurement: Measurement, state: ReconstructionState, options: PIE) -> None:
        super().__init__(measurement, state, options)
        self.model = MeasurementModel(measurement, state, fixed_probe=options.fixed_probe)
        self.refiner = NuisanceRefiner(self.model, options)
        self.batch_fraction = options.resolve_batch_size(len(measurement)) / len(measurement)
        self.velocity = torch.zeros_like(state.object)
        self._update_illumination()
        derived = min(MAX_MOMENTUM, self.patterns_per_pixel / (self.patterns_per_pixel + 1))
        self.momentum = derived if options.momentum is None else options.momentum

    def _update_illumination(self) -> None:
        """Recompute the divisors from the current probe and positions."""
        illumination = self.model.make_illumination_map().sum_positions()
        power = self.state.probe.abs().square().sum(0)
        patterns_per_pixel = compute_patterns_per_pixel(illumination, power, len(self.measurement))
        self.patterns_per_pixel = patterns_per_pixel * self.batch_fraction
        floor = self.options.divisor_floor * illumination.amax()
        self._divisor = self.batch_fraction * (illumination + floor)
        self._illumination_map = self.model.make_illumination_map(COARSE_BLOCK_PX)
        self._mean_batch_illumination = self.batch_fraction * self._illumination_map.sum_positions()

    def begin_epoch(self, epoch: int, progress: float) -> None:
        self._epoch = epoch
        if not self.options.fixed_probe:
            self._update_illumination()

    def step(self, indices: Tensor, progress: float) -> float:
        state, options = self.state, self.options
        momentum, step_size = self._compute_step_size(progress)
        look_ahead = momentum * self.velocity
        obj = state.object
        state.object = obj + look_ahead  # Nesterov: the update is computed after the momentum step
        update = self.model.compute_update(indices, excess=options.update_background)
        object_gradient = self.model.compute_object_gradient(update.change, update.probes, indices)
        divisor = self._compute_divisor(indices, step_size / (1 - momentum))
        self.velocity = look_ahead + step_size * object_gradient / divisor
        if options.update_probe and self._epoch >= options.probe_start:
            self._update_probe(update, indices)
            self._update_illumination()
        self.refiner.accumulate(update, indices, self._epoch)
        state.object = obj + self.velocity
        return update.error

    def handle_positions(self) -> None:
        self.model.refresh()

    def end_epoch(self, epoch: int, progress: float) -> None:
        if self.refiner.end_epoch():
            self.velocity = self.refiner.ambiguity_fix.apply(self.velocity)

    def propagate_constraint(self, before: Tensor, change: Callable[[Tensor], Tensor]) -> None:
        self.velocity = change(self.velocity)

    def _compute_divisor(self, indices: Tensor, total_step: float) -> Tensor:
        """Return the divisor (rows, columns) of a batch whose step amounts to ``total_step`` with all its momentum."""
        batch_illumination = self._illumination_map.sum_positions(indices)
        limit = self.options.overload_ratio * self._mean_batch_illumination
        overload = (batch_illumination - limit).clamp_min(0) * total_step
        return self._divisor + self._illumination_map.upsample(overload)

    def _compute_step_size(self, progress: float) -> tuple[float, float]:
        """Return momentum and step size at ``progress`` of the run."""
        options = self.options
        if progress < options.decay_start:
            return self.momentum, options.step * self.step_scale
        first = min(1.0, options.step / (1 - self.momentum))
        decay = (progress - options.decay_start) / (1 - options.decay_start)
        return 0.0, first * (options.final_step / first) ** decay * self.step_scale

    def _update_probe(self, update: ExitWaveUpdate, indices: Tensor) -> None:
        """Update the probe by ``P += s Σ O* Δψ / Σ |O|²``."""
        state = self.state
        probe_gradient = self.model.compute_probe_gradient(update.patches.conj()[:, None] * update.change, indices)
        object_power = update.patches.abs().square().sum(0)
        step_size = self.options.probe_step * self.step_scale
        state.probe = state.probe + step_size * probe_gradient / (
            object_power + PROBE_DIVISOR_FLOOR * object_power.amax()
        )

    def state_dict(self) -> dict[str, Tensor]:
        own = {"velocity": self.velocity, "momentum": torch.tensor(self.momentum, dtype=torch.float64)}
        return own | self.refiner.state_dict()

    def load_state_dict(self, memory: dict[str, Tensor]) -> None:
        self.velocity, self.momentum = memory["velocity"], float(memory["momentum"])
        self.refiner.load_state_dict(memory)

    def reset(self) -> None:
        self.velocity = torch.zeros_like(self.velocity)
