"""Stitching: the probe-weighted complex mean of patches, whose phases are synchronized where they overlap."""

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from ptycho_torch.physics.overlap import average_on_canvas
from ptycho_torch.physics.patches import Canvas, check_patches_inside
from ptycho_torch.prediction.phase_synchronization import PatchSamples, Synchronization, synchronize_phases


class StitchedObject(NamedTuple):
    """A stitched object and its coverage."""

    object: Tensor
    """(rows, columns) complex; 1 outside all patches."""

    coverage: Tensor
    """(rows, columns) real: sum of the weights of all patches."""

    phase_factors: Tensor
    """(n,) complex factors of modulus one that multiplied the patches."""

    patch_weights: Tensor
    """(n,) factors on the weights of the patches, above 0 and at most 1."""


SAMPLES_PER_AXIS = 16
"""Approximate number of rows and columns of each patch on which phases are compared, on a grid of the canvas."""

DENSE_OVERLAP_COUNT = 24
"""Mean number of patches per pixel of the canvas above which half as many rows and columns suffice."""

MIN_RELATIVE_WEIGHT = 1e-3
"""Weight, as a fraction of the highest weight of the patch, below which phases are not compared."""


def stitch(patches: Tensor, weights: Tensor, corners: Tensor, canvas: Canvas, align: bool = True) -> StitchedObject:
    """Average patches on ``canvas``.

    A pattern determines its patch up to a constant phase, so the phases are synchronized before the patches are
    averaged, and patches that disagree with all others get small weights (:func:`synchronize_patches`).

    Args:
        patches: (n, N, N) complex.
        weights: (n, N, N) probe power on each patch, not negative.
        corners: (n, 2) int64 [0, 0] pixels of the patches in object coordinates.
        canvas: origin and shape of the result in object coordinates.
        align: True to synchronize the phases and reduce the weights of outliers.

    Raises:
        IndexError: a patch lies partly outside the canvas.
    """
    corners = corners - corners.new_tensor(canvas.origin)
    check_patches_inside(corners, patches.shape[-1], canvas.shape)
    phase_factors, patch_weights = torch.ones_like(patches[:, 0, 0]), torch.ones_like(weights[:, 0, 0])
    if align:
        synchronization = synchronize_patches(patches, weights, corners, canvas.shape)
        phase_factors = torch.from_numpy(synchronization.phase_factors).to(phase_factors)
        patch_weights = torch.from_numpy(synchronization.patch_weights).to(patch_weights)
    average = average_on_canvas(
        patches,
        weights,
        corners,
        canvas.shape,
        patch_weights=None if bool((patch_weights == 1).all()) else patch_weights,
        phase_factors=phase_factors,
    )
    return StitchedObject(average.mean, average.coverage, phase_factors, patch_weights)


def synchronize_patches(patches: Tensor, weights: Tensor, corners: Tensor, shape: tuple[int, int]) -> Synchronization:
    """Compute the phase factors that make patches agree where they overlap, and the weights of the patches.

    The phases are compared on a coarse grid of pixels of the canvas, which are pixels of all patches there, and only
    where the weight of a patch is above :data:`MIN_RELATIVE_WEIGHT`.

    Args:
        patches: (n, N, N) complex.
        weights: (n, N, N) probe power on each patch, not negative.
        corners: (n, 2) int64 [0, 0] pixels of the patches on the canvas.
        shape: rows and columns of the canvas.
    """
    size = patches.shape[-1]
    is_dense = len(patches) * size**2 > DENSE_OVERLAP_COUNT * shape[0] * shape[1]
    stride = max(1, size // (SAMPLES_PER_AXIS // 2 if is_dense else SAMPLES_PER_AXIS))
    # Pixels whose canvas coordinates are multiples of the stride; their number is the same in all patches.
    first = (-corners) % stride
    inside = torch.arange(0, size - stride + 1, stride, device=corners.device)
    rows, columns = first[:, :1] + inside, first[:, 1:] + inside
    flat = (rows[:, :, None] * size + columns[:, None, :]).flatten(1)
    across = -(-shape[1] // stride)
    canvas_indices = ((corners[:, :1] + rows) // stride)[:, :, None] * across + ((corners[:, 1:] + columns) // stride)[
        :, None
    ]
    weight = weights.flatten(1).gather(1, flat)
    weight = torch.where(weight > MIN_RELATIVE_WEIGHT * weight.amax(1, keepdim=True), weight, 0)
    value = patches.flatten(1).gather(1, flat)
    return synchronize_phases(
        PatchSamples(
            value.cpu().numpy().astype(np.complex128),
            weight.cpu().numpy().astype(np.float64),
            canvas_indices.flatten(1).cpu().numpy(),
        )
    )
