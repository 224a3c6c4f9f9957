"""The weighted average of overlapping patches on a canvas, and the overlap constraint that it gives."""

from typing import NamedTuple

import torch
from torch import Tensor

from ptycho_torch.physics.patches import add_patches, extract_patches, place_patches
from ptycho_torch.physics.reduction import NO_REDUCTION, Reduction

WEIGHT_FLOOR_FRACTION = 1e-6
"""Constant added to every weight, as a fraction of the reference weight: pixels without illumination become the plain
mean of their patches, and no division is by zero."""

PATCHES_PER_CHUNK = 32
"""Patches added at a time where no gradient is needed: few enough for the cache of the processor."""


class CanvasAverage(NamedTuple):
    """A weighted average of patches on a canvas."""

    mean: Tensor
    """(rows, columns) complex; 1, vacuum, where there is no patch."""

    coverage: Tensor
    """(rows, columns) real: sum of the weights with their floor, without the factors of whole patches."""


def average_on_canvas(
    patches: Tensor,
    weights: Tensor,
    corners: Tensor,
    shape: tuple[int, int],
    *,
    patch_weights: Tensor | None = None,
    phase_factors: Tensor | None = None,
    reference_weight: Tensor | float | None = None,
    reduction: Reduction = NO_REDUCTION,
) -> CanvasAverage:
    """Compute the weighted average ``Σ c t (w + ε) O / Σ t (w + ε)`` of patches O on a canvas.

    ε is :data:`WEIGHT_FLOOR_FRACTION` of the reference weight.

    Args:
        patches: O, (n, N, N) complex.
        weights: w, (n, N, N) real, not negative: usually the probe power on each patch.
        corners: (n, 2) int64, the [0, 0] pixel of each patch on the canvas.
        shape: rows and columns of the canvas.
        patch_weights: t, (n,) real, not negative: factor of the weights of a whole patch. None: 1.
        phase_factors: c, (n,) complex of modulus one: factor of a whole patch. None: 1.
        reference_weight: weight of which the floor is a fraction. None: the largest of ``weights``, which are then
            all on this process.
        reduction: sums over the processes, each of which has some of the patches.

    Raises:
        IndexError: a patch reaches outside the canvas.
    """
    if reference_weight is None:
        reference_weight = weights.detach().amax()
    floor = WEIGHT_FLOOR_FRACTION * reference_weight + torch.finfo(weights.dtype).tiny
    weights = weights + floor
    coverage = reduction.all_reduce_sum(place_patches(weights, corners, shape))
    total_weight = coverage
    if patch_weights is not None:
        weights = weights * patch_weights[:, None, None]
        total_weight = reduction.all_reduce_sum(place_patches(weights, corners, shape))
    total = reduction.all_reduce_sum(_place_products(patches, weights, phase_factors, corners, shape))
    covered = total_weight > 0
    mean = torch.where(covered, total / torch.where(covered, total_weight, 1), 1)
    return CanvasAverage(mean, coverage)


def _place_products(
    patches: Tensor, weights: Tensor, phase_factors: Tensor | None, corners: Tensor, shape: tuple[int, int]
) -> Tensor:
    """Place ``patches * weights * phase_factors`` on a canvas of ``shape``."""
    factors = patches.new_ones(len(patches)) if phase_factors is None else phase_factors
    if patches.requires_grad or weights.requires_grad:
        products = patches * weights if phase_factors is None else patches * (weights * factors[:, None, None])
        return place_patches(products, corners, shape)
    canvas = patches.new_zeros(shape)
    for patch, weight, factor, corner in zip(
        *(tensor.split(PATCHES_PER_CHUNK) for tensor in (patches, weights, factors, corners)), strict=True
    ):
        scaled = weight if phase_factors is None else weight * factor[:, None, None]
        add_patches(canvas, patch * scaled, corner)
    return canvas


def merge_patches(patches: Tensor, weights: Tensor, corners: Tensor) -> Tensor:
    """Apply the overlap constraint to each group of patches: patches agree where they overlap.

    The patches of a group are averaged on the group's own canvas and extracted again.

    Args:
        patches: (groups, m, N, N) complex.
        weights: (groups, m, N, N) real, not negative: the probe power on each patch.
        corners: (groups, m, 2) int64, positions of the patches on the grid; only differences within a group matter.

    Returns:
        (groups, m, N, N) complex. Patches that already agree are returned unchanged.
    """
    groups, size = patches.shape[0], patches.shape[-1]
    corners = corners - corners.amin(1, keepdim=True)
    # Each group is normalized by itself, so that its floor does not depend on the other groups.
    weights = weights / weights.amax((1, 2, 3), keepdim=True).clamp_min(torch.finfo(weights.dtype).tiny)
    rows, columns = (corners.amax((0, 1)) + size).tolist()
    # The canvases of all groups are stacked along the rows, so that one sum merges all groups.
    first_row = torch.arange(groups, device=corners.device)[:, None] * rows
    stacked = torch.stack([corners[..., 0] + first_row, corners[..., 1]], -1).reshape(-1, 2)
    average = average_on_canvas(patches.flatten(0, 1), weights.flatten(0, 1), stacked, (groups * rows, columns))
    return extract_patches(average.mean, stacked, size).reshape(patches.shape)


def apply_overlap_constraint(
    patches: Tensor, weights: Tensor, corners: Tensor, reduction: Reduction = NO_REDUCTION
) -> Tensor:
    """Apply the overlap constraint to a batch as one group, of which each process has a part.

    Args:
        patches: (n, N, N) complex; a process may have none.
        weights: (n, N, N) real, not negative: the probe power on each patch.
        corners: (n, 2) int64.
        reduction: sums and maxima over the processes.

    Returns:
        (n, N, N) complex: :func:`merge_patches` of the patches of all processes, to rounding.
    """
    size = patches.shape[-1]
    low, high = compute_bounds(corners, reduction)
    largest = reduction.all_reduce_max(weights.detach().amax() if len(weights) else weights.new_zeros(()))
    rows, columns = (high - low + size).tolist()
    weights = weights / largest.clamp_min(torch.finfo(weights.dtype).tiny)
    average = average_on_canvas(
        patches, weights, corners - low, (rows, columns), reference_weight=1.0, reduction=reduction
    )
    return extract_patches(average.mean, corners - low, size)


def compute_bounds(corners: Tensor, reduction: Reduction = NO_REDUCTION) -> tuple[Tensor, Tensor]:
    """Compute the lowest and the highest corner, (2,) int64 each, of ``corners`` (n, 2) int64 of all processes.

    A process may have no corner.
    """
    bounds = corners.new_full((4,), torch.iinfo(torch.int32).min)
    if len(corners):
        bounds = torch.cat([-corners.amin(0), corners.amax(0)])
    bounds = reduction.all_reduce_max(bounds)
    return -bounds[:2], bounds[2:]
