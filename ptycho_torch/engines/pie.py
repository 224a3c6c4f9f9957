"""The ptychographic iterative engine: the exit wave's change, divided by the illumination, added to the object."""

from collections.abc import Callable

import torch
from torch import Tensor

from ptycho_torch.config.engines import PIE
from ptycho_torch.engines.measurement_model import ExitWaveUpdate, MeasurementModel
from ptycho_torch.engines.nuisance import NuisanceRefiner
from ptycho_torch.engines.runner import Engine
from ptycho_torch.engines.state import Measurement, ReconstructionState
from ptycho_torch.physics.forward import project_onto_patches

COARSE_BLOCK_PX = 4
"""Pixels of the blocks on which the illumination of single batches is compared."""


class PieEngine(Engine):
    """Batched PIE: the changes of a batch are summed and divided by the illumination.

    The step of a batch is ``s Σ P* Δψ / D`` with Nesterov's momentum, where D is the light that a batch brings on
    average. Where a batch brings more than that, D is raised so far that the step with all its momentum stays within
    the exact one: a sparse scan, in which a batch is a large share of all light on a pixel, would else diverge. After a
    part of the run the momentum is dropped and the steps fall, so that the noise of the batches averages out.

    For single patterns it is ePIE with a shared denominator: Maiden & Rodenburg, Ultramicroscopy 109, 1256 (2009);
    momentum as in mPIE: Maiden, Johnson & Li, Optica 4, 736 (2017).
    """

    options: PIE

    def __init__(self, measurement: Measurement, state: ReconstructionState, options: PIE) -> None:
        super().__init__(measurement, state, options)
        self.optics = MeasurementModel(measurement, state, fixed_probe=options.fixed_probe)
        self.refinement = NuisanceRefiner(self.optics, options)
        self.batch_fraction = options.resolve_batch_size(len(measurement)) / len(measurement)
        self.velocity = torch.zeros_like(state.object)
        self._update_illumination()
        self.momentum = (
            options.momentum if options.momentum is not None else min(0.9, self.density / (self.density + 1))
        )

    def _update_illumination(self) -> None:
        total = self.optics.make_illumination_map().sum_positions()
        power = self.state.probe.abs().square().sum(0)
        # Patterns that share the light of a pixel, weighted by that light.
        self.density = (
            float(total.square().sum() / (len(self.measurement) * power.square().sum())) * self.batch_fraction
        )
        self._divisor = self.batch_fraction * (total + self.options.divisor_floor * total.amax())
        self._illumination = self.optics.make_illumination_map(COARSE_BLOCK_PX)
        self._coarse_divisor = self.batch_fraction * self._illumination.sum_positions()

    def begin_epoch(self, epoch: int, progress: float) -> None:
        self._epoch = epoch
        if not self.options.fixed_probe:
            self._update_illumination()

    def step(self, indices: Tensor, progress: float) -> float:
        state = self.state
        momentum, size = self._compute_step_size(progress)
        ahead = momentum * self.velocity
        current = state.object
        state.object = current + ahead  # Nesterov: the change is asked for where the momentum leads
        update = self.optics.compute_update(indices, excess=self.options.update_background)
        direction = self.optics.place(project_onto_patches(update.change, update.probes), indices)
        self.velocity = ahead + size * direction / self._compute_divisor(indices, size / (1 - momentum))
        if self.options.update_probe and self._epoch >= self.options.probe_start:
            self._step_probe(update, indices)
            self._update_illumination()
        self.refinement.accumulate(update, indices, self._epoch)
        state.object = current + self.velocity
        return update.error

    def end_epoch(self, epoch: int, progress: float) -> None:
        if self.refinement.end_epoch():
            self.velocity = self.refinement.ambiguity_fix.apply(self.velocity)

    def propagate_constraint(self, before: Tensor, change: Callable[[Tensor], Tensor]) -> None:
        self.velocity = change(self.velocity)

    def _compute_divisor(self, indices: Tensor, effective: float) -> Tensor:
        """The light to divide by, (rows, columns), where a step comes to ``effective`` with all its momentum."""
        own = self._illumination.sum_positions(indices)
        excess = (own - self.options.overload_ratio * self._coarse_divisor).clamp_min(0) * effective
        rows, columns = self.state.canvas.shape
        return (
            self._divisor
            + excess.repeat_interleave(COARSE_BLOCK_PX, 0).repeat_interleave(COARSE_BLOCK_PX, 1)[:rows, :columns]
        )

    def _compute_step_size(self, progress: float) -> tuple[float, float]:
        """Momentum and step at some ``progress`` of the run."""
        s = self.options
        if progress < s.decay_start:
            return self.momentum, s.step * self.step_scale
        first = min(1.0, s.step / (1 - self.momentum))
        fallen = (progress - s.decay_start) / (1 - s.decay_start)
        return 0.0, first * (s.final_step / first) ** fallen * self.step_scale

    def _step_probe(self, update: ExitWaveUpdate, indices: Tensor) -> None:
        state = self.state
        direction = self.optics.compute_probe_gradient(update.patches.conj()[:, None] * update.change, indices)
        seen = update.patches.abs().square().sum(0)
        size = self.options.probe_step * self.step_scale
        state.probe = state.probe + size * direction / (seen + 0.1 * seen.amax())

    def state_dict(self) -> dict[str, Tensor]:
        own = {"velocity": self.velocity, "momentum": torch.tensor(self.momentum, dtype=torch.float64)}
        return own | self.refinement.state_dict()

    def load_state_dict(self, memory: dict[str, Tensor]) -> None:
        self.velocity, self.momentum = memory["velocity"], float(memory["momentum"])
        self.refinement.load_state_dict(memory)

    def reset(self) -> None:
        self.velocity = torch.zeros_like(self.velocity)
