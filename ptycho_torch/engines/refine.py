"""What may be learned beside the object and the probe: positions and a background. And the gauge of the probe."""

from dataclasses import dataclass

import torch
from torch import Tensor

from ptycho_torch.engines.optics import Correction, Optics
from ptycho_torch.physics.probe import centre_of, orthogonalised, power_of

LONGEST_STEP = 0.5
"""Pixels that a position may move in one epoch."""


@dataclass(frozen=True)
class RefineSettings:
    """What is learned, and from when on."""

    update_probe: bool = False
    update_positions: bool = False
    position_start: int = 3
    """Epoch from which on positions move: before, the object is too rough to tell."""

    position_bound: float = 5.0
    """Farthest that a position may move on either axis, in pixels."""

    update_background: bool = False

    @property
    def fixed_probe(self) -> bool:
        """Whether the probes at all positions stay as they are."""
        return not (self.update_probe or self.update_positions)


class Refinement:
    """Learns from the corrections of an engine's batches what the engine itself does not.

    Positions: a displacement s changes the exit wave by ``P ∇O · s`` to first order, and the least squares against its
    correction give s for each pattern (Odstrčil, Menzel & Guizar-Sicairos, Opt. Express 26, 3108 (2018), section 5).
    Their mean displacement stays zero, since a shift of all of them is a shift of the object.

    Background: the zero of the likelihood's derivative to first order, ``Σ (k/I − 1) / Σ 1/I`` over all patterns.
    """

    def __init__(self, optics: Optics, settings: RefineSettings) -> None:
        self.optics, self.settings = optics, settings
        estimate = optics.estimate
        self.first_positions = estimate.positions
        self.power = power_of(estimate.probe).sum()
        self.centre = centre_of(power_of(estimate.probe))
        self._start_epoch()

    def _start_epoch(self) -> None:
        self._moves = torch.zeros_like(self.first_positions)
        self._missing = torch.zeros_like(self.optics.estimate.background)
        self._weight = torch.zeros_like(self._missing)

    def learn(self, found: Correction, indices: Tensor, epoch: int) -> None:
        """Take note of a batch."""
        if self.settings.update_positions and epoch >= self.settings.position_start:
            self._moves[indices] = displacements(self.optics, found, indices).to("cpu", torch.float64)
        if self.settings.update_background and found.excess is not None and epoch:
            counts = self.optics.measurement.counts[indices]
            weight = 1 / (counts - found.excess + 1)
            mask = self.optics.measurement.mask_of(indices)
            if mask is not None:
                weight = torch.where(mask, weight, torch.zeros_like(weight))
            self._missing = self._missing + (found.excess * weight).sum(0)
            self._weight = self._weight + weight.sum(0)

    def end_epoch(self) -> bool:
        """Put to use what the epoch taught.

        Returns:
            Whether the object was moved or scaled, so that a momentum of it must follow by :attr:`gauge`.
        """
        estimate = self.optics.estimate
        if bool(self._weight.any()):
            step = self._missing / self._weight.clamp_min(1e-30)
            estimate.background = (estimate.background + step).clamp_min(0)
        if bool(self._moves.any()):
            self._move()
        self._start_epoch()
        return self.settings.update_probe and self._fix_gauge()

    def _move(self) -> None:
        s, estimate = self.settings, self.optics.estimate
        moved = estimate.positions + self._moves - self.first_positions
        moved = (moved - moved.mean(0)).clamp(-s.position_bound, s.position_bound)
        estimate.positions = self.first_positions + moved
        self.optics.moved()

    def _fix_gauge(self) -> bool:
        """Keep the probe's power and place as they were, and its modes orthogonal: the scan leaves them free."""
        estimate = self.optics.estimate
        probe = orthogonalised(estimate.probe)
        self.scale = float((self.power / power_of(probe).sum()).sqrt())
        drift = (centre_of(power_of(probe)) - self.centre).round().int().tolist()
        self.roll = (-drift[0], -drift[1])
        estimate.probe = torch.roll(probe * self.scale, self.roll, (-2, -1))
        estimate.object = self.gauge(estimate.object)
        return True

    def gauge(self, canvas: Tensor) -> Tensor:
        """What :meth:`end_epoch` did to the object, done to something on the same canvas."""
        return torch.roll(canvas / self.scale, self.roll, (-2, -1)) if any(self.roll) else canvas / self.scale

    def memory(self) -> dict[str, Tensor]:
        """For checkpoints."""
        return {
            "first_positions": self.first_positions,
            "power": self.power,
            "centre": self.centre,
        }

    def recall(self, memory: dict[str, Tensor]) -> None:
        """Take back what :meth:`memory` gave; positions may have changed with it."""
        self.first_positions, self.power, self.centre = (
            memory[name] for name in ("first_positions", "power", "centre")
        )
        self._start_epoch()
        if self.settings.update_positions:
            self.optics.moved()


def displacements(optics: Optics, found: Correction, indices: Tensor) -> Tensor:
    """By how much each position of a batch is off, to first order, (b, 2) (y, x) in pixels.

    At most :data:`LONGEST_STEP` on either axis.
    """
    obj = optics.estimate.object
    slopes = []
    for axis in (0, 1):
        slope = (torch.roll(obj, -1, axis) - torch.roll(obj, 1, axis)) / 2  # the margin keeps windows off the edge
        slopes.append(found.probes * optics.cut(slope, indices)[:, None])
    (a, b, c), right = _normal_equations(slopes[0], slopes[1], found.change)
    damped = 1e-3 * (a + c) + 1e-30  # a flat object says nothing about positions
    a, c = a + damped, c + damped
    determinant = a * c - b * b
    y = (c * right[0] - b * right[1]) / determinant
    x = (a * right[1] - b * right[0]) / determinant
    return torch.stack([y, x], -1).clamp(-LONGEST_STEP, LONGEST_STEP)


def _normal_equations(first: Tensor, second: Tensor, change: Tensor) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
    def inner(left: Tensor, right: Tensor) -> Tensor:
        return (left.conj() * right).real.flatten(1).sum(1)

    matrix = (inner(first, first), inner(first, second), inner(second, second))
    return matrix, (inner(first, change), inner(second, change))
