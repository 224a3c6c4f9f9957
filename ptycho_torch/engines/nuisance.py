"""What may be learned beside the object and the probe: positions, a background, intensities. And the probe's gauge."""

from dataclasses import dataclass

import torch
from torch import Tensor

from ptycho_torch.engines.measurement_model import Correction, Optics
from ptycho_torch.engines.position_refinement import correlated_displacements
from ptycho_torch.physics.probe import centre_of, orthogonalised, power_of

LONGEST_STEP = 0.5
"""Pixels that a position may move in one epoch by its gradient."""

STRIDE = 2.0
"""Step of a position by its gradient, in units of what least squares find. Of what a displacement changes in the far
field, a correction sees what lies in the modulus and not in the phase: half, on the average."""

TURN = 0.3
"""Cosine between the moves of two epochs beyond which a map of positions is moved further, or less far."""

HASTE, SLOWING, LARGEST_GAIN = 1.2, 0.5, 10.0
"""Factors on the gain of those moves, and the most that it comes to."""

BRIGHTER = 1.5
"""Most by which the intensity of a pattern is changed in one epoch, as a factor up or down."""

REMEMBERED = ("first_positions", "last_moves", "gain", "power", "centre")
"""What a refinement knows beyond the epoch."""


@dataclass(frozen=True)
class RefineSettings:
    """What is learned, and from when on."""

    update_probe: bool = False
    update_positions: bool = False
    position_start: int = 3
    """Epoch from which on positions move: before, the object is too rough to tell."""

    position_bound: float = 5.0
    """Farthest that a position may move on either axis, in pixels."""

    position_method: str = "gradient"
    """``gradient``: least squares to first order; ``correlation``: the peak of a cross-correlation."""

    position_model: str = "free"
    """``free``: each by itself; ``affine``: all by one linear map about their middle."""

    update_background: bool = False
    update_intensity: bool = False

    @property
    def fixed_probe(self) -> bool:
        """Whether the probes at all positions stay as they are."""
        return not (self.update_probe or self.update_positions or self.update_intensity)


class Refinement:
    """Learns from the corrections of an engine's batches what the engine itself does not.

    Positions: a displacement s changes the exit wave by ``P ∇O · s`` to first order, and the least squares against its
    correction give s for each pattern (Odstrčil, Menzel & Guizar-Sicairos, Opt. Express 26, 3108 (2018), section 5); or
    s is where the corrected exit wave correlates best with the object (:mod:`~ptycho_torch.engines.position_refinement`).
    Their mean displacement stays zero, since a shift of all of them is a shift of the object. By the affine model only
    one map of all positions moves: stage and camera set wrongly scale, turn and shear a scan as a whole.

    Background: the zero of the likelihood's derivative to first order, ``Σ (k/I − 1) / Σ 1/I`` over all patterns.

    Intensities: the least squares of ``c ψ`` against the corrected exit wave give a factor c² for each pattern. Their
    mean stays one, and what varies slowly over the field is left to the object: patterns hardly tell a source that
    fades from an object that darkens, and the two would drift apart.
    """

    def __init__(self, optics: Optics, settings: RefineSettings, stride: float = STRIDE) -> None:
        self.optics, self.settings, self.stride = optics, settings, stride
        estimate = optics.estimate
        self.first_positions = estimate.positions
        self.power = power_of(estimate.probe).sum()
        self.centre = centre_of(power_of(estimate.probe))
        self.last_moves = torch.zeros_like(self.first_positions)
        self.gain = torch.ones((), dtype=torch.float64)
        self._start_epoch()

    def _start_epoch(self) -> None:
        self._moves = torch.zeros_like(self.first_positions)
        self._certainty = self.first_positions.new_zeros(len(self.first_positions), 2, 2)
        self._brighter = torch.ones_like(self.optics.estimate.intensities)
        self._missing = torch.zeros_like(self.optics.estimate.background)
        self._weight = torch.zeros_like(self._missing)

    def learn(self, found: Correction, indices: Tensor, epoch: int) -> None:
        """Take note of a batch."""
        if self.settings.update_positions and epoch >= self.settings.position_start:
            if self.settings.position_method == "correlation":
                moves, certainty = correlated_displacements(self.optics, found, indices)
            else:
                moves, certainty = displacements(self.optics, found, indices, self.stride)
            self._moves[indices] = moves.to("cpu", torch.float64)
            self._certainty[indices] = certainty.to("cpu", torch.float64)
        if self.settings.update_intensity and epoch:
            self._brighter[indices] = intensity_ratios(found)
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
        moved, brightened = bool(self._moves.any()), bool((self._brighter != 1).any())
        if moved:
            self._move()
        if brightened:
            estimate.intensities = without_slow_part(estimate.intensities * self._brighter, self.first_positions)
        if moved or brightened:
            self.optics.moved()
        self._start_epoch()
        return self.settings.update_probe and self._fix_gauge()

    def _move(self) -> None:
        s, estimate, first = self.settings, self.optics.estimate, self.first_positions
        moves = self._moves
        if s.position_model == "affine":
            moves = affine_part(moves, self._certainty, first)
            self._hasten(moves)
            moves = moves * self.gain
        moved = bounded(estimate.positions - first + moves, s.position_bound, s.position_model)
        estimate.positions = first + moved

    def _hasten(self, moves: Tensor) -> None:
        """Move further while the epochs agree on where to, and less far where they turn back.

        The object gives way to a map of all positions more than to the move of one, so that an epoch sees a small
        share of it: Zhang et al., Opt. Express 21, 13592 (2013).
        """
        lengths = torch.linalg.vector_norm(moves) * torch.linalg.vector_norm(self.last_moves)
        cosine = float((moves * self.last_moves).sum() / lengths.clamp_min(1e-30))
        if abs(cosine) > TURN:
            self.gain = (self.gain * (HASTE if cosine > 0 else SLOWING)).clamp(1.0, LARGEST_GAIN)
        self.last_moves = moves

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
        return {name: getattr(self, name) for name in REMEMBERED}

    def recall(self, memory: dict[str, Tensor]) -> None:
        """Take back what :meth:`memory` gave; positions and intensities may have changed with it."""
        for name in REMEMBERED:
            setattr(self, name, memory[name].to(getattr(self, name).device))
        self._start_epoch()
        if self.settings.update_positions or self.settings.update_intensity:
            self.optics.moved()


def affine_part(moves: Tensor, certainty: Tensor, start: Tensor) -> Tensor:
    """The moves of all positions by one map, ``A (start − middle) + shift``, that explain the patterns best.

    Each pattern has its say by what it knows, direction by direction: moves of what is hardly seen would else lead the
    map astray. Without the shift, which the object takes up, A has four parameters: two scales, rotation and shear.

    Args:
        moves: (n, 2) (y, x) in pixels, each pattern's own.
        certainty: (n, 2, 2) curvature of its misfit for them.
        start: (n, 2) the positions that the map is of.
    """
    terms = torch.cat([start - start.mean(0), start.new_ones(len(start), 1)], 1)
    matrix = torch.einsum("nij,na,nb->iajb", certainty, terms, terms).reshape(6, 6)
    right = torch.einsum("nij,nj,na->ia", certainty, moves, terms).reshape(6)
    scale = matrix.diagonal().clamp_min(1e-300).rsqrt()  # a row of positions says nothing across it
    found = scale * (torch.linalg.pinv(matrix * scale[:, None] * scale, rtol=1e-9, hermitian=True) @ (scale * right))
    return terms[:, :2] @ found.reshape(2, 3)[:, :2].mT


def bounded(moved: Tensor, bound: float, model: str) -> Tensor:
    """Displacements (n, 2) without a common shift, and at most ``bound`` pixels on either axis.

    A map of all positions is bounded as a whole: cut at single positions it would be none.
    """
    moved = moved - moved.mean(0)
    if model == "affine":
        return moved * min(1.0, bound / max(float(moved.abs().max()), bound))
    return moved.clamp(-bound, bound)


def intensity_ratios(found: Correction) -> Tensor:
    """By which factor the intensity of each pattern of a batch is off, (b,), at most :data:`BRIGHTER` up or down."""
    exits = torch.view_as_real(found.probes * found.patches[:, None]).flatten(1)
    asked = torch.linalg.vecdot(exits, torch.view_as_real(found.change).flatten(1))
    power = torch.linalg.vecdot(exits, exits)
    ratio = 1 + asked / power.clamp_min(torch.finfo(power.dtype).tiny)
    return ratio.clamp_min(0).square().clamp(1 / BRIGHTER, BRIGHTER)


def without_slow_part(intensities: Tensor, positions: Tensor) -> Tensor:
    """Intensities (n,) of mean one, whose logarithms hold no polynomial of second order in the positions (n, 2)."""
    place = positions - positions.mean(0)
    y, x = (place / place.abs().amax().clamp_min(1e-9)).unbind(1)
    terms = torch.stack([torch.ones_like(x), y, x, y * y, y * x, x * x], 1)
    logs = intensities.to("cpu", torch.float64).log()
    slow = terms @ (torch.linalg.pinv(terms, rtol=1e-9) @ logs)
    even = torch.exp(logs - slow)
    return (even / even.mean()).to(intensities)


def displacements(optics: Optics, found: Correction, indices: Tensor, stride: float = STRIDE) -> tuple[Tensor, Tensor]:
    """By how much each position of a batch is off, to first order; ``stride`` as :data:`STRIDE`.
    Returns:
        (b, 2) (y, x) in pixels, at most :data:`LONGEST_STEP` on either axis; and the curvature of the misfit for them,
        (b, 2, 2) in photons a square pixel.
    """
    down, across = (found.probes * optics.cut(slope, indices)[:, None] for slope in slopes(optics.estimate.object))
    moves, curvature = least_squares(down, across, found.change)
    return (stride * moves).clamp(-LONGEST_STEP, LONGEST_STEP), curvature


def slopes(obj: Tensor) -> tuple[Tensor, Tensor]:
    """How ``obj`` (rows, columns) changes a pixel, down and across; the margin keeps windows off the edge."""
    down, across = ((torch.roll(obj, -1, axis) - torch.roll(obj, 1, axis)) / 2 for axis in (0, 1))
    return down, across


def least_squares(down: Tensor, across: Tensor, change: Tensor, damping: Tensor | float = 0.0) -> tuple[Tensor, Tensor]:
    """The displacements by which ``down`` and ``across``, what a pixel of each does, explain ``change`` best.

    Args:
        down: (b, …), real or complex.
        across: of that shape.
        change: of that shape.
        damping: (b,) added to the curvature of the misfit on both axes.

    Returns:
        (b, 2) (y, x) in pixels; and the curvature of the misfit for them, (b, 2, 2).
    """

    def inner(left: Tensor, right: Tensor) -> Tensor:
        return (left.conj() * right).real.flatten(1).sum(1)

    a, b, c = inner(down, down), inner(down, across), inner(across, across)
    damped = damping + 1e-3 * (a + c) + 1e-18  # a flat object says nothing about positions; its square is not 0 either
    a, c = a + damped, c + damped
    determinant = a * c - b * b
    y = (c * inner(down, change) - b * inner(across, change)) / determinant
    x = (a * inner(across, change) - b * inner(down, change)) / determinant
    curvature = torch.stack([a, b, b, c], -1).unflatten(-1, (2, 2))
    return torch.stack([y, x], -1), curvature
