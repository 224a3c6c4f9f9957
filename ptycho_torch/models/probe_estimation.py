"""An unknown probe, estimated as a Gaussian with the curvature and the width of the patterns of a scan."""

import logging

import numpy as np
from numpy.typing import NDArray

from ptycho_torch.data.scan import Scan

MIN_PAIR_DISTANCE_FRACTION, MAX_PAIR_DISTANCE_FRACTION = 0.1, 0.3
"""Smallest and largest distance of a compared pair of positions, as fractions of N. Closer pairs share features that
do not move with the object; distant pairs share too little of the object."""

MAX_PAIRS = 400
"""Largest number of compared pairs of patterns."""

MAX_PAIRS_PER_ANCHOR = 4
"""Largest number of compared pairs with the same first pattern."""

BINNED_SIDE_PX = 64
"""Approximate side of the patterns after binning; shadows have no finer detail."""

BLUR_SIGMA_PX = 2.0
"""Standard deviation, in binned pixels, of the Gaussian that suppresses counting noise."""

MAX_MAGNIFICATION = 3.0
"""Largest tested magnification of either sign, in detector pixels per object pixel."""

MIN_CORRELATION = 0.1
"""Smallest mean correlation of shifted shadows that counts as a match; a probe in focus gives speckle, not shadows."""

PAIRS_PER_CHUNK = 64
"""Number of pairs per chunk, which bounds the memory."""

log = logging.getLogger(__name__)


def make_gaussian_probe(scan: Scan, sigma: float | None, rng: np.random.Generator) -> NDArray[np.complex64]:
    """Return a Gaussian probe (1, N, N) of arbitrary power whose curvature is estimated from the patterns.

    A reconstruction that starts without curvature may never recover it: the object can absorb the curvature and fit
    the patterns nearly as well.

    Args:
        scan: Patterns and positions; its probe is ignored.
        sigma: Standard deviation of the amplitude in pixels. Default: estimated from the width of the patterns.
        rng: Selects the patterns that are compared.
    """
    curvature = estimate_curvature(scan, rng)
    sigma = estimate_width(scan, curvature) if sigma is None else sigma
    log.info("initial probe: Gaussian, sigma %.2f pixels, curvature %.4f rad per square pixel", sigma, curvature)
    squares = np.square(np.arange(scan.size, dtype=np.float64) - scan.size // 2)
    probe = np.exp((squares[:, None] + squares) * (0.5j * curvature - 0.5 / sigma**2))
    return probe[None].astype(np.complex64)


def estimate_curvature(scan: Scan, rng: np.random.Generator) -> float:
    """Return the curvature c of the phase ``c r² / 2`` of the probe, in rad per squared pixel; 0 if undetectable.

    A curved probe maps its point r to the detector pixel ``B r`` with ``B = c N / 2π``: a pattern is a shadow image of
    the illuminated object, and a displacement s of the probe moves the shadow by ``−B s``. The estimate is the B that
    maximizes the sum of the cross-correlations of pairs of patterns, each evaluated at its own ``−B s``. In contrast to
    the width of the patterns, the shadows determine the sign of c. The principle is that of defocus measurement by
    Ronchigrams. Since all pairs contribute to a single number, 1,000 photons per pattern suffice.

    Args:
        scan: Patterns and positions; its probe is ignored.
        rng: Selects the pairs if there are more than needed.
    """
    return MovingShadows(scan, rng).estimate_curvature()


class MovingShadows:
    """Cross-correlations of pairs of patterns, from which the curvature follows for any linear map of the positions.

    Args:
        scan: Patterns and positions; its probe is ignored.
        rng: Selects the pairs if there are more than needed.
        scale: Approximate scale of the linear maps, on which the distances of suitable pairs depend.
    """

    def __init__(self, scan: Scan, rng: np.random.Generator, scale: float = 1.0) -> None:
        self.size = scan.size
        pairs = _select_pairs(scale * scan.positions, scan.size, rng)
        self._displacements = scan.positions[pairs[:, 1]] - scan.positions[pairs[:, 0]]
        self._members, inverse = np.unique(pairs, return_inverse=True)
        self._pairs = inverse.reshape(pairs.shape)
        if len(pairs):
            self._shadows, self._block = _compute_shadows(scan, self._members)
        self._correlations: list[NDArray[np.float32]] | None = None

    def estimate_curvature(self, linear_map: NDArray[np.float64] | None = None) -> float:
        """Return the curvature, as :func:`estimate_curvature`, for positions mapped by ``linear_map`` (2, 2)."""
        if len(self._pairs) == 0:
            log.info("no two positions have a distance suitable to estimate the probe curvature; using 0")
            return 0.0
        displacements = self._displacements if linear_map is None else self._displacements @ linear_map.T
        level = logging.INFO if linear_map is None else logging.DEBUG  # maps are tried by the dozen
        candidates = np.linspace(-MAX_MAGNIFICATION, MAX_MAGNIFICATION, 121)
        correlations = self._evaluate(displacements, candidates)
        best = int(correlations.argmax())
        peak = correlations[best]
        if peak < MIN_CORRELATION:
            log.log(level, "no moving shadow in the patterns (correlation %.2f); using no probe curvature", peak)
            return 0.0
        magnification = candidates[best]
        if 0 < best < len(candidates) - 1:
            before, _, after = correlations[best - 1 : best + 2]
            magnification += (after - before) / (2 * (2 * peak - before - after)) * (candidates[1] - candidates[0])
        log.log(level, "magnification of the shadows: %.3f (correlation %.2f)", magnification, peak)
        return float(2 * np.pi * magnification / self.size)

    def _evaluate(self, displacements: NDArray[np.float64], candidates: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return the mean correlation of the shadows of all pairs at each magnification, (len(candidates),)."""
        from scipy.ndimage import map_coordinates

        side = self._shadows.shape[-1]
        total = np.zeros(len(candidates))
        start = 0
        for correlation in self._correlate():
            part = displacements[start : start + len(correlation)] / self._block
            start += len(correlation)
            shifts = -candidates[:, None, None] * part  # (candidates, pairs, 2)
            in_range = (np.abs(shifts) < side / 2).all(-1)
            numbers = np.broadcast_to(np.arange(len(part)), in_range.shape)
            # Linear interpolation, periodic: negative shifts are at the far end.
            values = map_coordinates(correlation, [numbers, *np.moveaxis(shifts, -1, 0)], order=1, mode="grid-wrap")
            total += np.where(in_range, values, 0).sum(1)
        return total / len(self._pairs)

    def _correlate(self) -> list[NDArray[np.float32]]:
        """Return the cross-correlations of the pairs in chunks (m, padded, padded), computed at the first call."""
        from scipy import fft

        if self._correlations is None:
            padded = fft.next_fast_len(2 * self._shadows.shape[-1], real=True)
            self._correlations = []
            for chunk in np.array_split(self._pairs, -(-len(self._pairs) // PAIRS_PER_CHUNK)):
                left, right = (fft.rfft2(self._shadows[which], s=(padded, padded)) for which in chunk.T)
                self._correlations.append(fft.irfft2(left.conj() * right, s=(padded, padded)))
        return self._correlations


def estimate_width(scan: Scan, curvature: float) -> float:
    """Return σ in pixels of the Gaussian amplitude ``exp(−r² / 2σ²)`` whose pattern is as wide as the mean pattern.

    A Gaussian probe of curvature c has, along one axis of the far field, the variance of power
    ``(B σ)² / 2 + (N / 2πσ)² / 2`` with ``B = c N / 2π``. Of the two solutions the larger is returned: a curved probe
    far from its waist. A strongly scattering object makes it an overestimate.
    """
    mean = np.square(scan.amplitudes, dtype=np.float64)
    if scan.mask is not None:
        mean = np.where(scan.mask, mean, 0)
    mean = mean.mean(0)
    variance = 0.0
    for axis in (0, 1):
        profile, pixels = mean.sum(1 - axis) / mean.sum(), np.arange(scan.size)
        variance += float((profile * (pixels - (profile * pixels).sum()) ** 2).sum()) / 2
    waist, magnification = scan.size / (2 * np.pi), curvature * scan.size / (2 * np.pi)
    if magnification == 0:
        return waist / np.sqrt(2 * variance)
    # B² σ⁴ − 2 v σ² + waist² = 0
    root = np.sqrt(max(0.0, variance**2 - (magnification * waist) ** 2))
    return float(np.sqrt((variance + root) / magnification**2))


def _select_pairs(positions: NDArray[np.float64], size: int, rng: np.random.Generator) -> NDArray[np.intp]:
    """Return pairs of positions at a suitable distance, (m, 2)."""
    from scipy.spatial import cKDTree

    # A dense scan has too many pairs to list; a few hundred first patterns give enough of them.
    anchors = np.sort(rng.permutation(len(positions))[:MAX_PAIRS])
    neighbors = cKDTree(positions).query_ball_point(positions[anchors], MAX_PAIR_DISTANCE_FRACTION * size)
    pairs = []
    for anchor, others in zip(anchors, neighbors, strict=True):
        offsets = positions[others] - positions[anchor]
        distant = np.array(others, np.intp)[np.hypot(*offsets.T) >= MIN_PAIR_DISTANCE_FRACTION * size]
        pairs += [(anchor, other) for other in rng.permutation(distant)[:MAX_PAIRS_PER_ANCHOR]]
    return rng.permutation(np.array(pairs, np.intp).reshape(-1, 2))[:MAX_PAIRS]


def _compute_shadows(scan: Scan, members: NDArray[np.intp]) -> tuple[NDArray[np.float32], int]:
    """Return the deviations of patterns from their mean, (m, side, side), each of norm 1, and the binning factor."""
    from scipy.ndimage import gaussian_filter

    patterns = np.square(scan.amplitudes[members])
    if scan.mask is not None:
        patterns = np.where(scan.mask[members] if scan.mask.ndim == 3 else scan.mask, patterns, np.float32(0))
    block = max(1, scan.size // BINNED_SIDE_PX)
    side = scan.size // block
    patterns = patterns[:, : side * block, : side * block].reshape(-1, side, block, side, block).sum((2, 4))
    patterns /= patterns.sum((1, 2), keepdims=True).clip(np.finfo(np.float32).tiny)
    mean = patterns.mean(0)
    shadows = gaussian_filter(patterns - mean, (0, BLUR_SIGMA_PX, BLUR_SIGMA_PX))
    smooth_mean = gaussian_filter(mean, BLUR_SIGMA_PX)
    shadows /= np.sqrt(smooth_mean + 1e-3 * smooth_mean.max())  # equal noise in bright and dim parts of the pattern
    norms = np.sqrt(np.square(shadows).sum((1, 2), keepdims=True))
    return shadows / norms.clip(np.finfo(np.float32).tiny), block
