"""What a simulated lesson asks of a network: patches like the true ones, alone and together, and the patterns again."""

from typing import NamedTuple

import torch
from torch import Tensor

from ptycho_torch.distributed.process_group import ALONE, Ranks
from ptycho_torch.models.model import PtychoModel
from ptycho_torch.physics.batch import Batch
from ptycho_torch.physics.forward import agreed, from_patches, probe_at
from ptycho_torch.physics.noise import AMPLITUDE_SHIFT
from ptycho_torch.physics.patches import extract_patches, split_positions
from ptycho_torch.physics.probe import power_of
from ptycho_torch.physics.updates import Lit, Scene, cut, merged, neighbourhood
from ptycho_torch.prediction.stitching import synchronise_patches
from ptycho_torch.simulation.dataset import Lesson

ALONE_WEIGHT = 50.0
"""Weight of the distance of each patch by itself."""

MERGED_WEIGHT = 100.0
"""Weight of the distance of the patches after the overlap constraint: what all miss alike, no averaging takes away."""

PATTERN_WEIGHT = 1000.0
"""Weight of R of the merged patches, which keeps the patterns in view, where photons are many."""

PATTERN_NOISE = 0.01
"""R of counting noise at which that weight is halved: of few photons R is mostly noise, and says little."""

ROOT_WEIGHT = 45.0
"""Weight of the root mean squared distances of an object before, between and after looks at the whole of it: each look
answers for itself. The root, so that lessons which can be answered well count as much as those which cannot."""

WHOLE_PATTERN_WEIGHT = 200.0
"""Weight of R there, in place of :data:`PATTERN_WEIGHT`."""

ROOT_FLOOR = 1e-3
"""Squared distance added under the root."""


class Marks(NamedTuple):
    """How far a network is from the truth of a lesson."""

    alone: Tensor
    """Mean squared distance of the patches, each after its best phase is given to the truth, where the probe lights."""

    merged: Tensor
    """The same after the overlap constraint."""

    r: Tensor
    """Σ(√λ − √k)² / Σk of the merged patches, over pixels that count."""

    noise: Tensor
    """About what counting noise leaves of R where all pixels are lit: ¼ a pixel."""

    looked: Tensor | None = None
    """Of a network that looks at the merged object: root mean squared distances before, between and after, summed."""

    @property
    def loss(self) -> Tensor:
        """What is minimised."""
        patterns = self.r / (1 + self.noise / PATTERN_NOISE)
        if self.looked is None:
            return ALONE_WEIGHT * self.alone + MERGED_WEIGHT * self.merged + PATTERN_WEIGHT * patterns
        return ALONE_WEIGHT * self.alone + ROOT_WEIGHT * self.looked + WHOLE_PATTERN_WEIGHT * patterns


def batch_of_lesson(lesson: Lesson) -> Batch:
    """The patterns of ``lesson``, placed on its object."""
    corners, fractions = split_positions(lesson.positions, lesson.amplitudes.shape[-1])
    return Batch(lesson.amplitudes, lesson.mask, corners, fractions.float())


def mark(model: PtychoModel, lesson: Lesson, ranks: Ranks = ALONE) -> Marks:
    """Let ``model`` answer ``lesson``, and compare with the truth.

    A pattern fixes its patch up to a constant phase, so a network has to choose one. Here it is asked for the patch
    whose mean over the light is real, which each pattern settles by itself. Patches are turned back to the truth's
    phases before they are merged, as stitching will turn them to each other's. For a network that looks at the merged
    object they are turned to each other's, so that it meets the errors that it will have to mend.

    ``ranks`` each answer a part of the patterns; the sum of their marks is that of the lesson.
    """
    everything = batch_of_lesson(lesson)
    n, size = everything.amplitudes.shape[:2]
    batch = everything.take(torch.arange(n, device=everything.corners.device)[ranks.share(n)])
    probes = probe_at(lesson.probe, batch.fractions)
    seen = probes if lesson.probe_guess is lesson.probe else probe_at(lesson.probe_guess, batch.fractions)
    target = extract_patches(lesson.object, batch.corners, size)
    weights = power_of(probes)
    turn = torch.sgn((weights * target).sum((-2, -1), keepdim=True))
    patches = model.predict(batch, seen)
    alone = _distances(patches * turn, target, weights).sum() / n
    looked = None
    if model.looks:
        scene = neighbourhood(Lit(batch.amplitudes, batch.mask, seen.detach(), batch.corners), ranks)
        start = merged(scene, patches * _turns(scene, patches.detach(), n))
        found = [cut(scene, obj) for obj in model.looked_at(start, scene)]
        distances = [ranks.sum(_distance_of_all(some, target, weights, ranks) / n) for some in found]
        looked = (torch.stack(distances) + ROOT_FLOOR).sqrt().sum() / ranks.size
        answer, together = found[-1], distances[-1] / ranks.size
    else:
        answer = agreed(ranks, patches * turn, weights, batch.corners)
        together = _distances(answer, target, weights).sum() / n
    rates = from_patches(answer, probes).intensity
    missed = ((rates + AMPLITUDE_SHIFT).sqrt() - batch.amplitudes).square()
    if batch.mask is not None:
        missed = torch.where(batch.mask, missed, torch.zeros_like(missed))
    photons = everything.counts.sum().clamp_min(1)
    noise = everything.amplitudes.numel() / 4 / photons
    return Marks(alone, together, missed.sum() / photons, noise, looked)


@torch.no_grad()
def _turns(scene: Scene, patches: Tensor, count: int) -> Tensor:
    """What turns this rank's patches (n, N, N) so that all ``count`` of the lesson agree, (n, 1, 1) of modulus one."""
    lit = scene.take(torch.arange(scene.count))
    own = slice(scene.before, scene.before + scene.count)
    everyone = patches.new_zeros(count, *patches.shape[1:])
    weights, corners = torch.zeros_like(everyone, dtype=lit.probes.real.dtype), lit.corners.new_zeros(count, 2)
    everyone[own], weights[own], corners[own] = patches, power_of(lit.probes), lit.corners
    everyone, weights, corners = (scene.ranks.sum(tensor) for tensor in (everyone, weights, corners))
    found = synchronise_patches(everyone, weights, corners, scene.shape)
    return torch.from_numpy(found.turns).to(patches)[own, None, None]


def _distance_of_all(patches: Tensor, target: Tensor, weights: Tensor, ranks: Ranks) -> Tensor:
    """Summed mean squared distance of this rank's patches, once all ranks' are turned by one phase to the truth."""
    turn = torch.sgn(ranks.sum((weights * target * patches.detach().conj()).sum()))
    return _distances(patches * turn, target, weights).sum()


def _distances(patches: Tensor, target: Tensor, weights: Tensor) -> Tensor:
    """Mean squared distance of each patch where the light is, (n,)."""
    missed = patches - target
    squared = missed.real.square() + missed.imag.square()
    return (weights * squared).sum((-2, -1)) / weights.sum((-2, -1))
