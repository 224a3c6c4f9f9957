"""The curvature of an unknown probe, from how the shadow of the object moves over the detector as the beam is moved."""

import logging

import numpy as np
from numpy.typing import NDArray

from ptycho_torch.data.scan import Scan

MIN_PAIR_DISTANCE_FRACTION, MAX_PAIR_DISTANCE_FRACTION = 0.1, 0.3
"""Distance of the positions that are compared, as shares of a pattern's side: near ones still share what does not move
with the object, far ones share too little object."""

MAX_PAIRS = 400
"""Pairs of patterns that are compared."""

BINNED_SIDE_PX = 64
"""Pixels to whose number a pattern's side is brought down, by summing blocks: shadows are coarse."""

BLUR_SIGMA_PX = 2.0
"""Sigma in those pixels of the Gaussian that takes the counting noise out."""

MAX_MAGNIFICATION = 3.0
"""Largest magnification that is looked for, in detector pixels per object pixel, of either sign."""

MIN_CORRELATION = 0.1
"""Correlation of the moved shadows below which there is none: a probe in focus makes speckle, not shadows."""

log = logging.getLogger(__name__)


def estimate_curvature(scan: Scan, rng: np.random.Generator) -> float:
    """Curvature c of the probe's phase ``c r² / 2`` in rad per square pixel; 0 where the patterns show none.

    Where a probe is curved, light from its point r goes to the detector pixel ``B r`` with ``B = c N / 2π``: a pattern
    is a shadow image of what is lit, and moving the beam by s moves the shadow by ``−B s``. B is where the
    cross-correlations of pairs of patterns, each read at its own ``−B s``, have the largest sum. Unlike the width of
    the patterns this tells the sign. It is how a defocus is read from Ronchigrams, and stays right at 1,000 photons a
    pattern, since all pairs vote on one number.

    Args:
        scan: patterns and positions; its probe is not looked at.
        rng: chooses the pairs where there are more than enough.
    """
    pairs = _select_pairs(scan, rng)
    if len(pairs) == 0:
        log.info("no two positions are far enough apart to tell the probe's curvature; it starts with none")
        return 0.0
    candidates = np.linspace(-MAX_MAGNIFICATION, MAX_MAGNIFICATION, 121)
    agreement = _correlate_shadows(scan, pairs, candidates)
    best = int(agreement.argmax())
    if agreement[best] < MIN_CORRELATION:
        log.info("the patterns show no moving shadow (correlation %.2f); the probe starts uncurved", agreement[best])
        return 0.0
    magnification = candidates[best]
    if 0 < best < len(candidates) - 1:
        before, peak, after = agreement[best - 1 : best + 2]
        magnification += (after - before) / (2 * (2 * peak - before - after)) * (candidates[1] - candidates[0])
    log.info("shadows move by %.3f pixels a pixel (correlation %.2f)", magnification, agreement[best])
    return float(2 * np.pi * magnification / scan.size)


def _select_pairs(scan: Scan, rng: np.random.Generator) -> NDArray[np.intp]:
    """Pairs of positions at a useful distance, (m, 2)."""
    from scipy.spatial import cKDTree

    # A few hundred anchors have pairs enough, and a dense scan of many positions has too many to list.
    anchors = np.sort(rng.permutation(len(scan))[:MAX_PAIRS])
    near = cKDTree(scan.positions).query_ball_point(scan.positions[anchors], MAX_PAIR_DISTANCE_FRACTION * scan.size)
    found = []
    for anchor, others in zip(anchors, near, strict=True):
        offsets = scan.positions[others] - scan.positions[anchor]
        useful = np.array(others, np.intp)[np.hypot(*offsets.T) >= MIN_PAIR_DISTANCE_FRACTION * scan.size]
        found += [(anchor, other) for other in rng.permutation(useful)[:4]]
    chosen = rng.permutation(np.array(found, np.intp).reshape(-1, 2))
    return chosen[:MAX_PAIRS]


def _correlate_shadows(scan: Scan, pairs: NDArray[np.intp], candidates: NDArray[np.float64]) -> NDArray[np.float64]:
    """Mean correlation of the pairs' shadows at each of some magnifications, (len(candidates),)."""
    from scipy import fft
    from scipy.ndimage import map_coordinates

    members, places = np.unique(pairs, return_inverse=True)
    shadows, block = _compute_shadows(scan, members)
    side = shadows.shape[-1]
    padded = fft.next_fast_len(2 * side, real=True)
    first, second = places.reshape(pairs.shape).T
    moves = (scan.positions[pairs[:, 1]] - scan.positions[pairs[:, 0]]) / block
    total = np.zeros(len(candidates))
    for part in np.array_split(np.arange(len(pairs)), -(-len(pairs) // 64)):
        left, right = (fft.rfft2(shadows[which[part]], s=(padded, padded)) for which in (first, second))
        correlation = fft.irfft2(left.conj() * right, s=(padded, padded))
        shifts = -candidates[:, None, None] * moves[part]  # (candidates, pairs, 2)
        in_range = (np.abs(shifts) < side / 2).all(-1)
        numbers = np.broadcast_to(np.arange(len(part)), in_range.shape)
        # Order 1, periodic: negative shifts are found at the far end.
        read = map_coordinates(correlation, [numbers, *np.moveaxis(shifts, -1, 0)], order=1, mode="grid-wrap")
        total += np.where(in_range, read, 0).sum(1)
    return total / len(pairs)


def _compute_shadows(scan: Scan, members: NDArray[np.intp]) -> tuple[NDArray[np.float32], int]:
    """What moves in some patterns, (m, side, side), each of norm 1, and the pixels a side of the blocks summed."""
    from scipy.ndimage import gaussian_filter

    patterns = np.square(scan.amplitudes[members])
    if scan.mask is not None:
        patterns = np.where(scan.mask[members] if scan.mask.ndim == 3 else scan.mask, patterns, np.float32(0))
    block = max(1, scan.size // BINNED_SIDE_PX)
    side = scan.size // block
    patterns = patterns[:, : side * block, : side * block].reshape(-1, side, block, side, block).sum((2, 4))
    patterns /= patterns.sum((1, 2), keepdims=True).clip(np.finfo(np.float32).tiny)
    mean = patterns.mean(0)
    changes, still = (
        gaussian_filter(patterns - mean, (0, BLUR_SIGMA_PX, BLUR_SIGMA_PX)),
        gaussian_filter(mean, BLUR_SIGMA_PX),
    )
    changes /= np.sqrt(still + 1e-3 * still.max())  # bright and dim parts of the beam count by their noise alike
    norms = np.sqrt(np.square(changes).sum((1, 2), keepdims=True))
    return changes / norms.clip(np.finfo(np.float32).tiny), block


def estimate_width(scan: Scan, curvature: float) -> float:
    """Sigma in pixels of a Gaussian amplitude ``exp(−r² / 2σ²)`` whose mean pattern is as wide as those measured.

    A Gaussian beam of curvature c has in far field, along one axis, the variance of power
    ``(B σ)² / 2 + (N / 2πσ)² / 2`` with ``B = c N / 2π``. Of the two widths that this allows the wider is taken, which
    is the curved beam far from its waist. An object that scatters widely makes it an overestimate.
    """
    mean = np.square(scan.amplitudes, dtype=np.float64)
    if scan.mask is not None:
        mean = np.where(scan.mask, mean, 0)
    mean = mean.mean(0)
    variance = 0.0
    for axis in (0, 1):
        line, place = mean.sum(1 - axis) / mean.sum(), np.arange(scan.size)
        variance += float((line * (place - (line * place).sum()) ** 2).sum()) / 2
    waist, magnification = scan.size / (2 * np.pi), curvature * scan.size / (2 * np.pi)
    if magnification == 0:
        return waist / np.sqrt(2 * variance)
    # B² σ⁴ − 2 v σ² + waist² = 0
    root = np.sqrt(max(0.0, variance**2 - (magnification * waist) ** 2))
    return float(np.sqrt((variance + root) / magnification**2))
