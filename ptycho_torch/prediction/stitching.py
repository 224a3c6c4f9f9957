"""From patches to one picture: the probe-weighted complex mean, with patch phases aligned where they overlap."""

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from ptycho_torch.physics.overlap import average_on_canvas
from ptycho_torch.physics.patches import Canvas, check_patches_inside
from ptycho_torch.prediction.phase_synchronization import PatchSamples, Synchronization, synchronize_phases


class StitchedObject(NamedTuple):
    """A stitched object and how well each of its pixels was lit."""

    object: Tensor
    """(rows, columns) complex, ones where no patch lies."""

    coverage: Tensor
    """(rows, columns) real: the weights summed over all patches."""

    phase_factors: Tensor
    """(n,) complex of modulus one: what each patch was multiplied by."""

    patch_weights: Tensor
    """(n,) above 0, at most 1: what its weights were multiplied by in the mean."""


SAMPLES_PER_AXIS = 16
"""Phases are compared on about this many rows and columns of each patch, always the same pixels of the canvas."""

DENSE_OVERLAP_COUNT = 24
"""Where windows overlap so many times on average, half as many rows and columns are enough."""

MIN_RELATIVE_WEIGHT = 1e-3
"""Phases are not compared where a patch has less than this share of its highest weight."""


def stitch(patches: Tensor, weights: Tensor, corners: Tensor, canvas: Canvas, align: bool = True) -> StitchedObject:
    """Stitch patches on the canvas ``frame``.

    A pattern fixes the phase of its patch only up to a constant, so the patches are turned to agree before they are
    summed, and one that agrees with none counts little (:func:`synchronize_patches`).

    Args:
        patches: (n, N, N) complex.
        weights: (n, N, N) real, not negative: probe power on each patch.
        corners: (n, 2) int64, each patch's [0, 0] pixel in object coordinates.
        frame: the canvas, in object coordinates.
        align: whether patches are turned and suspected.

    Raises:
        IndexError: a patch reaches outside the frame.
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
    """The turns that make patches agree where they overlap, and how far each is to be trusted.

    The phases are compared on every few pixels of the canvas, where all patches are exactly sampled, and only where
    a patch is lit. Arguments as for :func:`stitch`, with ``corners`` on a canvas of ``shape``.
    """
    size = patches.shape[-1]
    is_dense = len(patches) * size**2 > DENSE_OVERLAP_COUNT * shape[0] * shape[1]
    stride = max(1, size // (SAMPLES_PER_AXIS // 2 if is_dense else SAMPLES_PER_AXIS))
    # The pixels of each patch whose canvas coordinates are multiples of the stride: the same number in every patch.
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
