"""All patterns that light one object, and steps of the object towards them: one of all together, or one after another.

What a network on whole objects sees of physics; engines have their own, finer steps.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from ptycho_torch.distributed.process_group import SINGLE_PROCESS, ProcessGroup
from ptycho_torch.physics.fourier import far_field, inverse_far_field
from ptycho_torch.physics.patches import extract_patches, place_patches
from ptycho_torch.physics.probe import compute_power

EXPECTED_OFFSET_PHOTONS = 0.25
"""Photons added to what is expected of a pixel before one divides by it: a single photon in the dark says little."""

MAX_RELATIVE_EXCESS = 4.0
"""Largest excess of photons over those expected, in units of the latter, that a step answers."""

ILLUMINATION_FLOOR_FRACTION = 0.02
"""Light added to the divisor everywhere, as a share of the largest."""

PATTERNS_PER_PIXEL_PER_BATCH = 4.0
"""Patterns of one batch that share the light of a pixel: fewer make more steps a sweep, and noisier ones."""

MAX_MINIBATCHES = 2
"""Batches of a sweep at most. A neighbourhood of a few patterns has no more, and a network that learned what sweeps
through those leave should find the same in a whole scan."""

MINIBATCH_STEP_SIZE = 0.7
"""Step of a batch in a sweep, in units of the exact one for its light."""

MINIBATCH_MOMENTUM = 0.7
"""Share of the last step in a sweep that is taken again."""

CANVAS_MULTIPLE_PX = 32
"""A neighbourhood's canvas is a square with a multiple of this many pixels a side: convolutions make their kernels anew
for each shape, so that few shapes should come, again and again."""


class IlluminatedPatterns(NamedTuple):
    """Some patterns and what lights them; all arrays have the same first axis, but for a shared mask."""

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
    """All patterns of one object on its canvas; ``ranks`` may each have a part of them."""

    take: Callable[[Tensor], IlluminatedPatterns]
    """This rank's patterns at some indices (m,) int64."""

    count: int
    """Patterns that this rank has."""

    shape: tuple[int, int]
    """Rows and columns of the canvas."""

    illumination: Tensor
    """(rows, columns) real: Σ|P|² over all patterns, in photons."""

    patterns_per_pixel: float
    """Patterns that share the light of a pixel, weighted by that light."""

    index_offset: int = 0
    """Patterns of the ranks before this one."""

    chunk_size: int = 2**62
    """Patterns computed at a time, for memory."""

    process_group: ProcessGroup = SINGLE_PROCESS

    def iterate_chunks(self, indices: Tensor) -> Iterator[IlluminatedPatterns]:
        """The patterns at ``indices`` (m,), a few at a time."""
        return map(self.take, indices.split(min(self.chunk_size, max(1, len(indices)))))


def make_batch_patterns(patterns: IlluminatedPatterns, process_group: ProcessGroup = SINGLE_PROCESS) -> ObjectPatterns:
    """The scene of a batch, of which each of ``ranks`` has a part, with corners anywhere; see :data:`CANVAS_MULTIPLE_PX`."""
    size, count = patterns.amplitudes.shape[-1], len(patterns.amplitudes)
    bounds = patterns.corners.new_full((4,), torch.iinfo(torch.int32).min)
    if count:
        bounds = torch.cat([-patterns.corners.amin(0), patterns.corners.amax(0)])
    bounds = process_group.all_reduce_max(bounds)
    side = int((bounds[:2] + bounds[2:]).amax()) + size
    shape = (-(-side // CANVAS_MULTIPLE_PX) * CANVAS_MULTIPLE_PX,) * 2
    on_canvas = patterns._replace(corners=patterns.corners + bounds[:2])
    counts = torch.zeros(process_group.size + 1, dtype=torch.int64, device=patterns.corners.device)
    counts[process_group.rank + 1] = count
    index_offset = int(process_group.all_reduce_sum(counts).cumsum(0)[process_group.rank])

    def take(indices: Tensor) -> IlluminatedPatterns:
        mask = on_canvas.mask if on_canvas.mask is None or len(on_canvas.mask) != count else on_canvas.mask[indices]
        return IlluminatedPatterns(
            on_canvas.amplitudes[indices], mask, on_canvas.probes[indices], on_canvas.corners[indices]
        )

    return make_object_patterns(take, count, shape, index_offset=index_offset, process_group=process_group)


@torch.no_grad()
def make_object_patterns(
    take: Callable[[Tensor], IlluminatedPatterns],
    count: int,
    shape: tuple[int, int],
    *,
    index_offset: int = 0,
    chunk_size: int = 2**62,
    process_group: ProcessGroup = SINGLE_PROCESS,
) -> ObjectPatterns:
    """The scene of the ``count`` patterns that ``take`` gives; arguments as of :class:`ObjectPatterns`."""
    illumination = single = torch.zeros(())
    for indices in torch.arange(count).split(min(chunk_size, max(1, count))):
        patterns = take(indices)
        power = compute_power(patterns.probes)
        illumination, single = (
            illumination + place_patches(power, patterns.corners, shape),
            single + power.square().sum(),
        )
    illumination, single = (
        process_group.all_reduce_sum(illumination.expand(shape)),
        process_group.all_reduce_sum(single),
    )
    patterns_per_pixel = float(illumination.square().sum() / single.clamp_min(torch.finfo(single.dtype).tiny))
    return ObjectPatterns(take, count, shape, illumination, patterns_per_pixel, index_offset, chunk_size, process_group)


def average_patches(object_patterns: ObjectPatterns, patches: Tensor) -> Tensor:
    """The object (rows, columns) that this rank's patches (n, N, N) make with all others, weighted by the light.

    Ones where no patch lies. Unlit pixels are the plain mean of their patches.
    """
    floor = 1e-6 * object_patterns.illumination.amax() + torch.finfo(object_patterns.illumination.dtype).tiny
    patterns = object_patterns.take(torch.arange(object_patterns.count))
    weights = compute_power(patterns.probes.detach()) + floor
    total = object_patterns.process_group.all_reduce_sum(
        place_patches(patches * weights, patterns.corners, object_patterns.shape)
    )
    weight = object_patterns.process_group.all_reduce_sum(
        place_patches(weights, patterns.corners, object_patterns.shape)
    )
    return torch.where(weight > 0, total / weight.clamp_min(floor), torch.ones_like(total))


def extract_object_patches(object_patterns: ObjectPatterns, obj: Tensor) -> Tensor:
    """The patches (n, N, N) of ``obj`` under this rank's patterns."""
    patterns = object_patterns.take(torch.arange(object_patterns.count))
    return extract_patches(obj, patterns.corners, patterns.amplitudes.shape[-1])


@torch.no_grad()
def full_gradient_step(object_patterns: ObjectPatterns, obj: Tensor) -> Tensor:
    """One step of ``obj`` (rows, columns) towards all patterns, up the gradient of their Poisson likelihood."""
    change, _ = _sum_gradients(object_patterns, obj, torch.arange(object_patterns.count))
    return change / (
        object_patterns.illumination + ILLUMINATION_FLOOR_FRACTION * object_patterns.illumination.amax() + 1e-30
    )


@torch.no_grad()
def minibatch_pass(object_patterns: ObjectPatterns, obj: Tensor, velocity: Tensor) -> tuple[Tensor, Tensor]:
    """Steps of ``obj`` (rows, columns) towards a batch of patterns after another, each pattern once.

    A batch takes one pattern in as many as there are batches, so that it is spread over the field, and the order is
    always the same. As in mPIE (Maiden, Johnson & Li, Optica 4, 736 (2017)), but the steps are divided by the light of
    a mean batch or its own, whichever is more.

    Returns:
        The object and its velocity, the step that momentum repeats, (rows, columns) complex.
    """
    batches = min(MAX_MINIBATCHES, max(1, round(object_patterns.patterns_per_pixel / PATTERNS_PER_PIXEL_PER_BATCH)))
    floor = ILLUMINATION_FLOOR_FRACTION * object_patterns.illumination.amax() / batches + 1e-30
    for batch in range(batches):
        indices = torch.arange((batch - object_patterns.index_offset) % batches, object_patterns.count, batches)
        change, batch_illumination = _sum_gradients(object_patterns, obj + MINIBATCH_MOMENTUM * velocity, indices)
        velocity = MINIBATCH_MOMENTUM * velocity + MINIBATCH_STEP_SIZE * change / (
            torch.maximum(batch_illumination, object_patterns.illumination / batches) + floor
        )
        obj = obj + velocity
    return obj, velocity


def _sum_gradients(object_patterns: ObjectPatterns, obj: Tensor, indices: Tensor) -> tuple[Tensor, Tensor]:
    """Σ P* Δψ of the patterns at ``indices`` on all ranks, and their light, (rows, columns) both."""
    change, illumination = torch.zeros_like(obj), torch.zeros_like(object_patterns.illumination)
    for patterns in object_patterns.iterate_chunks(indices):
        if len(patterns.amplitudes):
            change = change + place_patches(
                _compute_patch_gradients(obj, patterns), patterns.corners, object_patterns.shape
            )
            illumination = illumination + place_patches(
                compute_power(patterns.probes), patterns.corners, object_patterns.shape
            )
    return object_patterns.process_group.all_reduce_sum(change), object_patterns.process_group.all_reduce_sum(
        illumination
    )


def _compute_patch_gradients(obj: Tensor, patterns: IlluminatedPatterns) -> Tensor:
    """P* Δψ summed over the modes, (n, N, N): half the Poisson step, which at high dose is the amplitude's."""
    waves = far_field(patterns.probes * extract_patches(obj, patterns.corners, patterns.amplitudes.shape[-1])[:, None])
    expected = compute_power(waves)
    factor = ((patterns.amplitudes.square() - expected) / (expected + EXPECTED_OFFSET_PHOTONS)).clamp(
        max=MAX_RELATIVE_EXCESS
    ) / 2
    if patterns.mask is not None:
        factor = torch.where(patterns.mask, factor, torch.zeros_like(factor))
    return (patterns.probes.conj() * inverse_far_field(waves * factor[:, None])).sum(1)
