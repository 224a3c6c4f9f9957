"""Difference map and RAAR: projection engines that keep the exit waves of all patterns."""

from abc import abstractmethod
from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor

from ptycho_torch.config.engines import ProjectionOptions
from ptycho_torch.engines.measurement_model import MeasurementModel
from ptycho_torch.engines.nuisance import AmbiguityFix, NuisanceRefiner
from ptycho_torch.engines.runner import Engine
from ptycho_torch.engines.state import Measurement, ReconstructionState
from ptycho_torch.physics.forward import compute_detector_waves
from ptycho_torch.physics.fourier import inverse_far_field
from ptycho_torch.physics.probe import compute_power
from ptycho_torch.physics.updates import compute_detector_change

FINAL_RAAR_BETA = 0.85
"""β of the RAAR iterations at the end of a difference map."""

POSITION_STEP_FACTOR = 1.0
"""Factor on the least-squares displacements; larger steps follow the fluctuations of the iterates."""


class ProjectionEngine(Engine):
    """The common part of difference map and RAAR.

    The overlap projection O replaces the exit waves ψ of all patterns by the nearest product of the probe and one
    object, and determines both. The modulus projection M replaces them by the nearest waves with the measured patterns.
    One epoch is one iteration. In contrast to the literature, the object follows the waves of each batch immediately,
    which halves the number of iterations. An updated probe follows at the end of an epoch.

    In the last part of the run the projections alternate, ψ = M(O(ψ)). No object agrees with noisy patterns exactly,
    and the iterates fluctuate around the solution; alternating projections then descend to the nearest minimum of the
    error.

    The waves are stored at the detector, where M and the reflections act. They take n M N² complex numbers, and twice
    that during an epoch.
    """

    options: ProjectionOptions

    reverts_on_divergence = False

    def __init__(self, measurement: Measurement, state: ReconstructionState, options: ProjectionOptions) -> None:
        super().__init__(measurement, state, options)
        self.model = MeasurementModel(measurement, state, fixed_probe=options.fixed_probe)
        # The ambiguities are fixed only when no waves are stored, which would have to follow.
        without_probe = replace(options, update_probe=False)
        self.refiner = NuisanceRefiner(self.model, without_probe, POSITION_STEP_FACTOR)
        self.refiner.positions.keeps_affine_part = options.update_probe
        self.ambiguity_fix = AmbiguityFix(state)
        self._all_batches = torch.arange(len(measurement)).split(options.resolve_batch_size(len(measurement)))
        self._divisor = self._compute_divisor()
        self._waves = torch.cat([self._predict_waves(batch) for batch in self._all_batches])

    @property
    def _batches(self) -> tuple[Tensor, ...]:
        """Batches of the patterns that are not excluded."""
        return self.state.find_included().split(len(self._all_batches[0]))

    def handle_positions(self) -> None:
        self.model.refresh()
        self._divisor = self._compute_divisor()
        self.reset()

    def handle_exclusion(self) -> None:
        self._divisor = self._compute_divisor()
        self.solve_object()
        excluded = self.state.excluded.nonzero()[:, 0]
        if len(excluded):  # their waves do not contradict the object if the patterns return
            self._waves = self._waves.clone()
            self._waves[excluded] = self._predict_waves(excluded)

    @abstractmethod
    def compute_next_waves(self, waves: Tensor, overlap: Tensor, corrected: Tensor, progress: float) -> Tensor:
        """Return the next waves from ψ, O(ψ) and M(2 O(ψ) − ψ), all (b, M, N, N) at the detector."""

    def begin_epoch(self, epoch: int, progress: float) -> None:
        self._epoch = epoch
        self._waves = self._waves.clone()  # the runner may restore the waves of the last epoch

    def step(self, indices: Tensor, progress: float) -> float:
        options, waves, overlap = self.options, self._waves[indices], self._predict_waves(indices)
        modulus_change = self._compute_modulus_change(overlap, indices)
        if progress >= options.alternation_start:
            next_waves = overlap + modulus_change
        else:
            reflected = 2 * overlap - waves
            corrected = reflected + self._compute_modulus_change(reflected, indices)
            next_waves = self.compute_next_waves(waves, overlap, corrected, progress)
        self._waves[indices] = next_waves
        self._update_object(inverse_far_field(next_waves - waves), indices)
        if options.update_positions or options.update_background or options.update_intensity:
            self.refiner.accumulate(self.model.compute_update(indices, excess=True), indices, self._epoch)
        return float(torch.linalg.vector_norm(torch.view_as_real(modulus_change), dtype=torch.float32).square())

    def end_epoch(self, epoch: int, progress: float) -> None:
        options = self.options
        if options.update_probe and epoch >= options.probe_start:
            self._solve_probe()
        self.refiner.end_epoch()
        if not options.fixed_probe:
            self._divisor = self._compute_divisor()
            self.solve_object()
        if options.update_probe and progress > options.alternation_start:
            self.ambiguity_fix.fix(self.state)
            self.reset()  # the alternating projections depend on the waves only by the object

    def propagate_constraint(self, before: Tensor, change: Callable[[Tensor], Tensor]) -> None:
        """Add the change of the object to the waves, which keeps it the nearest object to them."""
        difference = self.state.object - before
        self._waves = torch.cat(
            [
                self._waves[batch]
                + compute_detector_waves(self.model.extract(difference, batch), self.model.probes(batch))
                for batch in self._all_batches
            ]
        )

    @torch.no_grad()
    def solve_object(self) -> None:
        """Replace the object by the nearest object to the waves."""
        direction = torch.zeros_like(self.state.object)
        for batch in self._batches:
            residual = self._compute_residual(batch)
            direction += self.model.compute_object_gradient(residual, self.model.probes(batch), batch)
        self.state.object = self.state.object + direction / self._divisor

    def _solve_probe(self) -> None:
        """Replace the probe by the nearest probe to the waves, to first order in the sub-pixel shifts."""
        direction = torch.zeros_like(self.state.probe)
        object_power = torch.zeros_like(self.state.background)
        for batch in self._batches:
            patches = self.model.patches(batch)
            residual = self._compute_residual(batch)
            direction += self.model.compute_probe_gradient(patches.conj()[:, None] * residual, batch)
            object_power += patches.abs().square().sum(0)
        floor = self.options.divisor_floor * object_power.amax()
        self.state.probe = self.state.probe + direction / (object_power + floor)

    def _update_object(self, change: Tensor, indices: Tensor) -> None:
        """Update the nearest object after a change (b, M, N, N), in real space, of the waves at ``indices``."""
        object_gradient = self.model.compute_object_gradient(change, self.model.probes(indices), indices)
        self.state.object = self.state.object + object_gradient / self._divisor

    def _predict_waves(self, indices: Tensor) -> Tensor:
        """Return O(ψ), the detector waves of probe and object, (b, M, N, N)."""
        return compute_detector_waves(self.model.patches(indices), self.model.probes(indices))

    def _compute_modulus_change(self, waves: Tensor, indices: Tensor) -> Tensor:
        """Return M(ψ) − ψ at the detector, (b, M, N, N); 0 where pixels do not count."""
        intensity = compute_power(waves) + self.state.background
        counts, mask = self.measurement.counts[indices], self.measurement.select_mask(indices)
        return compute_detector_change(waves, intensity, counts, mask, self.measurement.noise)

    def _compute_residual(self, indices: Tensor) -> Tensor:
        """Return ψ − P O in real space, (b, M, N, N)."""
        return inverse_far_field(self._waves[indices] - self._predict_waves(indices))

    def _compute_divisor(self) -> Tensor:
        """Return the regularized illumination by all patterns, (rows, columns)."""
        illumination = torch.zeros_like(self.state.object.real)
        for batch in self._batches:
            illumination += self.model.place(compute_power(self.model.probes(batch)), batch)
        return illumination + self.options.divisor_floor * illumination.amax()

    def state_dict(self) -> dict[str, Tensor]:
        return {"waves": self._waves} | self.refiner.state_dict()

    def load_state_dict(self, memory: dict[str, Tensor]) -> None:
        self._waves = memory["waves"]
        self.refiner.load_state_dict(memory)
        self.ambiguity_fix.load_state_dict(memory)
        self.model.refresh()
        self._divisor = self._compute_divisor()

    def reset(self) -> None:
        self._waves = torch.cat([self._predict_waves(batch) for batch in self._all_batches])


class DifferenceMapEngine(ProjectionEngine):
    """``ψ + β (M(2 O(ψ) − ψ) − O(ψ))``: Thibault et al., Ultramicroscopy 109, 338 (2009).

    The difference map leaves local minima well and converges badly: with noise it has no fixed point. After the first
    part of the run RAAR, the same map relaxed toward the overlap, takes over.
    """

    def compute_next_waves(self, waves: Tensor, overlap: Tensor, corrected: Tensor, progress: float) -> Tensor:
        if progress >= self.options.raar_start:
            return _relax(waves, overlap, corrected, FINAL_RAAR_BETA)
        return waves + self.options.relaxation * (corrected - overlap)


class RaarEngine(ProjectionEngine):
    """``β (ψ + M(2 O(ψ) − ψ) − O(ψ)) + (1 − β) O(ψ)``: Luke, Inverse Problems 21, 37 (2005)."""

    def compute_next_waves(self, waves: Tensor, overlap: Tensor, corrected: Tensor, progress: float) -> Tensor:
        return _relax(waves, overlap, corrected, self.options.relaxation)


def _relax(waves: Tensor, overlap: Tensor, corrected: Tensor, relaxation: float) -> Tensor:
    """Return the RAAR iterate, simplified algebraically."""
    return overlap + relaxation * (waves + corrected - 2 * overlap)
