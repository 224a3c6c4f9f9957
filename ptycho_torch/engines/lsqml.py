"""Least-squares maximum likelihood: object and probe step together, each as far as the exit waves ask for."""

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from ptycho_torch.engines.measurement_model import ExitWaveUpdate, MeasurementModel
from ptycho_torch.engines.nuisance import NuisanceRefiner, RefinementSettings
from ptycho_torch.engines.pie import COARSE_BLOCK_PX
from ptycho_torch.engines.runner import Engine
from ptycho_torch.engines.state import Measurement, ReconstructionState
from ptycho_torch.physics.forward import project_onto_patches
from ptycho_torch.physics.probe import compute_power


@dataclass(frozen=True)
class LsqmlSettings:
    """The steps of the engine."""

    step: float = 1.0
    """Step of the object, in units of the least-squares one."""

    momentum: float | None = None
    """Share of the last step on a pixel that is taken again; None: found from how many patterns light a pixel."""

    decay_start: float = 0.5
    """Share of the run after which the steps fall."""

    final_step: float = 0.05
    """Step at the end of the run with all its momentum, in the same units."""

    edge_damping: float = 0.2
    """Light of all patterns that is added to the batch's own as divisor: how gently the edge of a batch is treated."""

    damping: float = 0.01
    """Share of the mean square of a direction below which a pattern has no say in its step length."""

    refine: RefinementSettings = field(default_factory=RefinementSettings)
    """What is learned besides the object."""

    probe_step: float = 1.0
    """Step of the probe, in units of the least-squares one."""

    probe_start: int = 0
    """Epoch from which on the probe learns."""


class Lsqml(Engine):
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

    def __init__(
        self, measurement: Measurement, state: ReconstructionState, settings: LsqmlSettings, batch_size: int
    ) -> None:
        super().__init__(measurement, state)
        self.settings = settings
        self.optics = MeasurementModel(measurement, state, fixed_probe=settings.refine.fixed_probe)
        self.refinement = NuisanceRefiner(self.optics, settings.refine)
        self.batch_fraction = min(1.0, batch_size / len(measurement))
        self.velocity = torch.zeros_like(state.object)
        self._update_illumination()
        self.momentum = self._estimate_momentum() if settings.momentum is None else settings.momentum

    def _update_illumination(self) -> None:
        self._illumination = self.optics.make_illumination_map(COARSE_BLOCK_PX)
        total = self._illumination.sum_positions()
        self._mean_batch_illumination = self.batch_fraction * (total + 1e-6 * total.amax())
        self._edge = self.settings.edge_damping * (total + 0.01 * total.amax())

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
        if epoch and not self.settings.refine.fixed_probe:
            self._update_illumination()

    def step(self, indices: Tensor, progress: float) -> float:
        state, refine = self.state, self.settings.refine
        momentum, size = self._compute_step_size(progress)
        own = self._illumination.sum_positions(indices)
        weight = self._upsample_to_canvas((own / self._mean_batch_illumination).clamp_max(1))
        ahead, current = momentum * weight * self.velocity, state.object
        state.object = current + ahead  # Nesterov: the change is asked for where the momentum leads
        update = self.optics.compute_update(indices, excess=refine.update_background)
        direction = self.optics.place(project_onto_patches(update.change, update.probes), indices)
        direction = direction / self._upsample_to_canvas(own + self._edge)
        moving = update.probes * self.optics.extract(direction, indices)[:, None]
        if refine.update_probe and self._epoch >= self.settings.probe_start:
            length = self._step_probe(update, moving, indices)
        else:
            length = compute_step_length(moving, update.change, self.settings.damping)
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
        s, state = self.settings, self.state
        direction = self.optics.compute_probe_gradient(update.patches.conj()[:, None] * update.change, indices)
        seen = update.patches.abs().square().sum(0)
        direction = direction / (seen + 0.1 * seen.amax())
        lighting = self.optics.shift_modes(direction, indices) * update.patches[:, None]
        length, probe_length = compute_step_lengths(moving, lighting, update.change, s.damping)
        state.probe = state.probe + s.probe_step * self.step_scale * probe_length * direction
        return length

    def _compute_step_size(self, progress: float) -> tuple[float, float]:
        """Momentum and step at some ``progress`` of the run."""
        s = self.settings
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
