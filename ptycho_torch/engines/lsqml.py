"""LSQ-ML, least-squares maximum likelihood: object and probe are updated with step lengths solved by least squares."""

from collections.abc import Callable

import torch
from torch import Tensor

from ptycho_torch.config.engines import LSQML
from ptycho_torch.engines.measurement_model import (
    COARSE_BLOCK_PX,
    ExitWaveUpdate,
    MeasurementModel,
    compute_patterns_per_pixel,
)
from ptycho_torch.engines.nuisance import NuisanceRefiner
from ptycho_torch.engines.runner import Engine
from ptycho_torch.engines.state import Measurement, ReconstructionState
from ptycho_torch.physics.forward import compute_exit_waves
from ptycho_torch.physics.probe import compute_power

MAX_MOMENTUM = 0.9
"""Largest momentum that is derived from the overlap."""

PROBE_DIVISOR_FLOOR = 0.1
"""Regularization of the probe direction, as a fraction of the maximum of ``Σ |O|²``."""


class LsqmlEngine(Engine):
    """LSQ-ML: Odstrčil, Menzel & Guizar-Sicairos, Opt. Express 26, 3108 (2018), on batches of neighboring patterns.

    The update directions of a batch are ``d_O = Σ P* Δψ / D`` and ``d_P = Σ O* Δψ / Σ |O|²``. For each pattern, the
    step lengths α minimize ``‖α_O P d_O + α_P d_P O − Δψ‖²``; the batch uses their means. D is the illumination by the
    batch plus a fraction of the illumination by all patterns, which damps the edge of a batch, where few patterns
    determine the direction.

    Nesterov momentum is kept per pixel and applied in proportion to the illumination by the batch; elsewhere it waits
    for a batch that illuminates the pixel. Together with the least squares this bounds the steps on scans in which one
    batch is most of the illumination of a pixel. In the second half of the run the steps decrease, which averages the
    noise of the batches.
    """

    options: LSQML

    def __init__(self, measurement: Measurement, state: ReconstructionState, options: LSQML) -> None:
        super().__init__(measurement, state, options)
        self.model = MeasurementModel(measurement, state, fixed_probe=options.fixed_probe)
        self.refiner = NuisanceRefiner(self.model, options)
        self.batch_fraction = options.resolve_batch_size(len(measurement)) / len(measurement)
        self.velocity = torch.zeros_like(state.object)
        self._update_illumination()
        self.momentum = self._estimate_momentum() if options.momentum is None else options.momentum

    def _update_illumination(self) -> None:
        """Recompute the divisors from the current probe and positions."""
        self._illumination_map = self.model.make_illumination_map(COARSE_BLOCK_PX)
        illumination = self._illumination_map.sum_positions()
        self._mean_batch_illumination = self.batch_fraction * (illumination + 1e-6 * illumination.amax())
        self._edge_damping = self.options.edge_damping * (illumination + 0.01 * illumination.amax())

    def _estimate_momentum(self) -> float:
        """Return the momentum: the more patterns illuminate a pixel, the better a step predicts the next step."""
        illumination = self.model.make_illumination_map().sum_positions()
        density = compute_patterns_per_pixel(illumination, compute_power(self.state.probe), len(self.measurement))
        return min(MAX_MOMENTUM, 1 - max(1.0, density) ** -0.5)

    def begin_epoch(self, epoch: int, progress: float) -> None:
        self._epoch = epoch
        if epoch and not self.options.fixed_probe:
            self._update_illumination()

    def step(self, indices: Tensor, progress: float) -> float:
        state, options = self.state, self.options
        momentum, step_size = self._compute_step_size(progress)
        illumination = self._illumination_map.sum_positions(indices)
        weight = self._illumination_map.upsample((illumination / self._mean_batch_illumination).clamp_max(1))
        look_ahead, obj = momentum * weight * self.velocity, state.object
        state.object = obj + look_ahead  # Nesterov: the update is computed after the momentum step
        update = self.model.compute_update(indices, excess=options.update_background)
        object_direction = self.model.compute_object_gradient(update.change, update.probes, indices)
        object_direction = object_direction / self._illumination_map.upsample(illumination + self._edge_damping)
        exit_by_object = compute_exit_waves(self.model.extract(object_direction, indices), update.probes)
        if options.update_probe and self._epoch >= options.probe_start:
            step_length = self._update_probe(update, exit_by_object, indices)
        else:
            step_length = compute_step_length(exit_by_object, update.change, options.damping)
        self.refiner.accumulate(update, indices, self._epoch)
        object_update = look_ahead + step_size * step_length * object_direction
        self.velocity = (1 - weight) * self.velocity + object_update
        state.object = obj + object_update
        return update.error

    def handle_positions(self) -> None:
        self.model.refresh()
        self._update_illumination()

    def end_epoch(self, epoch: int, progress: float) -> None:
        if self.refiner.end_epoch():
            self.velocity = self.refiner.ambiguity_fix.apply(self.velocity)

    def propagate_constraint(self, before: Tensor, change: Callable[[Tensor], Tensor]) -> None:
        self.velocity = change(self.velocity)

    def _update_probe(self, update: ExitWaveUpdate, exit_by_object: Tensor, indices: Tensor) -> Tensor:
        """Update the probe and return the step length of the object, solved for together with that of the probe.

        Args:
            update: Exit-wave update of the batch.
            exit_by_object: (b, M, N, N), the change of the exit waves by the object direction.
            indices: (b,) int64.
        """
        options, state = self.options, self.state
        probe_direction = self.model.compute_probe_gradient(update.patches.conj()[:, None] * update.change, indices)
        object_power = update.patches.abs().square().sum(0)
        probe_direction = probe_direction / (object_power + PROBE_DIVISOR_FLOOR * object_power.amax())
        exit_by_probe = compute_exit_waves(update.patches, self.model.shift_modes(probe_direction, indices))
        object_length, probe_length = compute_step_lengths(
            exit_by_object, exit_by_probe, update.change, options.damping
        )
        state.probe = state.probe + options.probe_step * self.step_scale * probe_length * probe_direction
        return object_length

    def _compute_step_size(self, progress: float) -> tuple[float, float]:
        """Return momentum and step size at ``progress`` of the run."""
        options = self.options
        decay = max(0.0, progress - options.decay_start) / (1 - options.decay_start)
        last = options.final_step * (1 - self.momentum)
        return self.momentum, options.step * min(1.0, last / options.step) ** decay * self.step_scale

    def state_dict(self) -> dict[str, Tensor]:
        own = {"velocity": self.velocity, "momentum": torch.tensor(self.momentum, dtype=torch.float64)}
        return own | self.refiner.state_dict()

    def load_state_dict(self, memory: dict[str, Tensor]) -> None:
        self.velocity, self.momentum = memory["velocity"], float(memory["momentum"])
        self.refiner.load_state_dict(memory)

    def reset(self) -> None:
        self.velocity = torch.zeros_like(self.velocity)


def compute_step_length(direction: Tensor, target: Tensor, damping: float) -> Tensor:
    """Return the mean over the patterns of the α ≥ 0 that minimizes ``‖α direction − target‖²``.

    Args:
        direction: (b, M, N, N) complex, the change of the exit waves by a step of length 1.
        target: (b, M, N, N) complex, the required change of the exit waves.
        damping: Regularization, as a fraction of the mean square of ``direction``.
    """
    square = _compute_inner_products(direction, direction)
    lengths = _compute_inner_products(direction, target) / (square + _compute_damping(square, damping))
    return lengths.clamp_min(0).mean()


def compute_step_lengths(first: Tensor, second: Tensor, target: Tensor, damping: float) -> tuple[Tensor, Tensor]:
    """Return the mean α ≥ 0 and β ≥ 0 that minimize ``‖α first + β second − target‖²`` for each pattern.

    Arguments as in :func:`compute_step_length`; source: Odstrčil et al. (2018), eq. 22.
    """
    a, b, c = (
        _compute_inner_products(first, first),
        _compute_inner_products(first, second),
        _compute_inner_products(second, second),
    )
    a, c = a + _compute_damping(a, damping), c + _compute_damping(c, damping)
    right = _compute_inner_products(first, target), _compute_inner_products(second, target)
    determinant = a * c - b * b
    along_first = (c * right[0] - b * right[1]) / determinant
    along_second = (a * right[1] - b * right[0]) / determinant
    return along_first.clamp_min(0).mean(), along_second.clamp_min(0).mean()


def _compute_inner_products(left: Tensor, right: Tensor) -> Tensor:
    """Return the real inner product of each pattern, (b,)."""
    left, right = torch.view_as_real(left.resolve_conj()), torch.view_as_real(right.resolve_conj())
    return torch.linalg.vecdot(left.flatten(1), right.flatten(1))


def _compute_damping(squares: Tensor, damping: float) -> Tensor:
    """Return the regularization of the squares (b,); its own square must not underflow to 0."""
    return damping * squares.mean() + torch.finfo(squares.dtype).tiny ** 0.5
