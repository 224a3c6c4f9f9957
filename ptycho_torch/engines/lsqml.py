"""Least-squares maximum likelihood: object and probe step together, each as far as the exit waves ask for."""

from collections.abc import Callable

import torch
from torch import Tensor

from ptycho_torch.config.engines import LSQML
from ptycho_torch.engines.measurement_model import ExitWaveUpdate, MeasurementModel
from ptycho_torch.engines.nuisance import NuisanceRefiner
from ptycho_torch.engines.pie import COARSE_BLOCK_PX
from ptycho_torch.engines.runner import Engine
from ptycho_torch.engines.state import Measurement, ReconstructionState
from ptycho_torch.physics.forward import project_onto_patches
from ptycho_torch.physics.probe import compute_power


class LsqmlEngine(Engine):
    """LSQ-ML: Odstrčil, Menzel & Guizar-Sicairos, Opt. Express 26, 3108 (2018), in batches of neighbours.

    The directions of a batch are ``d_O = Σ P* Δψ / D`` and ``d_P = Σ O* Δψ / Σ |O|²``. Each pattern asks for the
    lengths α that bring ``α_O P d_O + α_P d_P O`` nearest to its Δψ, and the batch takes their means. D is the batch's
    own light and a share of all light: the latter keeps what few patterns say at the edge of a batch from weighing as
    much as what many say in its middle.

    Nesterov's momentum is kept pixel by pixel and moves where the batch lights: elsewhere it waits for its turn, so
    that a step is never repeated without having been looked at. That, and the least squares, bound the steps on scans
    in which a batch is most of the light on a pixel. In the second part of the run the steps fall, so that the noise of
    the batches averages out.
    """

    options: LSQML

    def __init__(self, measurement: Measurement, state: ReconstructionState, options: LSQML) -> None:
        super().__init__(measurement, state, options)
        self.optics = MeasurementModel(measurement, state, fixed_probe=options.fixed_probe)
        self.refinement = NuisanceRefiner(self.optics, options)
        self.batch_fraction = options.resolve_batch_size(len(measurement)) / len(measurement)
        self.velocity = torch.zeros_like(state.object)
        self._update_illumination()
        self.momentum = self._estimate_momentum() if options.momentum is None else options.momentum

    def _update_illumination(self) -> None:
        self._illumination = self.optics.make_illumination_map(COARSE_BLOCK_PX)
        total = self._illumination.sum_positions()
        self._mean_batch_illumination = self.batch_fraction * (total + 1e-6 * total.amax())
        self._edge = self.options.edge_damping * (total + 0.01 * total.amax())

    def _estimate_momentum(self) -> float:
        """The more patterns share the light of a pixel, the better does a step know where the next one will lead."""
        power = compute_power(self.state.probe)
        density = float(
            self.optics.make_illumination_map().sum_positions().square().sum()
            / (len(self.measurement) * power.square().sum())
        )
        return min(0.9, 1 - max(1.0, density) ** -0.5)

    def begin_epoch(self, epoch: int, progress: float) -> None:
        self._epoch = epoch
        if epoch and not self.options.fixed_probe:
            self._update_illumination()

    def step(self, indices: Tensor, progress: float) -> float:
        state, options = self.state, self.options
        momentum, size = self._compute_step_size(progress)
        own = self._illumination.sum_positions(indices)
        weight = self._upsample_to_canvas((own / self._mean_batch_illumination).clamp_max(1))
        ahead, current = momentum * weight * self.velocity, state.object
        state.object = current + ahead  # Nesterov: the change is asked for where the momentum leads
        update = self.optics.compute_update(indices, excess=options.update_background)
        direction = self.optics.place(project_onto_patches(update.change, update.probes), indices)
        direction = direction / self._upsample_to_canvas(own + self._edge)
        moving = update.probes * self.optics.extract(direction, indices)[:, None]
        if options.update_probe and self._epoch >= self.options.probe_start:
            length = self._step_probe(update, moving, indices)
        else:
            length = compute_step_length(moving, update.change, self.options.damping)
        self.refinement.accumulate(update, indices, self._epoch)
        change = ahead + size * length * direction
        self.velocity = (1 - weight) * self.velocity + change
        state.object = current + change
        return update.error

    def end_epoch(self, epoch: int, progress: float) -> None:
        if self.refinement.end_epoch():
            self.velocity = self.refinement.ambiguity_fix.apply(self.velocity)

    def propagate_constraint(self, before: Tensor, change: Callable[[Tensor], Tensor]) -> None:
        self.velocity = change(self.velocity)

    def _step_probe(self, update: ExitWaveUpdate, moving: Tensor, indices: Tensor) -> Tensor:
        """Step the probe.

        Returns:
            The length of the object's step beside it.
        """
        s, state = self.options, self.state
        direction = self.optics.compute_probe_gradient(update.patches.conj()[:, None] * update.change, indices)
        seen = update.patches.abs().square().sum(0)
        direction = direction / (seen + 0.1 * seen.amax())
        lighting = self.optics.shift_modes(direction, indices) * update.patches[:, None]
        length, probe_length = compute_step_lengths(moving, lighting, update.change, s.damping)
        state.probe = state.probe + s.probe_step * self.step_scale * probe_length * direction
        return length

    def _compute_step_size(self, progress: float) -> tuple[float, float]:
        """Momentum and step at some ``progress`` of the run."""
        s = self.options
        fallen = max(0.0, progress - s.decay_start) / (1 - s.decay_start)
        last = s.final_step * (1 - self.momentum)
        return self.momentum, s.step * min(1.0, last / s.step) ** fallen * self.step_scale

    def _upsample_to_canvas(self, coarse: Tensor) -> Tensor:
        """Blocks spread over the pixels of the canvas, (rows, columns)."""
        rows, columns = self.state.canvas.shape
        return coarse.repeat_interleave(COARSE_BLOCK_PX, 0).repeat_interleave(COARSE_BLOCK_PX, 1)[:rows, :columns]

    def state_dict(self) -> dict[str, Tensor]:
        own = {"velocity": self.velocity, "momentum": torch.tensor(self.momentum, dtype=torch.float64)}
        return own | self.refinement.state_dict()

    def load_state_dict(self, memory: dict[str, Tensor]) -> None:
        self.velocity, self.momentum = memory["velocity"], float(memory["momentum"])
        self.refinement.load_state_dict(memory)

    def reset(self) -> None:
        self.velocity = torch.zeros_like(self.velocity)


def compute_step_length(moving: Tensor, target: Tensor, damping: float) -> Tensor:
    """How far to go along a change of the exit waves, so that each comes nearest to the wanted one; then the mean.

    Args:
        moving: (b, M, N, N) complex, for a step of length 1.
        wanted: (b, M, N, N) complex.
        damping: share of the mean square of ``moving`` added to that of each pattern.

    Returns:
        The mean of the b lengths; none is negative.
    """
    square = _compute_inner_products(moving, moving)
    return (_compute_inner_products(moving, target) / (square + _compute_damping(square, damping))).clamp_min(0).mean()


def compute_step_lengths(first: Tensor, second: Tensor, target: Tensor, damping: float) -> tuple[Tensor, Tensor]:
    """The same along two changes at once: what one of them explains is not asked of the other again."""
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
    """Real inner product of each pattern, (b,)."""
    left, right = torch.view_as_real(left.resolve_conj()), torch.view_as_real(right.resolve_conj())
    return torch.linalg.vecdot(left.flatten(1), right.flatten(1))


def _compute_damping(squares: Tensor, damping: float) -> Tensor:
    return damping * squares.mean() + torch.finfo(squares.dtype).tiny ** 0.5  # so that its square is not 0 either
