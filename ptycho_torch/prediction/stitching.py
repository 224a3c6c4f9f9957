"""From patches to one picture: the probe-weighted complex mean, with patch phases aligned where they overlap."""

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from ptycho_torch.physics.patches import Frame, add_patches, check_inside
from ptycho_torch.prediction.phase_synchronization import Samples, Synchronised, synchronise


class Stitched(NamedTuple):
    """A stitched object and how well each of its pixels was lit."""

    object: Tensor
    """(rows, columns) complex, ones where no patch lies."""

    coverage: Tensor
    """(rows, columns) real: the weights summed over all patches."""

    turns: Tensor
    """(n,) complex of modulus one: what each patch was multiplied by."""

    trust: Tensor
    """(n,) above 0, at most 1: what its weights were multiplied by in the mean."""


SAMPLES = 16
"""Phases are compared on about this many rows and columns of each patch, always the same pixels of the canvas."""

CROWD = 24
"""Where windows overlap so many times on average, half as many rows and columns are enough."""

FAINT = 1e-3
"""Phases are not compared where a patch has less than this share of its highest weight."""

CHUNK = 32
"""Patches added at a time: few enough for the processor's cache."""


def stitch(patches: Tensor, weights: Tensor, corners: Tensor, frame: Frame, align: bool = True) -> Stitched:
    """Stitch patches on the canvas ``frame``.

    A pattern fixes the phase of its patch only up to a constant, so the patches are turned to agree before they are
    summed, and one that agrees with none counts little (:func:`synchronise_patches`).

    A constant of 1e-6 of the largest weight is added to every weight, so that unlit pixels are the plain mean of their
    patches and nothing is divided by zero.

    Args:
        patches: (n, N, N) complex.
        weights: (n, N, N) real, not negative: probe power on each patch.
        corners: (n, 2) int64, each patch's [0, 0] pixel in object coordinates.
        frame: the canvas, in object coordinates.
        align: whether patches are turned and suspected.

    Raises:
        IndexError: a patch reaches outside the frame.
    """
    corners = corners - corners.new_tensor(frame.origin)
    check_inside(corners, patches.shape[-1], frame.shape)
    turns, trust = torch.ones_like(patches[:, 0, 0]), torch.ones_like(weights[:, 0, 0])
    if align:
        found = synchronise_patches(patches, weights, corners, frame.shape)
        turns, trust = torch.from_numpy(found.turns).to(turns), torch.from_numpy(found.trust).to(trust)
    floor = 1e-6 * weights.amax() + torch.finfo(weights.dtype).tiny
    total, coverage = patches.new_zeros(frame.shape), weights.new_zeros(frame.shape)
    # Without suspects, what the sum is divided by is the coverage itself.
    trusted = coverage if bool((trust == 1).all()) else weights.new_zeros(frame.shape)
    for some in torch.arange(len(patches)).split(CHUNK):
        weight = weights[some] + floor
        add_patches(coverage, weight, corners[some])
        if trusted is not coverage:
            weight *= trust[some, None, None]
            add_patches(trusted, weight, corners[some])
        add_patches(total, patches[some] * (weight * turns[some, None, None]), corners[some])
    mean = torch.where(trusted > 0, total / trusted.clamp_min(torch.finfo(weights.dtype).tiny), 1)
    return Stitched(mean, coverage, turns, trust)


def synchronise_patches(patches: Tensor, weights: Tensor, corners: Tensor, shape: tuple[int, int]) -> Synchronised:
    """The turns that make patches agree where they overlap, and how far each is to be trusted.

    The phases are compared on every few pixels of the canvas, where all patches are exactly sampled, and only where
    a patch is lit. Arguments as for :func:`stitch`, with ``corners`` on a canvas of ``shape``.
    """
    size = patches.shape[-1]
    crowded = len(patches) * size**2 > CROWD * shape[0] * shape[1]
    stride = max(1, size // (SAMPLES // 2 if crowded else SAMPLES))
    # The pixels of each patch whose canvas coordinates are multiples of the stride: the same number in every patch.
    first = (-corners) % stride
    inside = torch.arange(0, size - stride + 1, stride, device=corners.device)
    rows, columns = first[:, :1] + inside, first[:, 1:] + inside
    flat = (rows[:, :, None] * size + columns[:, None, :]).flatten(1)
    across = -(-shape[1] // stride)
    places = ((corners[:, :1] + rows) // stride)[:, :, None] * across + ((corners[:, 1:] + columns) // stride)[:, None]
    weight = weights.flatten(1).gather(1, flat)
    weight = torch.where(weight > FAINT * weight.amax(1, keepdim=True), weight, 0)
    value = patches.flatten(1).gather(1, flat)
    return synchronise(
        Samples(
            value.cpu().numpy().astype(np.complex128),
            weight.cpu().numpy().astype(np.float64),
            places.flatten(1).cpu().numpy(),
        )
    )
