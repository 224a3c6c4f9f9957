"""ePIE and rPIE: pattern after pattern, each dividing by the probe that it was lit with."""

from dataclasses import dataclass, field

from torch import Tensor

from ptycho_torch.engines.measurement_model import Correction, Optics
from ptycho_torch.engines.nuisance import Refinement, RefineSettings
from ptycho_torch.engines.pie import sum_of_modes
from ptycho_torch.engines.runner import Engine
from ptycho_torch.engines.state import Estimate, Measurement
from ptycho_torch.physics.probe import power_of


@dataclass(frozen=True)
class SequentialSettings:
    """The steps of the engines."""

    alpha: float = 1.0
    """Share of the brightest pixel in the divisor; the pixel's own light has the rest. 1: ePIE, below: rPIE."""

    step: float = 1.0
    """Step of object and probe, in units of the exact one where the probe is brightest."""

    settle: float = 0.5
    """Share of the run after which the steps fall."""

    last_step: float = 0.1
    """Step at the end of the run, in the same units."""

    refine: RefineSettings = field(default_factory=RefineSettings)
    """What is learned besides the object."""

    probe_start: int = 0
    """Epoch from which on the probe learns."""


class Sequential(Engine):
    """``O += s P* Δψ / ((1 − α)|P|² + α max|P|²)``, and the probe likewise with the object that it lights.

    α = 1 is ePIE: Maiden & Rodenburg, Ultramicroscopy 109, 1256 (2009); below it is rPIE: Maiden, Johnson & Li, Optica
    4, 736 (2017). For incoherent modes |P|² is their sum.

    The patterns of a batch step together. Where their steps add up to more than the exact one for the light that they
    bring, which single patterns never do, they are divided by that excess. Past half of the run the steps fall, so that
    the noise of the last patterns averages out.
    """

    def __init__(self, measurement: Measurement, estimate: Estimate, settings: SequentialSettings) -> None:
        super().__init__(measurement, estimate)
        self.settings = settings
        self.optics = Optics(measurement, estimate, fixed_probe=settings.refine.fixed_probe)
        self.refinement = Refinement(self.optics, settings.refine)

    def begin_epoch(self, epoch: int, progress: float) -> None:
        self._epoch = epoch

    def step(self, indices: Tensor, progress: float) -> float:
        estimate, refine = self.estimate, self.settings.refine
        found = self.optics.correction(indices, excess=refine.update_background)
        self.refinement.learn(found, indices, self._epoch)
        size = self._pace(progress)
        following = estimate.object + size * self._object_step(found, indices)
        if refine.update_probe and self._epoch >= self.settings.probe_start:
            estimate.probe = estimate.probe + size * self._probe_step(found, indices)
        estimate.object = following
        return found.error

    def end_epoch(self, epoch: int, progress: float) -> None:
        self.refinement.end_epoch()

    def _object_step(self, found: Correction, indices: Tensor) -> Tensor:
        """The exact step, (rows, columns)."""
        light = power_of(found.probes)
        divisor = self._divisor(light)
        towards = self.optics.placed(sum_of_modes(found.probes.conj() * found.change) / divisor, indices)
        if len(indices) == 1:
            return towards
        return towards / self.optics.placed(light / divisor, indices).clamp_min(1)

    def _probe_step(self, found: Correction, indices: Tensor) -> Tensor:
        """The exact step, (M, N, N), for the probe at whole pixels."""
        seen = found.patches.abs().square()
        divisor = self._divisor(seen)
        waves = (found.patches.conj() / divisor)[:, None] * found.change
        return self.optics.probe_gradient(waves, indices) / (seen / divisor).sum(0).clamp_min(1)

    def _divisor(self, light: Tensor) -> Tensor:
        """``(1 − α) light + α max light`` of each of (b, N, N)."""
        alpha = self.settings.alpha
        return (1 - alpha) * light + alpha * light.amax((1, 2), keepdim=True)

    def _pace(self, progress: float) -> float:
        s = self.settings
        fallen = max(0.0, progress - s.settle) / (1 - s.settle)
        return s.step * min(1.0, s.last_step / s.step) ** fallen * self.caution

    def memory(self) -> dict[str, Tensor]:
        return self.refinement.memory()

    def recall(self, memory: dict[str, Tensor]) -> None:
        self.refinement.recall(memory)

    def forget(self) -> None:
        """There is no momentum; what the refinement remembers stays."""
