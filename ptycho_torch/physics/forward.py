"""The forward model: from the object under the probe to the expected photons. One for networks and engines."""

from typing import NamedTuple

import torch
from torch import Tensor

from ptycho_torch.distributed.process_group import ProcessGroup
from ptycho_torch.physics.fourier import far_field, fourier_shift
from ptycho_torch.physics.patches import extract_patches, place_patches, split_positions
from ptycho_torch.physics.probe import compute_power


class Wavefields(NamedTuple):
    """All stages of the forward model, for a batch ``*`` of positions."""

    patches: Tensor
    """(*, N, N) complex: the object under the probe, on the object's own pixel grid."""

    exit: Tensor
    """(*, M, N, N) complex: exit wave of each of the M incoherent probe modes, in √photons."""

    detector: Tensor
    """(*, M, N, N) complex: far field of each mode, zero frequency at [0, 0]."""

    intensity: Tensor
    """(*, N, N) real: expected photons, the sum over modes of |detector|² (+ background)."""


def shift_probe(probe: Tensor, fractions: Tensor) -> Tensor:
    """The probe moved to each position's fraction of a pixel.

    Args:
        probe: (M, N, N) complex modes.
        fractions: (n, 2) real shifts (y, x) in pixels.

    Returns:
        (n, M, N, N) complex.
    """
    return fourier_shift(probe, fractions[:, None, :].to(probe.real.dtype))


def from_patches(patches: Tensor, probe: Tensor, background: Tensor | float = 0.0) -> Wavefields:
    """Propagate object patches (*, N, N) lit by ``probe`` (*, M, N, N), already at each position's fraction.

    ``background`` (broadcast to (*, N, N), photons) adds to the intensity.
    """
    exit_wave = probe * patches[..., None, :, :]
    detector = far_field(exit_wave)
    intensity = compute_power(detector) + background
    return Wavefields(patches, exit_wave, detector, intensity)


def from_object(obj: Tensor, probe: Tensor, positions: Tensor, background: Tensor | float = 0.0) -> Wavefields:
    """Propagate an object lit by ``probe`` at each scan position.

    Args:
        obj: (rows, columns) complex.
        probe: (M, N, N) complex modes, in √photons.
        positions: (n, 2) float64 (y, x) in pixels, counted from ``obj[0, 0]``.
        background: photons added to each pixel, broadcast to (n, N, N).

    Raises:
        IndexError: a patch reaches outside the object.
    """
    corners, fractions = split_positions(positions, probe.shape[-1])
    patches = extract_patches(obj, corners, probe.shape[-1])
    return from_patches(patches, shift_probe(probe, fractions), background)


def merge_patches(patches: Tensor, weights: Tensor, corners: Tensor) -> Tensor:
    """The overlap constraint: make the patches of each group agree where they overlap.

    The patches of a group are added on the group's own canvas with their ``weights``, divided by the summed weights,
    and cut out again.

    Args:
        patches: (groups, m, N, N) complex.
        weights: (groups, m, N, N) real and not negative: the probe power on each patch.
        corners: (groups, m, 2) int64, positions of the patches on the grid; only differences within a group matter.

    Returns:
        (groups, m, N, N) complex. Patches that already agree come back unchanged.
    """
    groups, size = patches.shape[0], patches.shape[-1]
    corners = corners - corners.amin(1, keepdim=True)
    # The mean keeps each group's own measure of what is unlit, whatever groups it is computed with.
    weights = weights / weights.amax((1, 2, 3), keepdim=True).clamp_min(torch.finfo(weights.dtype).tiny)
    rows, columns = (corners.amax((0, 1)) + size).tolist()
    # The canvases stand below each other on one sheet, so that all groups are merged by one sum.
    canvas_row = torch.arange(groups, device=corners.device)[:, None] * rows
    canvas_corners = torch.stack([corners[..., 0] + canvas_row, corners[..., 1]], -1).reshape(-1, 2)
    canvas, _ = average_patches_on_canvas(
        patches.flatten(0, 1), weights.flatten(0, 1), canvas_corners, (groups * rows, columns)
    )
    return extract_patches(canvas, canvas_corners, size).reshape(patches.shape)


def merge_patches_distributed(process_group: ProcessGroup, patches: Tensor, weights: Tensor, corners: Tensor) -> Tensor:
    """As :func:`merge_patches`, for one group that is spread over ``ranks``: each gives its patches and gets them back.

    Args:
        ranks: all that call this; a rank may have no patch.
        patches: (n, N, N) complex.
        weights: (n, N, N) real and not negative.
        corners: (n, 2) int64.

    Returns:
        (n, N, N) complex: what :func:`merge_patches` gives for the patches of all ranks, but for rounding.
    """
    size = patches.shape[-1]
    bounds = corners.new_full((5,), torch.iinfo(torch.int32).min).double()
    if len(patches):
        bounds = torch.cat([-corners.amin(0), corners.amax(0), weights.detach().amax()[None]]).double()
    bounds = process_group.all_reduce_max(bounds)
    corners = corners + bounds[:2].long()
    rows, columns = (bounds[:2] + bounds[2:4]).long().add(size).tolist()
    brightest = bounds[4].to(weights.dtype).clamp_min(torch.finfo(weights.dtype).tiny)
    floored = weights / brightest + 1e-6  # as weighted_canvas has it for a largest weight of 1
    weighted_sum = process_group.all_reduce_sum(place_patches(patches * floored, corners, (rows, columns)))
    total = process_group.all_reduce_sum(place_patches(floored, corners, (rows, columns)))
    return extract_patches(weighted_sum / total.clamp_min(1e-6), corners, size)


def apply_overlap_constraint(process_group: ProcessGroup, patches: Tensor, weights: Tensor, corners: Tensor) -> Tensor:
    """The overlap constraint over one group, of which each of ``ranks`` has a part, as :func:`merge_patches_distributed` has it."""
    if process_group.size > 1:
        return merge_patches_distributed(process_group, patches, weights, corners)
    return merge_patches(patches[None], weights[None], corners[None])[0]


def average_patches_on_canvas(
    patches: Tensor, weights: Tensor, corners: Tensor, shape: tuple[int, int]
) -> tuple[Tensor, Tensor]:
    """Weighted mean of patches on a canvas, and the summed weights.

    A constant of 1e-6 of the largest weight is added above and below (to the patches' unweighted sum and the
    weights), so that unlit pixels are the plain mean of their patches and nothing is divided by zero.

    Args:
        patches: (n, N, N) complex.
        weights: (n, N, N) real, not negative.
        corners: (n, 2) int64 on the canvas.
        shape: rows and columns of the canvas.

    Returns:
        The canvas (rows, columns) complex, zero where no patch lies, and the coverage (rows, columns) real.
    """
    floor = 1e-6 * weights.detach().amax() + torch.finfo(weights.dtype).tiny
    weighted_sum = place_patches(patches * (weights + floor), corners, shape)
    total = place_patches(weights + floor, corners, shape)
    return weighted_sum / total.clamp_min(floor), total
