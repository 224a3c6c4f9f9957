"""What a simulated lesson asks of a network: patches like the true ones, alone and together, and the patterns again."""

from typing import NamedTuple

import torch
from torch import Tensor

from ptycho_torch.distributed.process_group import SINGLE_PROCESS, ProcessGroup
from ptycho_torch.models.model import PtychoModel
from ptycho_torch.physics.batch import Batch
from ptycho_torch.physics.forward import apply_overlap_constraint, from_patches, shift_probe
from ptycho_torch.physics.noise import AMPLITUDE_OFFSET_PHOTONS
from ptycho_torch.physics.patches import extract_patches, split_positions
from ptycho_torch.physics.probe import compute_power
from ptycho_torch.physics.updates import (
    IlluminatedPatterns,
    ObjectPatterns,
    average_patches,
    extract_object_patches,
    make_batch_patterns,
)
from ptycho_torch.prediction.stitching import synchronize_patches
from ptycho_torch.simulation.dataset import SimulatedBatch

PATCH_WEIGHT = 50.0
"""Weight of the distance of each patch by itself."""

MERGED_PATCH_WEIGHT = 100.0
"""Weight of the distance of the patches after the overlap constraint: what all miss alike, no averaging takes away."""

PATTERN_WEIGHT = 1000.0
"""Weight of R of the merged patches, which keeps the patterns in view, where photons are many."""

HALF_WEIGHT_NOISE_R = 0.01
"""R of counting noise at which that weight is halved: of few photons R is mostly noise, and says little."""

OBJECT_RMS_WEIGHT = 45.0
"""Weight of the root mean squared distances of an object before, between and after looks at the whole of it: each look
answers for itself. The root, so that lessons which can be answered well count as much as those which cannot."""

OBJECT_PATTERN_WEIGHT = 200.0
"""Weight of R there, in place of :data:`PATTERN_WEIGHT`."""

MIN_SQUARED_DISTANCE = 1e-3
"""Squared distance added under the root."""


class LossTerms(NamedTuple):
    """How far a network is from the truth of a lesson."""

    patch_distance: Tensor
    """Mean squared distance of the patches, each after its best phase is given to the truth, where the probe lights."""

    merged_distance: Tensor
    """The same after the overlap constraint."""

    r: Tensor
    """Σ(√λ − √k)² / Σk of the merged patches, over pixels that count."""

    noise_floor: Tensor
    """About what counting noise leaves of R where all pixels are lit: ¼ a pixel."""

    stage_distance: Tensor | None = None
    """Of a network that looks at the merged object: root mean squared distances before, between and after, summed."""

    @property
    def loss(self) -> Tensor:
        """What is minimised."""
        patterns = self.r / (1 + self.noise_floor / HALF_WEIGHT_NOISE_R)
        if self.stage_distance is None:
            return (
                PATCH_WEIGHT * self.patch_distance
                + MERGED_PATCH_WEIGHT * self.merged_distance
                + PATTERN_WEIGHT * patterns
            )
        return (
            PATCH_WEIGHT * self.patch_distance
            + OBJECT_RMS_WEIGHT * self.stage_distance
            + OBJECT_PATTERN_WEIGHT * patterns
        )


def convert_simulated_batch(simulated: SimulatedBatch) -> Batch:
    """The patterns of ``lesson``, placed on its object."""
    corners, fractions = split_positions(simulated.positions, simulated.amplitudes.shape[-1])
    return Batch(simulated.amplitudes, simulated.mask, corners, fractions.float())


def compute_loss_terms(
    model: PtychoModel, simulated: SimulatedBatch, process_group: ProcessGroup = SINGLE_PROCESS
) -> LossTerms:
    """Let ``model`` answer ``lesson``, and compare with the truth.

    A pattern fixes its patch up to a constant phase, so a network has to choose one. Here it is asked for the patch
    whose mean over the light is real, which each pattern settles by itself. Patches are turned back to the truth's
    phases before they are merged, as stitching will turn them to each other's. For a network that looks at the merged
    object they are turned to each other's, so that it meets the errors that it will have to mend.

    ``ranks`` each answer a part of the patterns; the sum of their marks is that of the lesson.
    """
    full_batch = convert_simulated_batch(simulated)
    n, size = full_batch.amplitudes.shape[:2]
    batch = full_batch.take(torch.arange(n, device=full_batch.corners.device)[process_group.shard(n)])
    probes = shift_probe(simulated.probe, batch.fractions)
    assumed_probes = (
        probes if simulated.assumed_probe is simulated.probe else shift_probe(simulated.assumed_probe, batch.fractions)
    )
    target = extract_patches(simulated.object, batch.corners, size)
    weights = compute_power(probes)
    phase = torch.sgn((weights * target).sum((-2, -1), keepdim=True))
    patches = model.predict(batch, assumed_probes)
    patch_distance = _compute_distances(patches * phase, target, weights).sum() / n
    stage_distance = None
    if model.object_stages:
        scene = make_batch_patterns(
            IlluminatedPatterns(batch.amplitudes, batch.mask, assumed_probes.detach(), batch.corners), process_group
        )
        start = average_patches(scene, patches * _compute_phase_factors(scene, patches.detach(), n))
        found = [extract_object_patches(scene, obj) for obj in model.refine_object_stages(start, scene)]
        distances = [
            process_group.all_reduce_sum(_sum_aligned_distances(some, target, weights, process_group) / n)
            for some in found
        ]
        stage_distance = (torch.stack(distances) + MIN_SQUARED_DISTANCE).sqrt().sum() / process_group.size
        final_patches, merged_distance = found[-1], distances[-1] / process_group.size
    else:
        final_patches = apply_overlap_constraint(process_group, patches * phase, weights, batch.corners)
        merged_distance = _compute_distances(final_patches, target, weights).sum() / n
    rates = from_patches(final_patches, probes).intensity
    residual = ((rates + AMPLITUDE_OFFSET_PHOTONS).sqrt() - batch.amplitudes).square()
    if batch.mask is not None:
        residual = torch.where(batch.mask, residual, torch.zeros_like(residual))
    photons = full_batch.counts.sum().clamp_min(1)
    noise = full_batch.amplitudes.numel() / 4 / photons
    return LossTerms(patch_distance, merged_distance, residual.sum() / photons, noise, stage_distance)


@torch.no_grad()
def _compute_phase_factors(scene: ObjectPatterns, patches: Tensor, count: int) -> Tensor:
    """What turns this rank's patches (n, N, N) so that all ``count`` of the lesson agree, (n, 1, 1) of modulus one."""
    lit = scene.take(torch.arange(scene.count))
    own = slice(scene.index_offset, scene.index_offset + scene.count)
    gathered = patches.new_zeros(count, *patches.shape[1:])
    weights, corners = torch.zeros_like(gathered, dtype=lit.probes.real.dtype), lit.corners.new_zeros(count, 2)
    gathered[own], weights[own], corners[own] = patches, compute_power(lit.probes), lit.corners
    gathered, weights, corners = (scene.process_group.all_reduce_sum(tensor) for tensor in (gathered, weights, corners))
    found = synchronize_patches(gathered, weights, corners, scene.shape)
    return torch.from_numpy(found.phase_factors).to(patches)[own, None, None]


def _sum_aligned_distances(patches: Tensor, target: Tensor, weights: Tensor, process_group: ProcessGroup) -> Tensor:
    """Summed mean squared distance of this rank's patches, once all ranks' are turned by one phase to the truth."""
    phase = torch.sgn(process_group.all_reduce_sum((weights * target * patches.detach().conj()).sum()))
    return _compute_distances(patches * phase, target, weights).sum()


def _compute_distances(patches: Tensor, target: Tensor, weights: Tensor) -> Tensor:
    """Mean squared distance of each patch where the light is, (n,)."""
    residual = patches - target
    squared = residual.real.square() + residual.imag.square()
    return (weights * squared).sum((-2, -1)) / weights.sum((-2, -1))
