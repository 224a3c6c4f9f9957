"""From patches to one picture: the probe-weighted complex mean, with patch phases aligned where they overlap."""

from typing import NamedTuple

import torch
from torch import Tensor

from ptycho_torch.physics.forward import weighted_canvas
from ptycho_torch.physics.patches import Frame, extract_patches


class Stitched(NamedTuple):
    """A stitched object and how well each of its pixels was lit."""

    object: Tensor
    """(rows, columns) complex, ones where no patch lies."""

    coverage: Tensor
    """(rows, columns) real: the weights summed over all patches."""


OVER_RELAXATION = 1.8
"""Each round of alignment turns patches this much further than the canvas asks (below 2, where it would diverge)."""


def stitch(patches: Tensor, weights: Tensor, corners: Tensor, frame: Frame, align: int = 24) -> Stitched:
    """Stitch patches on the canvas ``frame``.

    A pattern fixes the phase of its patch only up to a constant. Before the last sum, each patch is therefore turned
    ``align`` times by the phase between it and the running canvas, weighted by the illumination: angular
    synchronisation (Singer, Appl. Comput. Harmon. Anal. 30, 20 (2011)) by over-relaxed iteration, because a phase
    that drifts across the whole field gives way slowly. Patches that already agree, true ones among them, stay.

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
    turned = patches
    for _ in range(align):
        canvas, _ = weighted_canvas(turned, weights, corners, frame.shape)
        seen = extract_patches(canvas, corners, patches.shape[-1])
        angle = (weights * turned.conj() * seen).sum((-2, -1), keepdim=True).angle()
        turned = turned * torch.polar(torch.ones_like(angle), OVER_RELAXATION * angle)
    canvas, coverage = weighted_canvas(turned, weights, corners, frame.shape)
    return Stitched(torch.where(coverage > 0, canvas, torch.ones_like(canvas)), coverage)
