"""An object that teaches the network: what an engine found, as a target beside the measured patterns."""

import hashlib
from dataclasses import dataclass

import torch
from torch import Tensor

from ptycho_torch.physics.patches import extract_patches
from ptycho_torch.physics.probe import compute_power

TARGET_WEIGHT = 50.0
"""Weight of the distance to the teacher's patches beside the deviance of the patterns, which is ½ at the noise."""

MERGED_TARGET_WEIGHT = 100.0
"""The same for the patches after the overlap constraint: what all of them miss alike, no averaging takes away."""


@dataclass(frozen=True, eq=False)
class ObjectTarget:
    """An object on its canvas, of the units in which the network's probe lights it."""

    object: Tensor
    """(rows, columns) complex. It holds every patch of the training."""

    origin: Tensor
    """(2,) int64: object coordinates of ``object[0, 0]``."""

    def compute_distance(self, patches: Tensor, probes: Tensor, corners: Tensor) -> Tensor:
        """Squared distance of each pattern's patch to the teacher's, as a mean where the probe lights it, (n,).

        Args:
            patches: (n, N, N) complex, as predicted or after they were merged.
            probes: (n, M, N, N) complex, at each position's fraction.
            corners: (n, 2) int64, in object coordinates.
        """
        target = extract_patches(self.object, corners - self.origin, patches.shape[-1])
        return compute_patch_distance(patches, target, compute_power(probes.detach()))

    def digest(self) -> str:
        """A short fingerprint."""
        return hashlib.sha256(self.object.cpu().numpy().tobytes()).hexdigest()[:16]


def compute_patch_distance(patches: Tensor, target: Tensor, weights: Tensor) -> Tensor:
    """Squared distance between patches (n, N, N), each as a mean weighted by ``weights`` (n, N, N), (n,)."""
    residual = patches - target
    squared = residual.real.square() + residual.imag.square()
    return (weights * squared).sum((-2, -1)) / weights.sum((-2, -1))


def make_object_target(obj: Tensor, coverage: Tensor, origin: tuple[int, int]) -> ObjectTarget:
    """A teacher whose mean over what is lit is real: the phase of an object is free, and a network starts at vacuum.

    Args:
        obj: (rows, columns) complex.
        coverage: (rows, columns) real, its illumination.
        origin: object coordinates of ``obj[0, 0]``.
    """
    phase = torch.sgn((obj * coverage).sum()).conj()
    return ObjectTarget(obj * phase, torch.tensor(origin, device=obj.device))
