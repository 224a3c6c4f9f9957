"""All patterns of one object on its canvas, and data-consistency steps of the object toward them.

The object stages of a network use these steps; the engines have steps of their own over the same update.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from ptycho_torch.physics.forward import from_patches, project_onto_patches
from ptycho_torch.physics.noise import Poisson
from ptycho_torch.physics.overlap import average_on_canvas, compute_bounds
from ptycho_torch.physics.patches import extract_patches, place_patches
from ptycho_torch.physics.probe import compute_power
from ptycho_torch.physics.reduction import NO_REDUCTION, Reduction
from ptycho_torch.physics.updates import compute_exit_wave_change, normalize_by_illumination

EXPECTED_OFFSET_PHOTONS = 0.25
"""Photons added to the expected photons in a divisor, since a single photon in a dark pixel carries little
information."""

MAX_RELATIVE_EXCESS = 4.0
"""Upper limit of the excess of photons over the expected photons, relative to the expected photons."""

OBJECT_NOISE = Poisson(EXPECTED_OFFSET_PHOTONS, MAX_RELATIVE_EXCESS)
"""Noise model of the steps of the whole object."""

ILLUMINATION_FLOOR_FRACTION = 0.02
"""Illumination added to the divisor everywhere, as a fraction of the largest."""

PATTERNS_PER_PIXEL_PER_MINIBATCH = 4.0
"""Patterns of one minibatch that illuminate a pixel: fewer give more steps per pass, and noisier steps."""

MAX_MINIBATCHES = 2
"""Most minibatches per pass: a training batch of a few patterns has no more, and a network trained on such passes needs
the same passes through a whole scan."""

MINIBATCH_STEP_SIZE = 0.7
"""Step of a minibatch, in units of the exact step for its illumination."""

MINIBATCH_MOMENTUM = 0.7
"""Fraction of the previous step of a pass that is repeated."""

CANVAS_MULTIPLE_PX = 32
"""The canvas of a batch is a square whose side is a multiple of this many pixels: convolutions prepare their kernels
once per shape, so few shapes should occur."""


class IlluminatedPatterns(NamedTuple):
    """Patterns with their probes; all arrays have the same first axis, except for a shared mask."""

    amplitudes: Tensor
    """(n, N, N), in √photons, zero frequency at [0, 0]."""

    mask: Tensor | None
    """(n or 1, N, N) bool, True where a pixel counts; None: all count."""

    probes: Tensor
    """(n, M, N, N) complex, at each position's fraction, in √photons."""

    corners: Tensor
    """(n, 2) int64: each patch's [0, 0] pixel on the canvas."""


@dataclass(frozen=True, eq=False)
class ObjectPatterns:
    """All patterns of one object on its canvas, of which each process may have a part."""

    take: Callable[[Tensor], IlluminatedPatterns]
    """Return the patterns of this process at indices (m,) int64."""

    count: int
    """Number of patterns of this process."""

    shape: tuple[int, int]
    """Rows and columns of the canvas."""

    illumination: Tensor
    """(rows, columns) real: Σ|P|² over all patterns, in photons."""

    patterns_per_pixel: float
    """Mean number of patterns that illuminate a pixel, weighted by the illumination."""

    index_offset: int = 0
    """Number of patterns of the processes of lower rank."""

    chunk_size: int = 2**62
    """Most patterns computed at a time, to limit memory."""

    reduction: Reduction = NO_REDUCTION
    """Sums over the processes."""

    def iterate_chunks(self, indices: Tensor) -> Iterator[IlluminatedPatterns]:
        """Iterate over the patterns at ``indices`` (m,), at most :attr:`chunk_size` at a time."""
        return map(self.take, indices.split(min(self.chunk_size, max(1, len(indices)))))


def make_batch_patterns(
    patterns: IlluminatedPatterns, reduction: Reduction = NO_REDUCTION, index_offset: int = 0
) -> ObjectPatterns:
    """Place the patterns of a batch on a canvas of their own; see :data:`CANVAS_MULTIPLE_PX`.

    Args:
        patterns: the patterns of this process, which may have none; their corners may be anywhere.
        reduction: sums and maxima over the processes that share the batch.
        index_offset: number of patterns of the processes of lower rank.
    """
    size, count = patterns.amplitudes.shape[-1], len(patterns.amplitudes)
    low, high = compute_bounds(patterns.corners, reduction)
    side = int((high - low).amax()) + size
    shape = (-(-side // CANVAS_MULTIPLE_PX) * CANVAS_MULTIPLE_PX,) * 2
    on_canvas = patterns._replace(corners=patterns.corners - low)

    def take(indices: Tensor) -> IlluminatedPatterns:
        mask = on_canvas.mask if on_canvas.mask is None or len(on_canvas.mask) != count else on_canvas.mask[indices]
        return IlluminatedPatterns(
            on_canvas.amplitudes[indices], mask, on_canvas.probes[indices], on_canvas.corners[indices]
        )

    return make_object_patterns(take, count, shape, index_offset=index_offset, reduction=reduction)


@torch.no_grad()
def make_object_patterns(
    take: Callable[[Tensor], IlluminatedPatterns],
    count: int,
    shape: tuple[int, int],
    *,
    index_offset: int = 0,
    chunk_size: int = 2**62,
    reduction: Reduction = NO_REDUCTION,
) -> ObjectPatterns:
    """Compute the illumination of an object by its patterns; the arguments are fields of :class:`ObjectPatterns`."""
    illumination = single = torch.zeros(())
    for indices in torch.arange(count).split(min(chunk_size, max(1, count))):
        patterns = take(indices)
        power = compute_power(patterns.probes)
        illumination = illumination + place_patches(power, patterns.corners, shape)
        single = single + power.square().sum()
    illumination = reduction.all_reduce_sum(illumination.expand(shape))
    single = reduction.all_reduce_sum(single)
    patterns_per_pixel = float(illumination.square().sum() / single.clamp_min(torch.finfo(single.dtype).tiny))
    return ObjectPatterns(take, count, shape, illumination, patterns_per_pixel, index_offset, chunk_size, reduction)


def average_patches(object_patterns: ObjectPatterns, patches: Tensor) -> Tensor:
    """Average the patches (n, N, N) of all processes, weighted by the illumination, to an object (rows, columns).

    Pixels without a patch are 1.
    """
    patterns = object_patterns.take(torch.arange(object_patterns.count))
    return average_on_canvas(
        patches,
        compute_power(patterns.probes.detach()),
        patterns.corners,
        object_patterns.shape,
        reference_weight=object_patterns.illumination.amax(),
        reduction=object_patterns.reduction,
    ).mean


def extract_object_patches(object_patterns: ObjectPatterns, obj: Tensor) -> Tensor:
    """Extract the patches (n, N, N) of ``obj`` at the patterns of this process."""
    patterns = object_patterns.take(torch.arange(object_patterns.count))
    return extract_patches(obj, patterns.corners, patterns.amplitudes.shape[-1])


@torch.no_grad()
def full_gradient_step(object_patterns: ObjectPatterns, obj: Tensor) -> Tensor:
    """Compute one step of ``obj`` (rows, columns) toward all patterns, up the gradient of their Poisson likelihood."""
    direction, illumination = _sum_directions(object_patterns, obj, torch.arange(object_patterns.count))
    del illumination
    return normalize_by_illumination(direction, object_patterns.illumination, ILLUMINATION_FLOOR_FRACTION)


@torch.no_grad()
def minibatch_pass(object_patterns: ObjectPatterns, obj: Tensor, velocity: Tensor) -> tuple[Tensor, Tensor]:
    """Step ``obj`` (rows, columns) toward one minibatch of patterns after another, each pattern once.

    A minibatch takes every k-th pattern of k minibatches, so that its patterns are spread over the field; the order is
    always the same. As in mPIE (Maiden, Johnson & Li, Optica 4, 736 (2017)), except that a step is divided by the
    larger of the mean illumination of a minibatch and its own.

    Returns:
        The object and its velocity, the step that momentum repeats, (rows, columns) complex.
    """
    per_minibatch = object_patterns.patterns_per_pixel / PATTERNS_PER_PIXEL_PER_MINIBATCH
    minibatches = min(MAX_MINIBATCHES, max(1, round(per_minibatch)))
    mean_illumination = object_patterns.illumination / minibatches
    floor = ILLUMINATION_FLOOR_FRACTION * mean_illumination.amax() + 1e-30
    for number in range(minibatches):
        indices = torch.arange(
            (number - object_patterns.index_offset) % minibatches, object_patterns.count, minibatches
        )
        direction, illumination = _sum_directions(object_patterns, obj + MINIBATCH_MOMENTUM * velocity, indices)
        step = direction * (torch.maximum(illumination, mean_illumination) + floor).reciprocal()
        velocity = MINIBATCH_MOMENTUM * velocity + MINIBATCH_STEP_SIZE * step
        obj = obj + velocity
    return obj, velocity


def _sum_directions(object_patterns: ObjectPatterns, obj: Tensor, indices: Tensor) -> tuple[Tensor, Tensor]:
    """Compute Σ P* Δψ and Σ |P|² of the patterns at ``indices`` of all processes, (rows, columns) each."""
    direction, illumination = torch.zeros_like(obj), torch.zeros_like(object_patterns.illumination)
    for patterns in object_patterns.iterate_chunks(indices):
        if not len(patterns.amplitudes):
            continue
        patches = extract_patches(obj, patterns.corners, patterns.amplitudes.shape[-1])
        waves = from_patches(patches, patterns.probes)
        change = compute_exit_wave_change(
            waves.detector, waves.intensity, patterns.amplitudes.square(), patterns.mask, OBJECT_NOISE
        )
        update = project_onto_patches(change, patterns.probes)
        direction = direction + place_patches(update, patterns.corners, object_patterns.shape)
        power = compute_power(patterns.probes)
        illumination = illumination + place_patches(power, patterns.corners, object_patterns.shape)
    reduction = object_patterns.reduction
    return reduction.all_reduce_sum(direction), reduction.all_reduce_sum(illumination)
