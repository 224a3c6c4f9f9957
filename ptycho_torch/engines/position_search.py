"""Search for scan positions with errors of many pixels, before the first epoch of an engine."""

import logging
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from ptycho_torch.config.engines import IterativeOptions
from ptycho_torch.engines.state import Measurement, ReconstructionState
from ptycho_torch.physics.forward import compute_detector_waves, project_onto_patches
from ptycho_torch.physics.fourier import inverse_far_field
from ptycho_torch.physics.patches import Canvas, extract_patches, make_canvas, place_patches, split_positions
from ptycho_torch.physics.position_refinement import limit_displacements, remove_affine_part
from ptycho_torch.physics.probe import compute_power

MIN_SEARCHED_BOUND_PX = 5.0
"""Bound above which positions are searched for; within it the estimators of single displacements converge."""

MIN_SEARCHED_PATTERNS = 32
"""Number of patterns below which the errors of the positions do not average out in the first object."""

MIN_COARSE_SIZE_PX, MIN_COARSE_PHOTONS = 16, 0.95
"""Side of the central part of the patterns that the search uses, and the fraction of the photons in it, at least."""

FIRST_EPOCHS, ROUNDS, TRIALS = 2, 16, 12
"""Epochs with the initial positions; rounds of a search and an epoch; trials per pattern and round."""

WIDE_TRIALS = 4
"""Number of the trials that are drawn around the initial position, with the spread of the bound."""

GRID_ROUNDS, GRID_FRACTION = (7, 11, 14), 0.1
"""Rounds that also try all positions within the bound, for that fraction of the patterns: those of largest misfit."""

FIRST_RADIUS, LAST_RADIUS_PX = 0.7, 1.0
"""Radius of the trials in the first round, as a fraction of the bound, and in the last, in pixels of the search."""

DISPLACEMENT_PENALTY = 0.1
"""Increase of the logarithm of the misfit per ``|displacement|² / (2 (bound / 3)²)``, against similar distant parts."""

STEP, DIVISOR_FLOOR, PATTERNS_PER_STEP = 0.5, 0.05, 16
"""Step of the object, its regularization relative to the largest illumination, and patterns per batch."""

TRIALS_PER_CHUNK = 64
"""Number of trials that are computed at once: their waves stay in the cache of a processor."""

MAX_FINAL_MISFIT = 0.6
"""Largest misfit of the positions found, relative to that of the initial positions, with which they are accepted."""

MIN_MOVED_FRACTION, MOVED_MISFIT, MOVED_PX = 0.1, 0.8, 2.0
"""Errors are large if, in the first round, that fraction of the patterns has less than ``MOVED_MISFIT`` times its
misfit at a distance of over ``MOVED_PX`` pixels."""

log = logging.getLogger(__name__)


class CoarsePatterns(NamedTuple):
    """Patterns, probe and positions at the resolution of the search."""

    factor: int
    """Object pixels per pixel of the search, along one axis."""

    amplitudes: Tensor
    """(n, S, S) real √photons without the background and for equal intensities, zero frequency at [0, 0]."""

    mask: Tensor | None
    """(n or 1, S, S) bool, True where a pixel counts; None: all count."""

    probe: Tensor
    """(M, S, S) complex in √photons."""

    positions: Tensor
    """(n, 2) float64 initial positions, in pixels of the search."""


def search_positions(
    measurement: Measurement, state: ReconstructionState, options: IterativeOptions, rng: np.random.Generator
) -> Tensor | None:
    """Search for the positions within the bound around those of ``state``, to about a pixel.

    There is a search if positions are refined freely, with a bound above :data:`MIN_SEARCHED_BOUND_PX` and an unknown,
    constant object.

    The object is reconstructed at a low resolution while the displacements are searched for. After each epoch random
    displacements of each pattern compete by the misfit of the pattern, within a radius that shrinks: Maiden, Humphry,
    Sarahan, Kraus & Rodenburg, Ultramicroscopy 120, 64 (2012). The errors average out in the first object, so that it
    is a blurred version of the true object, at its place.

    An affine map of all positions is removed in each round, since a blurred object is larger than the true one. The map
    is fitted to the positions found: fitted to the initial positions, whose errors are part of the displacements, it
    would be biased by the ratio of the variances of errors and positions.

    Args:
        measurement: The patterns.
        state: Probe, positions, background, intensities and excluded patterns.
        options: The bound, and whether the engine refines positions.
        rng: Generator of the batches and trials.

    Returns:
        Positions (n, 2), or None if there is no search, the initial positions have small errors, or no better ones were
        found.
    """
    refines = options.update_positions and options.position_model == "free"
    if not refines or options.epochs <= options.position_start or options.position_bound <= MIN_SEARCHED_BOUND_PX:
        return None
    object_given = bool((state.object != state.object[0, 0]).any())
    if object_given or len(state.find_included()) < MIN_SEARCHED_PATTERNS:
        return None
    return _Search(make_coarse_patterns(measurement, state), state, options.position_bound, rng).run()


def make_coarse_patterns(measurement: Measurement, state: ReconstructionState) -> CoarsePatterns:
    """Return the central part of the patterns that contains nearly all photons, with a probe on larger pixels."""
    size, mean = measurement.size, measurement.counts.mean(0)
    factor = 1
    while size % (4 * factor) == 0 and size // (2 * factor) >= MIN_COARSE_SIZE_PX:
        if float(_crop(mean, size // (2 * factor)).sum()) < MIN_COARSE_PHOTONS * float(mean.sum()):
            break
        factor *= 2
    side = size // factor
    rates = (_crop(measurement.counts, side) - _crop(state.background, side)).clamp_min(0)
    amplitudes = (rates / state.intensities[:, None, None]).sqrt()
    mask = None if measurement.mask is None else _crop(measurement.mask, side)
    waves = _crop(torch.fft.fft2(torch.fft.ifftshift(state.probe, dim=(-2, -1)), norm="ortho"), side)
    probe = torch.fft.fftshift(torch.fft.ifft2(waves, norm="ortho"), dim=(-2, -1))
    return CoarsePatterns(factor, amplitudes, mask, probe, state.positions / factor)


def _crop(values: Tensor, side: int) -> Tensor:
    """Return the lowest frequencies of ``values`` (*, N, N), which has the zero frequency at [0, 0], (*, S, S)."""
    kept = torch.arange(-(side // 2), side - side // 2, device=values.device).roll(-(side // 2)) % values.shape[-1]
    return values[..., kept, :][..., kept]


class _Search:
    """A search in progress, within ``bound`` object pixels per axis."""

    def __init__(
        self, patterns: CoarsePatterns, state: ReconstructionState, bound: float, rng: np.random.Generator
    ) -> None:
        self.patterns, self.rng, self.bound = patterns, rng, bound / patterns.factor
        self.included = state.find_included()
        self.initial = self.positions = patterns.positions
        self.size = patterns.probe.shape[-1]
        corners, _ = split_positions(self.initial, self.size)
        self.canvas: Canvas = make_canvas(corners, self.size, int(np.ceil(self.bound)) + 2)
        self.object = torch.ones(self.canvas.shape, dtype=patterns.probe.dtype, device=patterns.probe.device)
        self.power = compute_power(patterns.probe)
        self.weights = torch.ones(len(self.initial), dtype=self.power.dtype, device=self.power.device)

    def run(self) -> Tensor | None:
        """Return the positions (n, 2) in object pixels; None: without better positions."""
        for _ in range(FIRST_EPOCHS):
            self.update_object()
        first = self.compute_misfits(self.initial[self.included], self.included)
        for number in range(ROUNDS):
            moved = self.search(self._draw_trials(number), self.included)
            if not number and float(moved.double().mean()) < MIN_MOVED_FRACTION:
                return None
            self._weigh_patterns()
            if number in GRID_ROUNDS:
                worst = self.included[self.weights[self.included].cpu().argsort()[: self._count_worst()]]
                for index in worst.split(1):
                    self.search(self._make_grid(index), index)
                self._weigh_patterns()
            self._remove_affine_part()
            self.update_object()
        last = self.compute_misfits(self.positions[self.included], self.included)
        ratio = float(last.sum() / first.sum())
        if not ratio < MAX_FINAL_MISFIT:
            return None
        displacements = (self.positions - self.initial) * self.patterns.factor
        displacements = limit_displacements(displacements, self.bound * self.patterns.factor)
        rms = float(displacements[self.included].square().mean().sqrt())
        log.info("the positions move by %.3g pixels rms per axis before the first epoch", rms)
        return self.initial * self.patterns.factor + displacements

    def _count_worst(self) -> int:
        return int(np.ceil(GRID_FRACTION * len(self.included)))

    def _draw_trials(self, number: int) -> Tensor:
        """Return trial positions (m, trials, 2) of the included patterns; the first are the current positions."""
        current, initial = self.positions[self.included, None], self.initial[self.included, None]
        radius = FIRST_RADIUS * self.bound * (1 - number / ROUNDS) + LAST_RADIUS_PX
        near = self.rng.uniform(-radius, radius, (len(self.included), TRIALS - WIDE_TRIALS, 2))
        wide = self.rng.uniform(-self.bound, self.bound, (len(self.included), WIDE_TRIALS, 2))
        return torch.cat([current, current + torch.from_numpy(near), initial + torch.from_numpy(wide)], 1)

    def _make_grid(self, index: Tensor) -> Tensor:
        """Return all whole-pixel positions within the bound of one pattern, (1, trials, 2), and the current one."""
        axis = torch.arange(-int(self.bound), int(self.bound) + 1, dtype=self.initial.dtype)
        grid = torch.cartesian_prod(axis, axis)
        return torch.cat([self.positions[index], self.initial[index] + grid])[None]

    def search(self, trials: Tensor, indices: Tensor) -> Tensor:
        """Move the patterns at ``indices`` (m,) to the best of their ``trials`` (m, trials, 2).

        Returns:
            (m,) bool: whether another position is far away and much better than the first trial.
        """
        initial = self.initial[indices, None]
        displacements = (trials - initial).clamp(-self.bound, self.bound)
        trials = initial + displacements
        misfits = self.compute_misfits(trials.flatten(0, 1), indices.repeat_interleave(trials.shape[1]))
        misfits = misfits.view(trials.shape[:2])
        penalty = displacements.square().sum(-1) * (DISPLACEMENT_PENALTY * 4.5 / self.bound**2)
        best = (misfits.clamp_min(1e-30).log() + penalty).argmin(1)
        row = torch.arange(len(best))
        distance = torch.linalg.vector_norm(trials[row, best] - trials[:, 0], dim=1) * self.patterns.factor
        self.positions = self.positions.index_copy(0, indices, trials[row, best])
        return (distance > MOVED_PX) & (misfits[row, best] < MOVED_MISFIT * misfits[:, 0])

    def compute_misfits(self, positions: Tensor, indices: Tensor) -> Tensor:
        """Return Σ (|far field| − amplitude)² of the patterns at ``indices`` (m,) at ``positions`` (m, 2).

        Returns:
            (m,) float64 photons, on the CPU.
        """
        corners, parts = self._compute_corners(positions), []
        for chunk in torch.arange(len(indices)).split(TRIALS_PER_CHUNK):
            patches = extract_patches(self.object, corners[chunk], self.size)
            amplitudes = compute_power(compute_detector_waves(patches, self.patterns.probe)).sqrt()
            difference = amplitudes - self.patterns.amplitudes[indices[chunk]]
            mask = self._select_mask(indices[chunk])
            difference = difference if mask is None else difference * mask
            parts.append(difference.square().sum((-2, -1)))
        return torch.cat(parts).cpu().double()

    def _compute_corners(self, positions: Tensor) -> Tensor:
        """Return the patch corners (m, 2) on the canvas; the search has no sub-pixel shifts."""
        corners, _ = split_positions(positions, self.size)
        corners = corners - corners.new_tensor(self.canvas.origin)
        limit = corners.new_tensor(self.canvas.shape) - self.size
        return torch.minimum(corners.clamp_min(0), limit).to(self.object.device)

    def _select_mask(self, indices: Tensor) -> Tensor | None:
        mask = self.patterns.mask
        return mask[indices] if mask is not None and len(mask) == len(self.initial) else mask

    def _weigh_patterns(self) -> None:
        """Reduce the weight of patterns whose misfit is far above the median: they are in the wrong place."""
        misfits = self.compute_misfits(self.positions[self.included], self.included)
        weights = 1 / (1 + (misfits / (2 * misfits.median())).square())
        self.weights = self.weights.index_copy(0, self.included.to(self.weights.device), weights.to(self.weights))

    def _remove_affine_part(self) -> None:
        """Remove shift and affine map of the displacements against the positions found."""
        index, weights = self.included, self.weights[self.included].cpu().double()
        displacements = self.positions[index] - self.initial[index]
        rest = remove_affine_part(displacements, self.positions[index], weights)
        self.positions = self.positions.index_copy(0, index, self.initial[index] + rest)

    def update_object(self) -> None:
        """Update the object by one epoch of batched PIE."""
        corners = self._compute_corners(self.positions)
        illumination = torch.zeros_like(self.object.real)
        batches = torch.from_numpy(self.rng.permutation(self.included.numpy())).split(PATTERNS_PER_STEP)
        for batch in batches:
            weighted = self.power * self.weights[batch, None, None]
            illumination = illumination + place_patches(weighted, corners[batch], self.canvas.shape)
        divisor = (illumination + DIVISOR_FLOOR * illumination.amax()) / len(batches)
        for batch in batches:
            patches = extract_patches(self.object, corners[batch], self.size)
            waves = compute_detector_waves(patches, self.patterns.probe)
            measured, mask = self.patterns.amplitudes[batch], self._select_mask(batch)
            ratio = measured / compute_power(waves).sqrt().clamp_min(1e-6) - 1
            ratio = ratio if mask is None else ratio * mask
            change = inverse_far_field(waves * (ratio * self.weights[batch, None, None])[:, None])
            gradient = place_patches(
                project_onto_patches(change, self.patterns.probe), corners[batch], self.canvas.shape
            )
            self.object = self.object + STEP * gradient / divisor
