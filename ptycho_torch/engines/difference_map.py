"""Projections: the exit waves of all patterns are kept, and driven to where object and detector agree about them."""

from abc import abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from ptycho_torch.engines.measurement_model import Optics
from ptycho_torch.engines.nuisance import Refinement, RefineSettings
from ptycho_torch.engines.pie import sum_of_modes
from ptycho_torch.engines.runner import Engine
from ptycho_torch.engines.state import Estimate, Measurement
from ptycho_torch.physics.fourier import far_field, inverse_far_field
from ptycho_torch.physics.probe import power_of

SETTLING = 0.85
"""β of the RAAR iterations in which the difference map settles."""


@dataclass(frozen=True)
class ProjectionSettings:
    """The steps of the engines."""

    relaxation: float
    """β: how far an iteration goes."""

    settle: float = 0.3
    """Share of the run after which the difference map settles by RAAR."""

    alternate: float = 0.9
    """Share of the run after which the projections simply alternate."""

    floor: float = 1e-4
    """Light added to the divisors everywhere, as a share of the largest."""

    refine: RefineSettings = field(default_factory=RefineSettings)
    """What is learned besides the object."""

    probe_start: int = 0
    """Epoch from which on the probe learns."""


class Projections(Engine):
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

    guarded = False

    def __init__(
        self, measurement: Measurement, estimate: Estimate, settings: ProjectionSettings, batch_size: int
    ) -> None:
        super().__init__(measurement, estimate)
        self.settings = settings
        self.optics = Optics(measurement, estimate, fixed_probe=settings.refine.fixed_probe)
        # The gauge of the probe is fixed only where no waves are remembered, which would have to follow it.
        refine = replace(settings.refine, update_probe=False)
        self.refinement = Refinement(
            self.optics, refine, stride=1.0
        )  # longer, and iterates that wander lead them astray
        self.gauge = Refinement(self.optics, RefineSettings(update_probe=True))
        self._parts = torch.arange(len(measurement)).split(batch_size)
        self._divisor = self._light()
        self._waves = torch.cat([self._modelled(part) for part in self._parts])

    @abstractmethod
    def advanced(self, waves: Tensor, overlap: Tensor, corrected: Tensor, progress: float) -> Tensor:
        """The next waves: from ψ, O(ψ) and M(2 O(ψ) − ψ), all (b, M, N, N) in the far field."""

    def begin_epoch(self, epoch: int, progress: float) -> None:
        self._epoch = epoch
        self._waves = self._waves.clone()  # the loop may come back to those of the last epoch

    def step(self, indices: Tensor, progress: float) -> float:
        model, waves = self._modelled(indices), self._waves[indices]
        update = self._update(model, indices)
        if progress >= self.settings.alternate:
            following = model + update
        else:
            reflected = 2 * model - waves
            following = self.advanced(waves, model, reflected + self._update(reflected, indices), progress)
        self._waves[indices] = following
        self._follow(inverse_far_field(following - waves), indices)
        refine = self.settings.refine
        if refine.update_positions or refine.update_background or refine.update_intensity:
            self.refinement.learn(self.optics.correction(indices, excess=True), indices, self._epoch)
        return float(torch.linalg.vector_norm(torch.view_as_real(update), dtype=torch.float32).square())

    def end_epoch(self, epoch: int, progress: float) -> None:
        learning = self.settings.refine.update_probe
        if learning and epoch >= self.settings.probe_start:
            self._overlap_probe()
        self.refinement.end_epoch()
        if not self.settings.refine.fixed_probe:
            self._divisor = self._light()
            self._overlap_object()
        if learning and progress > self.settings.alternate:
            self.gauge.end_epoch()
            self.forget()  # the waves follow the gauge; nothing of theirs but the object is used from here on

    def follow(self, before: Tensor, change: Callable[[Tensor], Tensor]) -> None:
        """The waves take part in the object's change, so that it stays the nearest to them."""
        difference = self.estimate.object - before
        self._waves = torch.cat(
            [
                self._waves[part] + far_field(self.optics.probes(part) * self.optics.cut(difference, part)[:, None])
                for part in self._parts
            ]
        )

    def _modelled(self, indices: Tensor) -> Tensor:
        """O(ψ): far field of probe times object, (b, M, N, N)."""
        return far_field(self.optics.probes(indices) * self.optics.patches(indices)[:, None])

    def _update(self, waves: Tensor, indices: Tensor) -> Tensor:
        """M(ψ) − ψ in the far field, (b, M, N, N); nothing where pixels do not count."""
        measurement = self.measurement
        intensity = power_of(waves) + self.estimate.background
        update = measurement.noise.wave_update(waves, intensity, measurement.counts[indices])
        mask = measurement.mask_of(indices)
        return update if mask is None else torch.where(mask[:, None], update, torch.zeros_like(update))

    def _missing(self, indices: Tensor) -> Tensor:
        """ψ − P O in real space, (b, M, N, N)."""
        return inverse_far_field(self._waves[indices] - self._modelled(indices))

    def _light(self) -> Tensor:
        """Divisor of the object, (rows, columns)."""
        power = torch.zeros_like(self.estimate.object.real)
        for part in self._parts:
            power += self.optics.placed(power_of(self.optics.probes(part)), part)
        return power + self.settings.floor * power.amax()

    def _follow(self, change: Tensor, indices: Tensor) -> None:
        """Let the object nearest to all waves follow a change of some, (b, M, N, N) in real space.

        Written as a step, so that what is not lit stays as it is.
        """
        towards = self.optics.placed(sum_of_modes(self.optics.probes(indices).conj() * change), indices)
        self.estimate.object = self.estimate.object + towards / self._divisor

    def _overlap_object(self) -> None:
        """The object nearest to the waves, for another probe or other positions."""
        towards = torch.zeros_like(self.estimate.object)
        for part in self._parts:
            towards += self.optics.placed(sum_of_modes(self.optics.probes(part).conj() * self._missing(part)), part)
        self.estimate.object = self.estimate.object + towards / self._divisor

    def _overlap_probe(self) -> None:
        """The probe nearest to the waves, to first order in the fractions of pixels."""
        towards = torch.zeros_like(self.estimate.probe)
        seen = torch.zeros_like(self.estimate.background)
        for part in self._parts:
            patches = self.optics.patches(part)
            towards += self.optics.probe_gradient(patches.conj()[:, None] * self._missing(part), part)
            seen += patches.abs().square().sum(0)
        self.estimate.probe = self.estimate.probe + towards / (seen + self.settings.floor * seen.amax())

    def memory(self) -> dict[str, Tensor]:
        return {"waves": self._waves} | self.refinement.memory()

    def recall(self, memory: dict[str, Tensor]) -> None:
        self._waves = memory["waves"]
        self.refinement.recall(memory)
        self.gauge.recall(memory)
        self.optics.moved()
        self._divisor = self._light()

    def forget(self) -> None:
        self._waves = torch.cat([self._modelled(part) for part in self._parts])


class DifferenceMap(Projections):
    """``ψ + β (M(2 O(ψ) − ψ) − O(ψ))``: Thibault et al., Ultramicroscopy 109, 338 (2009).

    It leaves local minima best, and settles worst: with noise it has no fixed point. RAAR, which is the same map pulled
    towards the overlap, takes over from where it has led.
    """

    def advanced(self, waves: Tensor, overlap: Tensor, corrected: Tensor, progress: float) -> Tensor:
        if progress >= self.settings.settle:
            return _pulled(waves, overlap, corrected, SETTLING)
        return waves + self.settings.relaxation * (corrected - overlap)


class Raar(Projections):
    """``β (ψ + M(2 O(ψ) − ψ) − O(ψ)) + (1 − β) O(ψ)``: Luke, Inverse Problems 21, 37 (2005).

    The reflection at the overlap comes first here, and the overlap is what is mixed in.
    """

    def advanced(self, waves: Tensor, overlap: Tensor, corrected: Tensor, progress: float) -> Tensor:
        return _pulled(waves, overlap, corrected, self.settings.relaxation)


def _pulled(waves: Tensor, overlap: Tensor, corrected: Tensor, relaxation: float) -> Tensor:
    return overlap + relaxation * (waves + corrected - 2 * overlap)
