"""Projections: the exit waves of all patterns are kept, and driven to where object and detector agree about them."""

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
from ptycho_torch.physics.forward import compute_detector_waves, project_onto_patches
from ptycho_torch.physics.fourier import inverse_far_field
from ptycho_torch.physics.probe import compute_power
from ptycho_torch.physics.updates import compute_detector_change

FINAL_RAAR_BETA = 0.85
"""β of the RAAR iterations in which the difference map settles."""


class ProjectionEngine(Engine):
    """What difference map and RAAR share.

    The overlap projection O brings the exit waves ψ of all patterns to the nearest that are a product of the probe and
    one object, and finds these; the modulus projection M brings them to the nearest that have the measured patterns. An
    epoch is one iteration, but the object follows the waves of each batch at once, which takes half as many iterations
    as when it waits for all of them. A probe that is learned follows at the end of an epoch.

    In the last part of the run the two projections simply alternate, ψ = M(O(ψ)). Noisy patterns agree with no object
    exactly, so that the iterates wander about the solution; from there, alternating projections descend to the nearest
    minimum of the error.

    The waves are kept in the far field, where M and the reflections act. They take n M N² complex numbers, twice
    during an epoch.
    """

    reverts_on_divergence = False

    options: ProjectionOptions

    def __init__(self, measurement: Measurement, state: ReconstructionState, options: ProjectionOptions) -> None:
        super().__init__(measurement, state, options)
        self.optics = MeasurementModel(measurement, state, fixed_probe=options.fixed_probe)
        # The gauge of the probe is fixed only where no waves are remembered, which would have to follow it.
        without_probe = replace(options, update_probe=False)
        self.refinement = NuisanceRefiner(
            self.optics, without_probe, position_step_factor=1.0
        )  # longer, and iterates that wander lead them astray
        self.ambiguity_fix = AmbiguityFix(state)
        self._parts = torch.arange(len(measurement)).split(options.resolve_batch_size(len(measurement)))
        self._divisor = self._compute_divisor()
        self._waves = torch.cat([self._predict_waves(part) for part in self._parts])

    @abstractmethod
    def compute_next_waves(self, waves: Tensor, overlap: Tensor, corrected: Tensor, progress: float) -> Tensor:
        """The next waves: from ψ, O(ψ) and M(2 O(ψ) − ψ), all (b, M, N, N) in the far field."""

    def begin_epoch(self, epoch: int, progress: float) -> None:
        self._epoch = epoch
        self._waves = self._waves.clone()  # the loop may come back to those of the last epoch

    def step(self, indices: Tensor, progress: float) -> float:
        model, waves = self._predict_waves(indices), self._waves[indices]
        update = self._compute_modulus_update(model, indices)
        if progress >= self.options.alternation_start:
            following = model + update
        else:
            reflected = 2 * model - waves
            following = self.compute_next_waves(
                waves, model, reflected + self._compute_modulus_update(reflected, indices), progress
            )
        self._waves[indices] = following
        self._update_object(inverse_far_field(following - waves), indices)
        options = self.options
        if options.update_positions or options.update_background or options.update_intensity:
            self.refinement.accumulate(self.optics.compute_update(indices, excess=True), indices, self._epoch)
        return float(torch.linalg.vector_norm(torch.view_as_real(update), dtype=torch.float32).square())

    def end_epoch(self, epoch: int, progress: float) -> None:
        learning = self.options.update_probe
        if learning and epoch >= self.options.probe_start:
            self._solve_probe()
        self.refinement.end_epoch()
        if not self.options.fixed_probe:
            self._divisor = self._compute_divisor()
            self._solve_object()
        if learning and progress > self.options.alternation_start:
            self.ambiguity_fix.fix(self.state)
            self.reset()  # the waves follow the gauge; nothing of theirs but the object is used from here on

    def propagate_constraint(self, before: Tensor, change: Callable[[Tensor], Tensor]) -> None:
        """The waves take part in the object's change, so that it stays the nearest to them."""
        difference = self.state.object - before
        self._waves = torch.cat(
            [
                self._waves[part]
                + compute_detector_waves(self.optics.extract(difference, part), self.optics.probes(part))
                for part in self._parts
            ]
        )

    def _predict_waves(self, indices: Tensor) -> Tensor:
        """O(ψ): far field of probe times object, (b, M, N, N)."""
        return compute_detector_waves(self.optics.patches(indices), self.optics.probes(indices))

    def _compute_modulus_update(self, waves: Tensor, indices: Tensor) -> Tensor:
        """M(ψ) − ψ in the far field, (b, M, N, N); nothing where pixels do not count."""
        measurement = self.measurement
        intensity = compute_power(waves) + self.state.background
        counts, mask = measurement.counts[indices], measurement.select_mask(indices)
        return compute_detector_change(waves, intensity, counts, mask, measurement.noise)

    def _compute_residual(self, indices: Tensor) -> Tensor:
        """ψ − P O in real space, (b, M, N, N)."""
        return inverse_far_field(self._waves[indices] - self._predict_waves(indices))

    def _compute_divisor(self) -> Tensor:
        """Divisor of the object, (rows, columns)."""
        power = torch.zeros_like(self.state.object.real)
        for part in self._parts:
            power += self.optics.place(compute_power(self.optics.probes(part)), part)
        return power + self.options.divisor_floor * power.amax()

    def _update_object(self, change: Tensor, indices: Tensor) -> None:
        """Let the object nearest to all waves follow a change of some, (b, M, N, N) in real space.

        Written as a step, so that what is not lit stays as it is.
        """
        direction = self.optics.place(project_onto_patches(change, self.optics.probes(indices)), indices)
        self.state.object = self.state.object + direction / self._divisor

    def _solve_object(self) -> None:
        """The object nearest to the waves, for another probe or other positions."""
        direction = torch.zeros_like(self.state.object)
        for part in self._parts:
            direction += self.optics.place(
                project_onto_patches(self._compute_residual(part), self.optics.probes(part)), part
            )
        self.state.object = self.state.object + direction / self._divisor

    def _solve_probe(self) -> None:
        """The probe nearest to the waves, to first order in the fractions of pixels."""
        direction = torch.zeros_like(self.state.probe)
        seen = torch.zeros_like(self.state.background)
        for part in self._parts:
            patches = self.optics.patches(part)
            direction += self.optics.compute_probe_gradient(
                patches.conj()[:, None] * self._compute_residual(part), part
            )
            seen += patches.abs().square().sum(0)
        self.state.probe = self.state.probe + direction / (seen + self.options.divisor_floor * seen.amax())

    def state_dict(self) -> dict[str, Tensor]:
        return {"waves": self._waves} | self.refinement.state_dict()

    def load_state_dict(self, memory: dict[str, Tensor]) -> None:
        self._waves = memory["waves"]
        self.refinement.load_state_dict(memory)
        self.ambiguity_fix.load_state_dict(memory)
        self.optics.refresh()
        self._divisor = self._compute_divisor()

    def reset(self) -> None:
        self._waves = torch.cat([self._predict_waves(part) for part in self._parts])


class DifferenceMapEngine(ProjectionEngine):
    """``ψ + β (M(2 O(ψ) − ψ) − O(ψ))``: Thibault et al., Ultramicroscopy 109, 338 (2009).

    It leaves local minima best, and settles worst: with noise it has no fixed point. RAAR, which is the same map pulled
    towards the overlap, takes over from where it has led.
    """

    def compute_next_waves(self, waves: Tensor, overlap: Tensor, corrected: Tensor, progress: float) -> Tensor:
        if progress >= self.options.raar_start:
            return _relax(waves, overlap, corrected, FINAL_RAAR_BETA)
        return waves + self.options.relaxation * (corrected - overlap)


class RaarEngine(ProjectionEngine):
    """``β (ψ + M(2 O(ψ) − ψ) − O(ψ)) + (1 − β) O(ψ)``: Luke, Inverse Problems 21, 37 (2005).

    The reflection at the overlap comes first here, and the overlap is what is mixed in.
    """

    def compute_next_waves(self, waves: Tensor, overlap: Tensor, corrected: Tensor, progress: float) -> Tensor:
        return _relax(waves, overlap, corrected, self.options.relaxation)


def _relax(waves: Tensor, overlap: Tensor, corrected: Tensor, relaxation: float) -> Tensor:
    return overlap + relaxation * (waves + corrected - 2 * overlap)
