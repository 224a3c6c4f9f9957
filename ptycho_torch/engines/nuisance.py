"""What may be learned beside the object and the probe: positions, a background, intensities. And the probe's gauge."""

from dataclasses import dataclass

import torch
from torch import Tensor

from ptycho_torch.engines.measurement_model import ExitWaveUpdate, MeasurementModel
from ptycho_torch.engines.position_refinement import estimate_displacements_by_correlation
from ptycho_torch.physics.probe import compute_center, compute_power, orthogonalize_modes

MAX_STEP_PX = 0.5
"""Pixels that a position may move in one epoch by its gradient."""

POSITION_STEP_FACTOR = 2.0
"""Step of a position by its gradient, in units of what least squares find. Of what a displacement changes in the far
field, a correction sees what lies in the modulus and not in the phase: half, on the average."""

MIN_MOVE_COSINE = 0.3
"""Cosine between the moves of two epochs beyond which a map of positions is moved further, or less far."""

GAIN_GROWTH, GAIN_DECAY, MAX_GAIN = 1.2, 0.5, 10.0
"""Factors on the gain of those moves, and the most that it comes to."""

MAX_INTENSITY_RATIO = 1.5
"""Most by which the intensity of a pattern is changed in one epoch, as a factor up or down."""

CHECKPOINTED_ATTRIBUTES = ("first_positions", "last_moves", "gain", "power", "centre")
"""What a refinement knows beyond the epoch."""


@dataclass(frozen=True)
class RefinementSettings:
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

    def __init__(
        self, optics: MeasurementModel, settings: RefinementSettings, stride: float = POSITION_STEP_FACTOR
    ) -> None:
        self.optics, self.settings, self.stride = optics, settings, stride
        state = optics.state
        self.first_positions = state.positions
        self.power = compute_power(state.probe).sum()
        self.centre = compute_center(compute_power(state.probe))
        self.last_moves = torch.zeros_like(self.first_positions)
        self.gain = torch.ones((), dtype=torch.float64)
        self._start_epoch()

    def _start_epoch(self) -> None:
        self._moves = torch.zeros_like(self.first_positions)
        self._curvature = self.first_positions.new_zeros(len(self.first_positions), 2, 2)
        self._intensity_ratios = torch.ones_like(self.optics.state.intensities)
        self._background_residual = torch.zeros_like(self.optics.state.background)
        self._background_weight = torch.zeros_like(self._background_residual)

    def accumulate(self, found: ExitWaveUpdate, indices: Tensor, epoch: int) -> None:
        """Take note of a batch."""
        if self.settings.update_positions and epoch >= self.settings.position_start:
            if self.settings.position_method == "correlation":
                moves, curvature = estimate_displacements_by_correlation(self.optics, found, indices)
            else:
                moves, curvature = estimate_displacements(self.optics, found, indices, self.stride)
            self._moves[indices] = moves.to("cpu", torch.float64)
            self._curvature[indices] = curvature.to("cpu", torch.float64)
        if self.settings.update_intensity and epoch:
            self._intensity_ratios[indices] = estimate_intensity_ratios(found)
        if self.settings.update_background and found.excess is not None and epoch:
            counts = self.optics.measurement.counts[indices]
            weight = 1 / (counts - found.excess + 1)
            mask = self.optics.measurement.select_mask(indices)
            if mask is not None:
                weight = torch.where(mask, weight, torch.zeros_like(weight))
            self._background_residual = self._background_residual + (found.excess * weight).sum(0)
            self._background_weight = self._background_weight + weight.sum(0)

    def end_epoch(self) -> bool:
        """Put to use what the epoch taught.

        Returns:
            Whether the object was moved or scaled, so that a momentum of it must follow by :attr:`apply_ambiguity_fix`.
        """
        state = self.optics.state
        if bool(self._background_weight.any()):
            step = self._background_residual / self._background_weight.clamp_min(1e-30)
            state.background = (state.background + step).clamp_min(0)
        moved, brightened = bool(self._moves.any()), bool((self._intensity_ratios != 1).any())
        if moved:
            self._move_positions()
        if brightened:
            state.intensities = remove_slow_variation(state.intensities * self._intensity_ratios, self.first_positions)
        if moved or brightened:
            self.optics.refresh()
        self._start_epoch()
        return self.settings.update_probe and self._fix_ambiguities()

    def _move_positions(self) -> None:
        s, state, first = self.settings, self.optics.state, self.first_positions
        moves = self._moves
        if s.position_model == "affine":
            moves = fit_affine_part(moves, self._curvature, first)
            self._update_gain(moves)
            moves = moves * self.gain
        moved = clip_displacements(state.positions - first + moves, s.position_bound, s.position_model)
        state.positions = first + moved

    def _update_gain(self, moves: Tensor) -> None:
        """Move further while the epochs agree on where to, and less far where they turn back.

        The object gives way to a map of all positions more than to the move of one, so that an epoch sees a small
        share of it: Zhang et al., Opt. Express 21, 13592 (2013).
        """
        lengths = torch.linalg.vector_norm(moves) * torch.linalg.vector_norm(self.last_moves)
        cosine = float((moves * self.last_moves).sum() / lengths.clamp_min(1e-30))
        if abs(cosine) > MIN_MOVE_COSINE:
            self.gain = (self.gain * (GAIN_GROWTH if cosine > 0 else GAIN_DECAY)).clamp(1.0, MAX_GAIN)
        self.last_moves = moves

    def _fix_ambiguities(self) -> bool:
        """Keep the probe's power and place as they were, and its modes orthogonal: the scan leaves them free."""
        state = self.optics.state
        probe = orthogonalize_modes(state.probe)
        self.scale = float((self.power / compute_power(probe).sum()).sqrt())
        drift = (compute_center(compute_power(probe)) - self.centre).round().int().tolist()
        self.roll = (-drift[0], -drift[1])
        state.probe = torch.roll(probe * self.scale, self.roll, (-2, -1))
        state.object = self.apply_ambiguity_fix(state.object)
        return True

    def apply_ambiguity_fix(self, canvas: Tensor) -> Tensor:
        """What :meth:`end_epoch` did to the object, done to something on the same canvas."""
        return torch.roll(canvas / self.scale, self.roll, (-2, -1)) if any(self.roll) else canvas / self.scale

    def state_dict(self) -> dict[str, Tensor]:
        """For checkpoints."""
        return {name: getattr(self, name) for name in CHECKPOINTED_ATTRIBUTES}

    def load_state_dict(self, memory: dict[str, Tensor]) -> None:
        """Take back what :meth:`state_dict` gave; positions and intensities may have changed with it."""
        for name in CHECKPOINTED_ATTRIBUTES:
            setattr(self, name, memory[name].to(getattr(self, name).device))
        self._start_epoch()
        if self.settings.update_positions or self.settings.update_intensity:
            self.optics.refresh()


def fit_affine_part(moves: Tensor, curvature: Tensor, start: Tensor) -> Tensor:
    """The moves of all positions by one map, ``A (start − middle) + shift``, that explain the patterns best.

    Each pattern has its say by what it knows, direction by direction: moves of what is hardly seen would else lead the
    map astray. Without the shift, which the object takes up, A has four parameters: two scales, rotation and shear.

    Args:
        moves: (n, 2) (y, x) in pixels, each pattern's own.
        certainty: (n, 2, 2) curvature of its misfit for them.
        start: (n, 2) the positions that the map is of.
    """
    terms = torch.cat([start - start.mean(0), start.new_ones(len(start), 1)], 1)
    matrix = torch.einsum("nij,na,nb->iajb", curvature, terms, terms).reshape(6, 6)
    right = torch.einsum("nij,nj,na->ia", curvature, moves, terms).reshape(6)
    scale = matrix.diagonal().clamp_min(1e-300).rsqrt()  # a row of positions says nothing across it
    found = scale * (torch.linalg.pinv(matrix * scale[:, None] * scale, rtol=1e-9, hermitian=True) @ (scale * right))
    return terms[:, :2] @ found.reshape(2, 3)[:, :2].mT


def clip_displacements(moved: Tensor, bound: float, model: str) -> Tensor:
    """Displacements (n, 2) without a common shift, and at most ``bound`` pixels on either axis.

    A map of all positions is bounded as a whole: cut at single positions it would be none.
    """
    moved = moved - moved.mean(0)
    if model == "affine":
        return moved * min(1.0, bound / max(float(moved.abs().max()), bound))
    return moved.clamp(-bound, bound)


def estimate_intensity_ratios(found: ExitWaveUpdate) -> Tensor:
    """By which factor the intensity of each pattern of a batch is off, (b,), at most :data:`MAX_INTENSITY_RATIO` up or down."""
    exits = torch.view_as_real(found.probes * found.patches[:, None]).flatten(1)
    asked = torch.linalg.vecdot(exits, torch.view_as_real(found.change).flatten(1))
    power = torch.linalg.vecdot(exits, exits)
    ratio = 1 + asked / power.clamp_min(torch.finfo(power.dtype).tiny)
    return ratio.clamp_min(0).square().clamp(1 / MAX_INTENSITY_RATIO, MAX_INTENSITY_RATIO)


def remove_slow_variation(intensities: Tensor, positions: Tensor) -> Tensor:
    """Intensities (n,) of mean one, whose logarithms hold no polynomial of second order in the positions (n, 2)."""
    place = positions - positions.mean(0)
    y, x = (place / place.abs().amax().clamp_min(1e-9)).unbind(1)
    terms = torch.stack([torch.ones_like(x), y, x, y * y, y * x, x * x], 1)
    logs = intensities.to("cpu", torch.float64).log()
    slow = terms @ (torch.linalg.pinv(terms, rtol=1e-9) @ logs)
    even = torch.exp(logs - slow)
    return (even / even.mean()).to(intensities)


def estimate_displacements(
    optics: MeasurementModel, found: ExitWaveUpdate, indices: Tensor, stride: float = POSITION_STEP_FACTOR
) -> tuple[Tensor, Tensor]:
    """By how much each position of a batch is off, to first order; ``stride`` as :data:`POSITION_STEP_FACTOR`.
    Returns:
        (b, 2) (y, x) in pixels, at most :data:`MAX_STEP_PX` on either axis; and the curvature of the misfit for them,
        (b, 2, 2) in photons a square pixel.
    """
    down, across = (
        found.probes * optics.extract(slope, indices)[:, None] for slope in compute_object_gradient(optics.state.object)
    )
    moves, curvature = solve_displacements(down, across, found.change)
    return (stride * moves).clamp(-MAX_STEP_PX, MAX_STEP_PX), curvature


def compute_object_gradient(obj: Tensor) -> tuple[Tensor, Tensor]:
    """How ``obj`` (rows, columns) changes a pixel, down and across; the margin keeps windows off the edge."""
    down, across = ((torch.roll(obj, -1, axis) - torch.roll(obj, 1, axis)) / 2 for axis in (0, 1))
    return down, across


def solve_displacements(
    down: Tensor, across: Tensor, change: Tensor, damping: Tensor | float = 0.0
) -> tuple[Tensor, Tensor]:
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
