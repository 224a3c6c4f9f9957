"""All patterns that light one object, and steps of the object towards them: one of all together, or one after another.

What a network on whole objects sees of physics; engines have their own, finer steps.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from ptycho_torch.distributed.process_group import ALONE, Ranks
from ptycho_torch.physics.fourier import far_field, inverse_far_field
from ptycho_torch.physics.patches import extract_patches, place_patches
from ptycho_torch.physics.probe import power_of

STRAY = 0.25
"""Photons added to what is expected of a pixel before one divides by it: a single photon in the dark says little."""

LARGEST = 4.0
"""Largest excess of photons over those expected, in units of the latter, that a step answers."""

FLOOR = 0.02
"""Light added to the divisor everywhere, as a share of the largest."""

SHARED = 4.0
"""Patterns of one batch that share the light of a pixel: fewer make more steps a sweep, and noisier ones."""

BATCHES = 2
"""Batches of a sweep at most. A neighbourhood of a few patterns has no more, and a network that learned what sweeps
through those leave should find the same in a whole scan."""

STEP = 0.7
"""Step of a batch in a sweep, in units of the exact one for its light."""

MOMENTUM = 0.7
"""Share of the last step in a sweep that is taken again."""

GRAIN = 32
"""A neighbourhood's canvas is a square with a multiple of this many pixels a side: convolutions make their kernels anew
for each shape, so that few shapes should come, again and again."""


class Lit(NamedTuple):
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
class Scene:
    """All patterns of one object on its canvas; ``ranks`` may each have a part of them."""

    take: Callable[[Tensor], Lit]
    """This rank's patterns at some indices (m,) int64."""

    count: int
    """Patterns that this rank has."""

    shape: tuple[int, int]
    """Rows and columns of the canvas."""

    light: Tensor
    """(rows, columns) real: Σ|P|² over all patterns, in photons."""

    density: float
    """Patterns that share the light of a pixel, weighted by that light."""

    before: int = 0
    """Patterns of the ranks before this one."""

    chunk: int = 2**62
    """Patterns computed at a time, for memory."""

    ranks: Ranks = ALONE

    def shares(self, indices: Tensor) -> Iterator[Lit]:
        """The patterns at ``indices`` (m,), a few at a time."""
        return map(self.take, indices.split(min(self.chunk, max(1, len(indices)))))


def neighbourhood(lit: Lit, ranks: Ranks = ALONE) -> Scene:
    """The scene of a batch, of which each of ``ranks`` has a part, with corners anywhere; see :data:`GRAIN`."""
    size, count = lit.amplitudes.shape[-1], len(lit.amplitudes)
    reach = lit.corners.new_full((4,), torch.iinfo(torch.int32).min)
    if count:
        reach = torch.cat([-lit.corners.amin(0), lit.corners.amax(0)])
    reach = ranks.largest(reach)
    side = int((reach[:2] + reach[2:]).amax()) + size
    shape = (-(-side // GRAIN) * GRAIN,) * 2
    placed = lit._replace(corners=lit.corners + reach[:2])
    counts = torch.zeros(ranks.size + 1, dtype=torch.int64, device=lit.corners.device)
    counts[ranks.rank + 1] = count
    before = int(ranks.sum(counts).cumsum(0)[ranks.rank])

    def take(indices: Tensor) -> Lit:
        mask = placed.mask if placed.mask is None or len(placed.mask) != count else placed.mask[indices]
        return Lit(placed.amplitudes[indices], mask, placed.probes[indices], placed.corners[indices])

    return scene_of(take, count, shape, before=before, ranks=ranks)


@torch.no_grad()
def scene_of(
    take: Callable[[Tensor], Lit],
    count: int,
    shape: tuple[int, int],
    *,
    before: int = 0,
    chunk: int = 2**62,
    ranks: Ranks = ALONE,
) -> Scene:
    """The scene of the ``count`` patterns that ``take`` gives; arguments as of :class:`Scene`."""
    light = single = torch.zeros(())
    for indices in torch.arange(count).split(min(chunk, max(1, count))):
        lit = take(indices)
        power = power_of(lit.probes)
        light, single = light + place_patches(power, lit.corners, shape), single + power.square().sum()
    light, single = ranks.sum(light.expand(shape)), ranks.sum(single)
    density = float(light.square().sum() / single.clamp_min(torch.finfo(single.dtype).tiny))
    return Scene(take, count, shape, light, density, before, chunk, ranks)


def merged(scene: Scene, patches: Tensor) -> Tensor:
    """The object (rows, columns) that this rank's patches (n, N, N) make with all others, weighted by the light.

    Ones where no patch lies. Unlit pixels are the plain mean of their patches.
    """
    floor = 1e-6 * scene.light.amax() + torch.finfo(scene.light.dtype).tiny
    lit = scene.take(torch.arange(scene.count))
    weights = power_of(lit.probes.detach()) + floor
    total = scene.ranks.sum(place_patches(patches * weights, lit.corners, scene.shape))
    weight = scene.ranks.sum(place_patches(weights, lit.corners, scene.shape))
    return torch.where(weight > 0, total / weight.clamp_min(floor), torch.ones_like(total))


def cut(scene: Scene, obj: Tensor) -> Tensor:
    """The patches (n, N, N) of ``obj`` under this rank's patterns."""
    lit = scene.take(torch.arange(scene.count))
    return extract_patches(obj, lit.corners, lit.amplitudes.shape[-1])


@torch.no_grad()
def common_step(scene: Scene, obj: Tensor) -> Tensor:
    """One step of ``obj`` (rows, columns) towards all patterns, up the gradient of their Poisson likelihood."""
    change, _ = _summed(scene, obj, torch.arange(scene.count))
    return change / (scene.light + FLOOR * scene.light.amax() + 1e-30)


@torch.no_grad()
def sweep(scene: Scene, obj: Tensor, velocity: Tensor) -> tuple[Tensor, Tensor]:
    """Steps of ``obj`` (rows, columns) towards a batch of patterns after another, each pattern once.

    A batch takes one pattern in as many as there are batches, so that it is spread over the field, and the order is
    always the same. As in mPIE (Maiden, Johnson & Li, Optica 4, 736 (2017)), but the steps are divided by the light of
    a mean batch or its own, whichever is more.

    Returns:
        The object and its velocity, the step that momentum repeats, (rows, columns) complex.
    """
    batches = min(BATCHES, max(1, round(scene.density / SHARED)))
    floor = FLOOR * scene.light.amax() / batches + 1e-30
    for batch in range(batches):
        indices = torch.arange((batch - scene.before) % batches, scene.count, batches)
        change, own = _summed(scene, obj + MOMENTUM * velocity, indices)
        velocity = MOMENTUM * velocity + STEP * change / (torch.maximum(own, scene.light / batches) + floor)
        obj = obj + velocity
    return obj, velocity


def _summed(scene: Scene, obj: Tensor, indices: Tensor) -> tuple[Tensor, Tensor]:
    """Σ P* Δψ of the patterns at ``indices`` on all ranks, and their light, (rows, columns) both."""
    change, light = torch.zeros_like(obj), torch.zeros_like(scene.light)
    for lit in scene.shares(indices):
        if len(lit.amplitudes):
            change = change + place_patches(_missing(obj, lit), lit.corners, scene.shape)
            light = light + place_patches(power_of(lit.probes), lit.corners, scene.shape)
    return scene.ranks.sum(change), scene.ranks.sum(light)


def _missing(obj: Tensor, lit: Lit) -> Tensor:
    """P* Δψ summed over the modes, (n, N, N): half the Poisson step, which at high dose is the amplitude's."""
    waves = far_field(lit.probes * extract_patches(obj, lit.corners, lit.amplitudes.shape[-1])[:, None])
    expected = power_of(waves)
    factor = ((lit.amplitudes.square() - expected) / (expected + STRAY)).clamp(max=LARGEST) / 2
    if lit.mask is not None:
        factor = torch.where(lit.mask, factor, torch.zeros_like(factor))
    return (lit.probes.conj() * inverse_far_field(waves * factor[:, None])).sum(1)
