"""ePIE and rPIE: pattern after pattern, each dividing by the probe that it was lit with."""

from torch import Tensor

from ptycho_torch.config.engines import EPIE, RPIE
from ptycho_torch.engines.measurement_model import ExitWaveUpdate, MeasurementModel
from ptycho_torch.engines.nuisance import NuisanceRefiner
from ptycho_torch.engines.runner import Engine
from ptycho_torch.engines.state import Measurement, ReconstructionState
from ptycho_torch.physics.forward import project_onto_patches
from ptycho_torch.physics.probe import compute_power


class EpieEngine(Engine):
    """``O += s P* Δψ / ((1 − α)|P|² + α max|P|²)``, and the probe likewise with the object that it lights.

    α = 1 is ePIE: Maiden & Rodenburg, Ultramicroscopy 109, 1256 (2009); below it is rPIE: Maiden, Johnson & Li, Optica
    4, 736 (2017). For incoherent modes |P|² is their sum.

    The patterns of a batch step together. Where their steps add up to more than the exact one for the light that they
    bring, which single patterns never do, they are divided by that excess. Past half of the run the steps fall, so that
    the noise of the last patterns averages out.
    """

    options: EPIE

    def __init__(self, measurement: Measurement, state: ReconstructionState, options: EPIE) -> None:
        super().__init__(measurement, state, options)
        self.alpha = options.alpha if isinstance(options, RPIE) else 1.0
        self.optics = MeasurementModel(measurement, state, fixed_probe=options.fixed_probe)
        self.refinement = NuisanceRefiner(self.optics, options)

    def begin_epoch(self, epoch: int, progress: float) -> None:
        self._epoch = epoch

    def step(self, indices: Tensor, progress: float) -> float:
        state, options = self.state, self.options
        update = self.optics.compute_update(indices, excess=options.update_background)
        self.refinement.accumulate(update, indices, self._epoch)
        size = self._compute_step_size(progress)
        following = state.object + size * self._compute_object_step(update, indices)
        if options.update_probe and self._epoch >= self.options.probe_start:
            state.probe = state.probe + size * self._compute_probe_step(update, indices)
        state.object = following
        return update.error

    def end_epoch(self, epoch: int, progress: float) -> None:
        self.refinement.end_epoch()

    def _compute_object_step(self, update: ExitWaveUpdate, indices: Tensor) -> Tensor:
        """The exact step, (rows, columns)."""
        illumination = compute_power(update.probes)
        divisor = self._compute_divisor(illumination)
        direction = self.optics.place(project_onto_patches(update.change, update.probes) / divisor, indices)
        if len(indices) == 1:
            return direction
        return direction / self.optics.place(illumination / divisor, indices).clamp_min(1)

    def _compute_probe_step(self, update: ExitWaveUpdate, indices: Tensor) -> Tensor:
        """The exact step, (M, N, N), for the probe at whole pixels."""
        seen = update.patches.abs().square()
        divisor = self._compute_divisor(seen)
        waves = (update.patches.conj() / divisor)[:, None] * update.change
        return self.optics.compute_probe_gradient(waves, indices) / (seen / divisor).sum(0).clamp_min(1)

    def _compute_divisor(self, illumination: Tensor) -> Tensor:
        """``(1 − α) light + α max light`` of each of (b, N, N)."""
        alpha = self.alpha
        return (1 - alpha) * illumination + alpha * illumination.amax((1, 2), keepdim=True)

    def _compute_step_size(self, progress: float) -> float:
        s = self.options
        fallen = max(0.0, progress - s.decay_start) / (1 - s.decay_start)
        return s.step * min(1.0, s.final_step / s.step) ** fallen * self.step_scale

    def state_dict(self) -> dict[str, Tensor]:
        return self.refinement.state_dict()

    def load_state_dict(self, memory: dict[str, Tensor]) -> None:
        self.refinement.load_state_dict(memory)

    def reset(self) -> None:
        """There is no momentum; what the refinement remembers stays."""
