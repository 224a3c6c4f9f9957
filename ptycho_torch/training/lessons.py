"""What a simulated lesson asks of a network: patches like the true ones, alone and together, and the patterns again."""

from typing import NamedTuple

import torch
from torch import Tensor

from ptycho_torch.networks.batch import Batch
from ptycho_torch.networks.model import PtychoModel
from ptycho_torch.physics.forward import from_patches, merge_across, merge_patches, probe_at
from ptycho_torch.physics.noise import AMPLITUDE_SHIFT
from ptycho_torch.physics.patches import extract_patches, split_positions
from ptycho_torch.physics.probe import power_of
from ptycho_torch.physics.ranks import ALONE, Ranks
from ptycho_torch.simulation.stream import Lesson

ALONE_WEIGHT = 50.0
"""Weight of the distance of each patch by itself."""

MERGED_WEIGHT = 100.0
"""Weight of the distance of the patches after the overlap constraint: what all miss alike, no averaging takes away."""

PATTERN_WEIGHT = 1000.0
"""Weight of R of the merged patches, which keeps the patterns in view, where photons are many."""

PATTERN_NOISE = 0.01
"""R of counting noise at which that weight is halved: of few photons R is mostly noise, and says little."""


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

    @property
    def loss(self) -> Tensor:
        """What is minimised."""
        patterns = PATTERN_WEIGHT * self.r / (1 + self.noise / PATTERN_NOISE)
        return ALONE_WEIGHT * self.alone + MERGED_WEIGHT * self.merged + patterns


def batch_of_lesson(lesson: Lesson) -> Batch:
    """The patterns of ``lesson``, placed on its object."""
    corners, fractions = split_positions(lesson.positions, lesson.amplitudes.shape[-1])
    return Batch(lesson.amplitudes, lesson.mask, corners, fractions.float())


def mark(model: PtychoModel, lesson: Lesson, ranks: Ranks = ALONE) -> Marks:
    """Let ``model`` answer ``lesson``, and compare with the truth.

    A pattern fixes its patch up to a constant phase, so a network has to choose one. Here it is asked for the patch
    whose mean over the light is real, which each pattern settles by itself; patches are turned back to the truth's
    phases before they are merged, as stitching will turn them to each other's.

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
    patches = model.predict(batch, seen) * turn
    if ranks.size > 1:
        merged = merge_across(ranks, patches, weights, batch.corners)
    else:
        merged = merge_patches(patches[None], weights[None], batch.corners[None])[0]
    rates = from_patches(merged, probes).intensity
    missed = ((rates + AMPLITUDE_SHIFT).sqrt() - batch.amplitudes).square()
    if batch.mask is not None:
        missed = torch.where(batch.mask, missed, torch.zeros_like(missed))
    photons = everything.counts.sum().clamp_min(1)
    alone, together = (_distances(some, target, weights).sum() / n for some in (patches, merged))
    noise = everything.amplitudes.numel() / 4 / photons
    return Marks(alone, together, missed.sum() / photons, noise)


def _distances(patches: Tensor, target: Tensor, weights: Tensor) -> Tensor:
    """Mean squared distance of each patch where the light is, (n,)."""
    missed = patches - target
    squared = missed.real.square() + missed.imag.square()
    return (weights * squared).sum((-2, -1)) / weights.sum((-2, -1))
