"""Least-squares maximum likelihood: object and probe step together, each as far as the exit waves ask for."""

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from ptycho_torch.engines.measurement_model import Correction, Optics
from ptycho_torch.engines.nuisance import Refinement, RefineSettings
from ptycho_torch.engines.pie import COARSE, sum_of_modes
from ptycho_torch.engines.runner import Engine
from ptycho_torch.engines.state import Estimate, Measurement
from ptycho_torch.physics.probe import power_of


@dataclass(frozen=True)
class LsqmlSettings:
    """The steps of the engine."""

    step: float = 1.0
    """Step of the object, in units of the least-squares one."""

    momentum: float | None = None
    """Share of the last step on a pixel that is taken again; None: found from how many patterns light a pixel."""

    settle: float = 0.5
    """Share of the run after which the steps fall."""

    last_step: float = 0.05
    """Step at the end of the run with all its momentum, in the same units."""

    edge: float = 0.2
    """Light of all patterns that is added to the batch's own as divisor: how gently the edge of a batch is treated."""

    damping: float = 0.01
    """Share of the mean square of a direction below which a pattern has no say in its step length."""

    refine: RefineSettings = field(default_factory=RefineSettings)
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

    def __init__(self, measurement: Measurement, estimate: Estimate, settings: LsqmlSettings, batch_size: int) -> None:
        super().__init__(measurement, estimate)
        self.settings = settings
        self.optics = Optics(measurement, estimate, fixed_probe=settings.refine.fixed_probe)
        self.refinement = Refinement(self.optics, settings.refine)
        self.share = min(1.0, batch_size / len(measurement))
        self.velocity = torch.zeros_like(estimate.object)
        self._illuminate()
        self.momentum = self._momentum_of_scan() if settings.momentum is None else settings.momentum

    def _illuminate(self) -> None:
        self._light = self.optics.light(COARSE)
        total = self._light.of()
        self._usual = self.share * (total + 1e-6 * total.amax())
        self._edge = self.settings.edge * (total + 0.01 * total.amax())

    def _momentum_of_scan(self) -> float:
        """The more patterns share the light of a pixel, the better does a step know where the next one will lead."""
        power = power_of(self.estimate.probe)
        density = float(self.optics.light().of().square().sum() / (len(self.measurement) * power.square().sum()))
        return min(0.9, 1 - max(1.0, density) ** -0.5)

    def begin_epoch(self, epoch: int, progress: float) -> None:
        self._epoch = epoch
        if epoch and not self.settings.refine.fixed_probe:
            self._illuminate()

    def step(self, indices: Tensor, progress: float) -> float:
        estimate, refine = self.estimate, self.settings.refine
        momentum, size = self._pace(progress)
        own = self._light.of(indices)
        lit = self._on_canvas((own / self._usual).clamp_max(1))
        ahead, held = momentum * lit * self.velocity, estimate.object
        estimate.object = held + ahead  # Nesterov: the change is asked for where the momentum leads
        found = self.optics.correction(indices, excess=refine.update_background)
        towards = self.optics.placed(sum_of_modes(found.probes.conj() * found.change), indices)
        towards = towards / self._on_canvas(own + self._edge)
        moving = found.probes * self.optics.cut(towards, indices)[:, None]
        if refine.update_probe and self._epoch >= self.settings.probe_start:
            length = self._step_probe(found, moving, indices)
        else:
            length = least_squares_length(moving, found.change, self.settings.damping)
        self.refinement.learn(found, indices, self._epoch)
        change = ahead + size * length * towards
        self.velocity = (1 - lit) * self.velocity + change
        estimate.object = held + change
        return found.error

    def end_epoch(self, epoch: int, progress: float) -> None:
        if self.refinement.end_epoch():
            self.velocity = self.refinement.gauge(self.velocity)

    def follow(self, before: Tensor, change: Callable[[Tensor], Tensor]) -> None:
        self.velocity = change(self.velocity)

    def _step_probe(self, found: Correction, moving: Tensor, indices: Tensor) -> Tensor:
        """Step the probe.

        Returns:
            The length of the object's step beside it.
        """
        s, estimate = self.settings, self.estimate
        towards = self.optics.probe_gradient(found.patches.conj()[:, None] * found.change, indices)
        seen = found.patches.abs().square().sum(0)
        towards = towards / (seen + 0.1 * seen.amax())
        lighting = self.optics.moved_to_fractions(towards, indices) * found.patches[:, None]
        length, probe_length = least_squares_lengths(moving, lighting, found.change, s.damping)
        estimate.probe = estimate.probe + s.probe_step * self.caution * probe_length * towards
        return length

    def _pace(self, progress: float) -> tuple[float, float]:
        """Momentum and step at some ``progress`` of the run."""
        s = self.settings
        fallen = max(0.0, progress - s.settle) / (1 - s.settle)
        last = s.last_step * (1 - self.momentum)
        return self.momentum, s.step * min(1.0, last / s.step) ** fallen * self.caution

    def _on_canvas(self, coarse: Tensor) -> Tensor:
        """Blocks spread over the pixels of the canvas, (rows, columns)."""
        rows, columns = self.estimate.frame.shape
        return coarse.repeat_interleave(COARSE, 0).repeat_interleave(COARSE, 1)[:rows, :columns]

    def memory(self) -> dict[str, Tensor]:
        own = {"velocity": self.velocity, "momentum": torch.tensor(self.momentum, dtype=torch.float64)}
        return own | self.refinement.memory()

    def recall(self, memory: dict[str, Tensor]) -> None:
        self.velocity, self.momentum = memory["velocity"], float(memory["momentum"])
        self.refinement.recall(memory)

    def forget(self) -> None:
        self.velocity = torch.zeros_like(self.velocity)


def least_squares_length(moving: Tensor, wanted: Tensor, damping: float) -> Tensor:
    """How far to go along a change of the exit waves, so that each comes nearest to the wanted one; then the mean.

    Args:
        moving: (b, M, N, N) complex, for a step of length 1.
        wanted: (b, M, N, N) complex.
        damping: share of the mean square of ``moving`` added to that of each pattern.

    Returns:
        The mean of the b lengths; none is negative.
    """
    square = _inner(moving, moving)
    return (_inner(moving, wanted) / (square + _floor(square, damping))).clamp_min(0).mean()


def least_squares_lengths(first: Tensor, second: Tensor, wanted: Tensor, damping: float) -> tuple[Tensor, Tensor]:
    """The same along two changes at once: what one of them explains is not asked of the other again."""
    a, b, c = _inner(first, first), _inner(first, second), _inner(second, second)
    a, c = a + _floor(a, damping), c + _floor(c, damping)
    right = _inner(first, wanted), _inner(second, wanted)
    determinant = a * c - b * b
    along_first = (c * right[0] - b * right[1]) / determinant
    along_second = (a * right[1] - b * right[0]) / determinant
    return along_first.clamp_min(0).mean(), along_second.clamp_min(0).mean()


def _inner(left: Tensor, right: Tensor) -> Tensor:
    """Real inner product of each pattern, (b,)."""
    left, right = torch.view_as_real(left.resolve_conj()), torch.view_as_real(right.resolve_conj())
    return torch.linalg.vecdot(left.flatten(1), right.flatten(1))


def _floor(squares: Tensor, damping: float) -> Tensor:
    return damping * squares.mean() + torch.finfo(squares.dtype).tiny ** 0.5  # so that its square is not 0 either
