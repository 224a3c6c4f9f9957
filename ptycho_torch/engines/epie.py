"""ePIE and rPIE: the extended and the regularized ptychographic iterative engine."""

from torch import Tensor

from ptycho_torch.config.engines import EPIE, RPIE
from ptycho_torch.engines.measurement_model import ExitWaveUpdate, MeasurementModel
from ptycho_torch.engines.nuisance import NuisanceRefiner
from ptycho_torch.engines.runner import Engine
from ptycho_torch.engines.state import Measurement, ReconstructionState
from ptycho_torch.physics.forward import project_onto_patches
from ptycho_torch.physics.probe import compute_power


class EpieEngine(Engine):
    """``O += s P* Δψ / ((1 − α) |P|² + α max |P|²)``, and the same for the probe with the object as illumination.

    α = 1 is ePIE: Maiden & Rodenburg, Ultramicroscopy 109, 1256 (2009). α < 1 is rPIE: Maiden, Johnson & Li, Optica 4,
    736 (2017). For incoherent modes |P|² is the sum over the modes.

    All patterns of a batch are updated at once. Where the sum of their steps exceeds the exact step, which a single
    pattern never does, it is divided by the excess. In the second half of the run the steps decrease, which averages
    the noise of the last patterns.
    """

    options: EPIE

    def __init__(self, measurement: Measurement, state: ReconstructionState, options: EPIE) -> None:
        super().__init__(measurement, state, options)
        self.alpha = options.alpha if isinstance(options, RPIE) else 1.0
        self.model = MeasurementModel(measurement, state, fixed_probe=options.fixed_probe)
        self.refiner = NuisanceRefiner(self.model, options)

    def begin_epoch(self, epoch: int, progress: float) -> None:
        self._epoch = epoch

    def step(self, indices: Tensor, progress: float) -> float:
        state, options = self.state, self.options
        update = self.model.compute_update(indices, excess=options.update_background)
        self.refiner.accumulate(update, indices, self._epoch)
        step_size = self._compute_step_size(progress)
        object_update = self._compute_object_update(update, indices)
        if options.update_probe and self._epoch >= options.probe_start:
            state.probe = state.probe + step_size * self._compute_probe_update(update, indices)
        state.object = state.object + step_size * object_update
        return update.error

    def handle_positions(self) -> None:
        self.model.refresh()

    def end_epoch(self, epoch: int, progress: float) -> None:
        self.refiner.end_epoch()

    def _compute_object_update(self, update: ExitWaveUpdate, indices: Tensor) -> Tensor:
        """Return the exact step of the object, (rows, columns)."""
        illumination = compute_power(update.probes)
        divisor = self._regularize(illumination)
        object_update = self.model.place(project_onto_patches(update.change, update.probes) / divisor, indices)
        if len(indices) == 1:
            return object_update
        return object_update / self.model.place(illumination / divisor, indices).clamp_min(1)

    def _compute_probe_update(self, update: ExitWaveUpdate, indices: Tensor) -> Tensor:
        """Return the exact step of the probe without sub-pixel shift, (M, N, N)."""
        object_power = update.patches.abs().square()
        divisor = self._regularize(object_power)
        waves = (update.patches.conj() / divisor)[:, None] * update.change
        return self.model.compute_probe_gradient(waves, indices) / (object_power / divisor).sum(0).clamp_min(1)

    def _regularize(self, power: Tensor) -> Tensor:
        """Return ``(1 − α) power + α max power`` for each of (b, N, N)."""
        return (1 - self.alpha) * power + self.alpha * power.amax((1, 2), keepdim=True)

    def _compute_step_size(self, progress: float) -> float:
        """Return the step size at ``progress`` of the run."""
        options = self.options
        decay = max(0.0, progress - options.decay_start) / (1 - options.decay_start)
        return options.step * min(1.0, options.final_step / options.step) ** decay * self.step_scale

    def state_dict(self) -> dict[str, Tensor]:
        return self.refiner.state_dict()

    def load_state_dict(self, memory: dict[str, Tensor]) -> None:
        self.refiner.load_state_dict(memory)

    def reset(self) -> None:
        """Do nothing: the engine has no momentum, and the refiner keeps its state."""
