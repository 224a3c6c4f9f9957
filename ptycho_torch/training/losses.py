"""Losses of the training on measured scans and of the pretraining on simulated batches."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from ptycho_torch.distributed.process_group import SINGLE_PROCESS, ProcessGroup
from ptycho_torch.models.model import PtychoModel
from ptycho_torch.physics.batch import Batch
from ptycho_torch.physics.forward import Wavefields, from_patches, shift_probe
from ptycho_torch.physics.noise import AMPLITUDE_OFFSET_PHOTONS, NoiseModel, masked_sum
from ptycho_torch.physics.object_patterns import (
    IlluminatedPatterns,
    ObjectPatterns,
    average_patches,
    extract_object_patches,
    make_batch_patterns,
)
from ptycho_torch.physics.overlap import apply_overlap_constraint
from ptycho_torch.physics.patches import extract_patches, split_positions
from ptycho_torch.physics.probe import compute_power
from ptycho_torch.prediction.stitching import synchronize_patches
from ptycho_torch.simulation.dataset import SimulatedBatch
from ptycho_torch.training.targets import ObjectTarget, align_phases, compute_patch_distance

PATCH_WEIGHT = 50.0
"""Weight of the distance of the single patches to their targets. On measured scans the deviance is added, ½ per
pixel at the noise level."""

MERGED_PATCH_WEIGHT = 100.0
"""Weight of the distance of the patches after the overlap constraint: averaging does not remove their common error."""

PATTERN_WEIGHT = 1000.0
"""Weight of R of the merged patches in pretraining, for many photons."""

HALF_WEIGHT_NOISE_R = 0.01
"""R of counting noise at which the weight of R is halved: at low dose R is mostly noise."""

OBJECT_RMS_WEIGHT = 45.0
"""Weight of the summed root-mean-square distances of the object before, between and after the object stages. The root
gives easy and difficult simulated batches similar weight."""

OBJECT_PATTERN_WEIGHT = 200.0
"""Weight of R for a network with object stages, in place of :data:`PATTERN_WEIGHT`."""

MIN_SQUARED_DISTANCE = 1e-3
"""Squared distance added under the root."""


class StepLoss(NamedTuple):
    """Loss of one batch; in a process group, the part of this process."""

    recorded: Tensor
    """Value of the history."""

    minimized: Tensor
    """Value that the optimizer minimizes: the recorded one plus the distances to targets."""


@dataclass(frozen=True, eq=False)
class ScanLoss:
    """Loss of a batch of measured patterns: the deviance, and the distances to targets."""

    noise_model: NoiseModel

    targets: Sequence[ObjectTarget] = ()
    """The target object of each scan; empty: none, or the labels of the batch."""

    process_group: ProcessGroup = SINGLE_PROCESS

    def compute(self, model: PtychoModel, batch: Batch) -> StepLoss:
        """Return the loss of ``batch``, the mean over all cascades of the network."""
        result = model.forward_details(batch, process_group=self.process_group)
        stages = (*result.intermediate, result.fields)
        deviance = torch.stack([self._average_deviance(fields, batch) for fields in stages]).mean()
        if batch.labels is None and not self.targets:
            return StepLoss(deviance, deviance)
        patterns = self.process_group.all_reduce_sum(torch.tensor(len(batch.corners), device=batch.corners.device))
        patch_distance, *merged_distances = (
            self._compute_target_distances(patches, result.probes, batch).sum() / patterns
            for patches in (result.patches, *(fields.patches for fields in stages))
        )
        target_loss = PATCH_WEIGHT * patch_distance + MERGED_PATCH_WEIGHT * torch.stack(merged_distances).mean()
        return StepLoss(deviance, deviance + target_loss)

    def compute_deviance(self, model: PtychoModel, batch: Batch, probe: Tensor | None = None) -> Tensor:
        """Return this process's part of the mean deviance per pixel of the batch, about ½ at the noise level.

        Args:
            model: predicts the patterns.
            batch: the patterns of this process.
            probe: (M, N, N) complex, in √photons; None: the probe of the model.
        """
        return self._average_deviance(model.forward_details(batch, probe, self.process_group).fields, batch)

    def _average_deviance(self, fields: Wavefields, batch: Batch) -> Tensor:
        total, pixels = masked_sum(self.noise_model.deviance(fields.intensity, batch.counts), batch.mask)
        return total / self.process_group.all_reduce_sum(pixels).clamp_min(1)

    def _compute_target_distances(self, patches: Tensor, probes: Tensor, batch: Batch) -> Tensor:
        """Return the distances of patches (n, N, N) to the labels, up to a phase, or to the target object, (n,)."""
        if batch.labels is None:
            return self.targets[batch.scan_index].compute_distance(patches, probes, batch.corners)
        weights = compute_power(probes.detach())
        return compute_patch_distance(patches, align_phases(batch.labels, patches, weights), weights)


class LossTerms(NamedTuple):
    """Differences between the prediction of a network and the truth of a simulated batch."""

    patch_distance: Tensor
    """Mean squared distance of the patches with the illumination as weight, each after its best phase."""

    merged_distance: Tensor
    """The same distance after the overlap constraint."""

    r: Tensor
    """Σ(√λ − √k)² / Σk of the merged patches, over counted pixels."""

    noise_floor: Tensor
    """Approximate R of counting noise where all pixels have counts: ¼ per pixel."""

    stage_distance: Tensor | None = None
    """Sum of the root-mean-square distances before, between and after the object stages; None without stages."""

    @property
    def loss(self) -> Tensor:
        """The loss to minimize."""
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
    """Return the patterns of ``simulated`` with the positions of their patches on its object."""
    corners, fractions = split_positions(simulated.positions, simulated.amplitudes.shape[-1])
    return Batch(simulated.amplitudes, simulated.mask, corners, fractions.float())


def compute_loss_terms(
    model: PtychoModel, simulated: SimulatedBatch, process_group: ProcessGroup = SINGLE_PROCESS
) -> LossTerms:
    """Compare the prediction of ``model`` for ``simulated`` with the truth.

    A pattern determines its patch up to a constant phase. The target here is the patch whose illumination-weighted mean
    is real, which depends on the pattern alone. Patches receive the phases of the truth before they are merged,
    as stitching synchronizes them later. For a network with object stages they are synchronized with each other, so
    that the stages are trained on the errors that they have to correct.

    The processes of the group each predict a part of the patterns; the sum of their terms is that of the batch.
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
    patch_distance = compute_patch_distance(patches * phase, target, weights).sum() / n
    stage_distance = None
    if model.object_stages:
        scene = make_batch_patterns(
            IlluminatedPatterns(batch.amplitudes, batch.mask, assumed_probes.detach(), batch.corners),
            process_group,
            process_group.count_before(len(batch.amplitudes)),
        )
        initial = average_patches(scene, patches * _compute_phase_factors(scene, patches.detach(), n))
        stages = [extract_object_patches(scene, obj) for obj in model.refine_object_stages(initial, scene)]
        distances = [
            process_group.all_reduce_sum(_sum_aligned_distances(stage, target, weights, process_group) / n)
            for stage in stages
        ]
        stage_distance = (torch.stack(distances) + MIN_SQUARED_DISTANCE).sqrt().sum() / process_group.size
        final_patches, merged_distance = stages[-1], distances[-1] / process_group.size
    else:
        final_patches = apply_overlap_constraint(patches * phase, weights, batch.corners, process_group)
        merged_distance = compute_patch_distance(final_patches, target, weights).sum() / n
    rates = from_patches(final_patches, probes).intensity
    # The offset keeps the gradient finite at zero rate, so the sums of the exact R are not used here.
    residual, _ = masked_sum(((rates + AMPLITUDE_OFFSET_PHOTONS).sqrt() - batch.amplitudes).square(), batch.mask)
    photons = full_batch.counts.sum().clamp_min(1)
    noise = full_batch.amplitudes.numel() / 4 / photons
    return LossTerms(patch_distance, merged_distance, residual / photons, noise, stage_distance)


@torch.no_grad()
def _compute_phase_factors(scene: ObjectPatterns, patches: Tensor, count: int) -> Tensor:
    """Return the factors of modulus one that synchronize this process's patches (n, N, N) with all others, (n, 1, 1).

    ``count`` is the number of patterns of the batch in all processes.
    """
    patterns = scene.take(torch.arange(scene.count))
    own = slice(scene.index_offset, scene.index_offset + scene.count)
    gathered = patches.new_zeros(count, *patches.shape[1:])
    weights, corners = (
        torch.zeros_like(gathered, dtype=patterns.probes.real.dtype),
        patterns.corners.new_zeros(count, 2),
    )
    gathered[own], weights[own], corners[own] = patches, compute_power(patterns.probes), patterns.corners
    gathered, weights, corners = (scene.reduction.all_reduce_sum(tensor) for tensor in (gathered, weights, corners))
    synchronized = synchronize_patches(gathered, weights, corners, scene.shape)
    return torch.from_numpy(synchronized.phase_factors).to(patches)[own, None, None]


def _sum_aligned_distances(patches: Tensor, target: Tensor, weights: Tensor, process_group: ProcessGroup) -> Tensor:
    """Return the summed distances of this process's patches to the target, after one phase common to all processes."""
    phase = torch.sgn(process_group.all_reduce_sum((weights * target * patches.detach().conj()).sum()))
    return compute_patch_distance(patches * phase, target, weights).sum()
