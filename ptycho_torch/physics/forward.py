"""The forward model: from the object under the probe to the expected photons. One for networks and engines."""

from typing import NamedTuple

import torch
from torch import Tensor

from ptycho_torch.distributed.process_group import Ranks
from ptycho_torch.physics.fourier import far_field, fourier_shift
from ptycho_torch.physics.patches import extract_patches, place_patches, split_positions
from ptycho_torch.physics.probe import power_of


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


def probe_at(probe: Tensor, fractions: Tensor) -> Tensor:
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
    intensity = power_of(detector) + background
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
    return from_patches(patches, probe_at(probe, fractions), background)


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
    sheet_row = torch.arange(groups, device=corners.device)[:, None] * rows
    on_sheet = torch.stack([corners[..., 0] + sheet_row, corners[..., 1]], -1).reshape(-1, 2)
    sheet, _ = weighted_canvas(patches.flatten(0, 1), weights.flatten(0, 1), on_sheet, (groups * rows, columns))
    return extract_patches(sheet, on_sheet, size).reshape(patches.shape)


def merge_across(ranks: Ranks, patches: Tensor, weights: Tensor, corners: Tensor) -> Tensor:
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
    reach = corners.new_full((5,), torch.iinfo(torch.int32).min).double()
    if len(patches):
        reach = torch.cat([-corners.amin(0), corners.amax(0), weights.detach().amax()[None]]).double()
    reach = ranks.largest(reach)
    corners = corners + reach[:2].long()
    rows, columns = (reach[:2] + reach[2:4]).long().add(size).tolist()
    brightest = reach[4].to(weights.dtype).clamp_min(torch.finfo(weights.dtype).tiny)
    floored = weights / brightest + 1e-6  # as weighted_canvas has it for a largest weight of 1
    placed = ranks.sum(place_patches(patches * floored, corners, (rows, columns)))
    total = ranks.sum(place_patches(floored, corners, (rows, columns)))
    return extract_patches(placed / total.clamp_min(1e-6), corners, size)


def agreed(ranks: Ranks, patches: Tensor, weights: Tensor, corners: Tensor) -> Tensor:
    """The overlap constraint over one group, of which each of ``ranks`` has a part, as :func:`merge_across` has it."""
    if ranks.size > 1:
        return merge_across(ranks, patches, weights, corners)
    return merge_patches(patches[None], weights[None], corners[None])[0]


def weighted_canvas(patches: Tensor, weights: Tensor, corners: Tensor, shape: tuple[int, int]) -> tuple[Tensor, Tensor]:
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
    placed = place_patches(patches * (weights + floor), corners, shape)
    total = place_patches(weights + floor, corners, shape)
    return placed / total.clamp_min(floor), total
