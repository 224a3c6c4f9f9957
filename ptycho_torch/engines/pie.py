"""The ptychographic iterative engine: the exit wave's change, divided by the illumination, added to the object."""

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from ptycho_torch.engines.measurement_model import Correction, Optics
from ptycho_torch.engines.nuisance import Refinement, RefineSettings
from ptycho_torch.engines.runner import Engine
from ptycho_torch.engines.state import Estimate, Measurement

COARSE = 4
"""Pixels of the blocks on which the illumination of single batches is compared."""


@dataclass(frozen=True)
class PieSettings:
    """The steps of the engine. None: found from how densely a batch covers the field."""

    step: float = 0.5
    """Step of the object, in units of the exact one for the light that a batch brings on average."""

    momentum: float | None = None
    """Share of the last step that is taken again, over the first part of the run."""

    settle: float = 0.4
    """Share of the run after which there is no momentum and the steps fall."""

    last_step: float = 0.05
    """Step at the end of the run, in the same units."""

    uneven: float = 1.5
    """Light of a batch, as a multiple of what a batch brings on average, beyond which it shortens the step."""

    refine: RefineSettings = field(default_factory=RefineSettings)
    """What is learned besides the object."""

    probe_step: float = 1.0
    """Step of the probe, in units of the exact one for the object that a batch sees."""

    floor: float = 0.01
    """Light added to the divisor everywhere, as a share of the largest."""

    probe_start: int = 0
    """Epoch from which on the probe learns."""


class Pie(Engine):
    """Batched PIE: the changes of a batch are summed and divided by the illumination.

    The step of a batch is ``s Σ P* Δψ / D`` with Nesterov's momentum, where D is the light that a batch brings on
    average. Where a batch brings more than that, D is raised so far that the step with all its momentum stays within
    the exact one: a sparse scan, in which a batch is a large share of all light on a pixel, would else diverge. After a
    part of the run the momentum is dropped and the steps fall, so that the noise of the batches averages out.

    For single patterns it is ePIE with a shared denominator: Maiden & Rodenburg, Ultramicroscopy 109, 1256 (2009);
    momentum as in mPIE: Maiden, Johnson & Li, Optica 4, 736 (2017).
    """

    def __init__(self, measurement: Measurement, estimate: Estimate, settings: PieSettings, batch_size: int) -> None:
        super().__init__(measurement, estimate)
        self.settings = settings
        self.optics = Optics(measurement, estimate, fixed_probe=settings.refine.fixed_probe)
        self.refinement = Refinement(self.optics, settings.refine)
        self.share = min(1.0, batch_size / len(measurement))
        self.velocity = torch.zeros_like(estimate.object)
        self._illuminate()
        self.momentum = (
            settings.momentum if settings.momentum is not None else min(0.9, self.density / (self.density + 1))
        )

    def _illuminate(self) -> None:
        total = self.optics.light().of()
        power = self.estimate.probe.abs().square().sum(0)
        # Patterns that share the light of a pixel, weighted by that light.
        self.density = float(total.square().sum() / (len(self.measurement) * power.square().sum())) * self.share
        self._divisor = self.share * (total + self.settings.floor * total.amax())
        self._light = self.optics.light(COARSE)
        self._coarse_divisor = self.share * self._light.of()

    def begin_epoch(self, epoch: int, progress: float) -> None:
        self._epoch = epoch
        if not self.settings.refine.fixed_probe:
            self._illuminate()

    def step(self, indices: Tensor, progress: float) -> float:
        estimate = self.estimate
        momentum, size = self._pace(progress)
        ahead = momentum * self.velocity
        held = estimate.object
        estimate.object = held + ahead  # Nesterov: the change is asked for where the momentum leads
        found = self.optics.correction(indices, excess=self.settings.refine.update_background)
        towards = self.optics.placed(sum_of_modes(found.probes.conj() * found.change), indices)
        self.velocity = ahead + size * towards / self._divisor_of(indices, size / (1 - momentum))
        if self.settings.refine.update_probe and self._epoch >= self.settings.probe_start:
            self._step_probe(found, indices)
            self._illuminate()
        self.refinement.learn(found, indices, self._epoch)
        estimate.object = held + self.velocity
        return found.error

    def end_epoch(self, epoch: int, progress: float) -> None:
        if self.refinement.end_epoch():
            self.velocity = self.refinement.gauge(self.velocity)

    def follow(self, before: Tensor, change: Callable[[Tensor], Tensor]) -> None:
        self.velocity = change(self.velocity)

    def _divisor_of(self, indices: Tensor, effective: float) -> Tensor:
        """The light to divide by, (rows, columns), where a step comes to ``effective`` with all its momentum."""
        own = self._light.of(indices)
        excess = (own - self.settings.uneven * self._coarse_divisor).clamp_min(0) * effective
        rows, columns = self.estimate.frame.shape
        return self._divisor + excess.repeat_interleave(COARSE, 0).repeat_interleave(COARSE, 1)[:rows, :columns]

    def _pace(self, progress: float) -> tuple[float, float]:
        """Momentum and step at some ``progress`` of the run."""
        s = self.settings
        if progress < s.settle:
            return self.momentum, s.step * self.caution
        first = min(1.0, s.step / (1 - self.momentum))
        fallen = (progress - s.settle) / (1 - s.settle)
        return 0.0, first * (s.last_step / first) ** fallen * self.caution

    def _step_probe(self, found: Correction, indices: Tensor) -> None:
        estimate = self.estimate
        towards = self.optics.probe_gradient(found.patches.conj()[:, None] * found.change, indices)
        seen = found.patches.abs().square().sum(0)
        size = self.settings.probe_step * self.caution
        estimate.probe = estimate.probe + size * towards / (seen + 0.1 * seen.amax())

    def memory(self) -> dict[str, Tensor]:
        own = {"velocity": self.velocity, "momentum": torch.tensor(self.momentum, dtype=torch.float64)}
        return own | self.refinement.memory()

    def recall(self, memory: dict[str, Tensor]) -> None:
        self.velocity, self.momentum = memory["velocity"], float(memory["momentum"])
        self.refinement.recall(memory)

    def forget(self) -> None:
        self.velocity = torch.zeros_like(self.velocity)


def sum_of_modes(waves: Tensor) -> Tensor:
    """(b, M, N, N) summed over its modes, without a pass where there is one."""
    return waves.squeeze(1) if waves.shape[1] == 1 else waves.sum(1)
