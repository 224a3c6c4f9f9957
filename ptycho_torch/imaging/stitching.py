"""From patches to one picture: the probe-weighted complex mean, with patch phases aligned where they overlap."""

from typing import NamedTuple

import torch
from torch import Tensor

from ptycho_torch.physics.forward import weighted_canvas
from ptycho_torch.physics.patches import Frame, check_inside


class Stitched(NamedTuple):
    """A stitched object and how well each of its pixels was lit."""

    object: Tensor
    """(rows, columns) complex, ones where no patch lies."""

    coverage: Tensor
    """(rows, columns) real: the weights summed over all patches."""


OVER_RELAXATION = 1.8
"""Each round of alignment turns patches this much further than the canvas asks (below 2, where it would diverge)."""

SAMPLES = 16
"""Phases are compared on about this many rows and columns of each patch, always the same pixels of the canvas."""


def stitch(patches: Tensor, weights: Tensor, corners: Tensor, frame: Frame, align: int = 50) -> Stitched:
    """Stitch patches on the canvas ``frame``.

    A pattern fixes the phase of its patch only up to a constant, so the patches are turned to agree before they are
    summed (:func:`align_phases`).

    Args:
        patches: (n, N, N) complex.
        weights: (n, N, N) real, not negative: probe power on each patch.
        corners: (n, 2) int64, each patch's [0, 0] pixel in object coordinates.
        frame: the canvas, in object coordinates.
        align: rounds of phase alignment; 0 for none.

    Raises:
        IndexError: a patch reaches outside the frame.
    """
    corners = corners - corners.new_tensor(frame.origin)
    if align:
        patches = patches * align_phases(patches, weights, corners, frame.shape, align)[:, None, None]
    canvas, coverage = weighted_canvas(patches, weights, corners, frame.shape)
    return Stitched(torch.where(coverage > 0, canvas, torch.ones_like(canvas)), coverage)


def align_phases(patches: Tensor, weights: Tensor, corners: Tensor, shape: tuple[int, int], rounds: int) -> Tensor:
    """Factors of modulus one that make patches agree where they overlap.

    Each round turns every patch by the phase between it and the weighted mean of all, over-relaxed because a phase
    that drifts across the whole field gives way slowly: angular synchronisation (Singer, Appl. Comput. Harmon. Anal.
    30, 20 (2011)). Patches that already agree, true ones among them, stay. The phases are compared on every few
    pixels of the canvas, where all patches are exactly sampled.

    Args:
        patches: (n, N, N) complex.
        weights: (n, N, N) real, not negative.
        corners: (n, 2) int64 on the canvas.
        shape: rows and columns of the canvas.
        rounds: how often.

    Returns:
        (n,) complex.

    Raises:
        IndexError: a patch reaches outside the canvas.
    """
    size = patches.shape[-1]
    check_inside(corners, size, shape)
    stride = max(1, size // SAMPLES)
    # The pixels of each patch whose canvas coordinates are multiples of the stride: the same number in every patch.
    first = (-corners) % stride
    inside = torch.arange(0, size - stride + 1, stride, device=corners.device)
    rows, columns = first[:, :1] + inside, first[:, 1:] + inside
    flat = (rows[:, :, None] * size + columns[:, None, :]).flatten(1)
    index = ((corners[:, :1] + rows)[:, :, None] * shape[1] + (corners[:, 1:] + columns)[:, None, :]).flatten(1)
    weight = weights.flatten(1).gather(1, flat)
    value = patches.flatten(1).gather(1, flat)
    total = weight.new_zeros(shape[0] * shape[1]).index_add(0, index.flatten(), weight.flatten())
    lit = value * weight
    given = lit / total.clamp_min(torch.finfo(weight.dtype).tiny)[index]
    turn = torch.ones_like(value[:, 0])
    for _ in range(rounds):
        mean = value.new_zeros(len(total)).index_add(0, index.flatten(), (given * turn[:, None]).flatten())
        angle = ((lit.conj() * mean[index]).sum(1) * turn.conj()).angle()
        turn = turn * torch.polar(torch.ones_like(angle), OVER_RELAXATION * angle)
    return turn
