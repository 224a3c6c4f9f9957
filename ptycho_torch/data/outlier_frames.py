"""Frames that do not belong to a scan: empty, nearly dark, far too bright, or without resemblance to the others."""

from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

MIN_FRAMES = 20
"""Smallest number of frames that give a typical frame."""

MIN_NEIGHBORS, MAX_NEIGHBORS = 8, 48
"""Numbers of nearest positions that a frame is compared with."""

MIN_TOTAL_RATIO = 2.0
"""Smallest ratio of the total counts to those of the neighbors, or its inverse, of an outlier."""

MAX_SPREAD = 8.0
"""Smallest deviation of the logarithm of the total counts of an outlier, in robust standard deviations."""

SUPPORTING_FRACTION = 0.3
"""Fraction of the neighbors with similar total counts that confirm a frame."""

COMPARED_NEIGHBORS = 16
"""Number of neighbors whose median pattern a pattern is compared with."""

MIN_DISTANCE_RATIO = 2.8
"""Smallest ratio of an outlier's distance from the typical pattern to :data:`TYPICAL_QUANTILE` of all distances."""

TYPICAL_QUANTILE = 0.85

MIN_DISTANCE = 0.02
"""Smallest distance (1 − correlation of amplitudes) of an outlier from the typical pattern."""

FRAMES_PER_CHUNK = 256
"""Number of frames compared at a time, which bounds the memory."""

BINNED_SIDE_PX = 32
"""Approximate side in pixels of the binned patterns that are compared; binning suppresses counting noise."""

MAX_OUTLIER_FRACTION = 0.3
"""Largest fraction of outliers; if more frames deviate, none of them is an outlier."""

LISTED_FRAMES = 12
"""Number of frames that a message lists."""

Kind = Literal["empty", "dark", "bright", "dissimilar"]


class OutlierFrames(NamedTuple):
    """Indices of outliers in ascending order, and the deviation of each."""

    indices: NDArray[np.intp]
    kinds: list[Kind]


class _Neighbors(NamedTuple):
    """Nearest positions of each position."""

    indices: NDArray[np.intp]
    """(n, k), nearest first."""

    number: NDArray[np.intp]
    """(n,) number of the neighbors that belong to the comparison; the others of the k are too distant."""


def find_outlier_frames(
    amplitudes: NDArray[np.float32],
    positions: NDArray[np.float64],
    mask: NDArray[np.bool_] | None = None,
    radius: float = 0.0,
) -> OutlierFrames:
    """Find frames whose total counts or whose pattern deviate from those at the nearest positions.

    At positions that are close to each other in comparison with the probe, patterns and their totals are similar. A
    frame is an outlier if its total is neither confirmed by a part of its neighbors nor within the spread of all
    frames, or if its pattern is far from the median of its neighbors and from the median of all frames. A second pass
    compares with the remaining frames only.

    Args:
        amplitudes: (n, N, N) square roots of counts.
        positions: (n, 2) (y, x) in pixels.
        mask: (N, N) or (n, N, N) True where a pixel counts.
        radius: distance in pixels up to which frames are similar, about a quarter of the probe; the
            :data:`MIN_NEIGHBORS` nearest are always compared.
    """
    nothing = OutlierFrames(np.zeros(0, np.intp), [])
    if len(amplitudes) < MIN_FRAMES:
        return nothing
    totals, patterns = _summarize_frames(amplitudes, mask)
    typical = float(np.median(totals))
    if not typical > 0:
        return nothing
    low = high = dissimilar = np.zeros(len(totals), bool)
    for _ in range(3):
        before = low | high | dissimilar
        kept = np.flatnonzero(~before)
        neighbors = _find_neighbors(positions, kept, radius)
        low, high = _compare_totals(totals, neighbors, kept)
        dissimilar = _compare_patterns(patterns, neighbors, kept)
        if ((low | high | dissimilar) == before).all():
            break
    indices = np.flatnonzero(low | high | dissimilar)
    if len(indices) > MAX_OUTLIER_FRACTION * len(totals):
        return nothing
    kinds: list[Kind] = []
    for index in indices.tolist():
        dark: Kind = "dark" if totals[index] > 1e-3 * typical else "empty"
        kinds.append(dark if low[index] else "bright" if high[index] else "dissimilar")
    return OutlierFrames(indices, kinds)


def describe_excluded(excluded: NDArray[np.bool_]) -> str:
    """Return a message that lists the frames that ``excluded`` (n,) leaves out."""
    indices, number = np.flatnonzero(excluded), len(excluded)
    listed = ", ".join(map(str, indices[:LISTED_FRAMES].tolist())) + (", …" if len(indices) > LISTED_FRAMES else "")
    return f"{len(indices)} of {number} patterns do not fit to the others and are left out: {listed}"


def _summarize_frames(
    amplitudes: NDArray[np.float32], mask: NDArray[np.bool_] | None
) -> tuple[NDArray[np.float64], NDArray[np.float32]]:
    """Return the total counts (n,) and the binned amplitudes (n, pixels) of norm 1; masked pixels are 0."""
    number, size = amplitudes.shape[:2]
    block = max(1, size // BINNED_SIDE_PX)
    side = size // block
    totals = np.empty(number)
    patterns = np.empty((number, side * side), np.float32)
    for start in range(0, number, FRAMES_PER_CHUNK):
        part = slice(start, start + FRAMES_PER_CHUNK)
        counts = np.square(amplitudes[part])
        if mask is not None:
            counts[~np.broadcast_to(mask if mask.ndim == 2 else mask[part], counts.shape)] = 0
        totals[part] = counts.sum((1, 2), dtype=np.float64)
        trimmed = counts[:, : side * block, : side * block].reshape(-1, side, block, side, block)
        binned = np.sqrt(np.einsum("nibjc->nij", trimmed)).reshape(len(counts), -1)
        patterns[part] = _normalize(binned)
    return totals, patterns


def _normalize(patterns: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return patterns (n, pixels) of norm 1; patterns of zeros remain."""
    norms = np.linalg.norm(patterns, axis=1, keepdims=True)
    normalized: NDArray[np.float32] = (patterns / np.where(norms > 0, norms, 1)).astype(np.float32, copy=False)
    return normalized


def _find_neighbors(positions: NDArray[np.float64], kept: NDArray[np.intp], radius: float) -> _Neighbors:
    """Return the nearest positions among ``kept``, without the frame itself."""
    from scipy.spatial import cKDTree

    distances, found = cKDTree(positions[kept]).query(positions, k=min(MAX_NEIGHBORS + 1, len(kept)))
    found = kept[found]
    own = found == np.arange(len(positions))[:, None]
    # The frame itself moves to the end; where it is not among the found, the most distant one is left out.
    order = np.argsort(own, axis=1, kind="stable")[:, :-1]
    number = np.count_nonzero(np.take_along_axis(distances, order, 1) <= radius, axis=1)
    return _Neighbors(np.take_along_axis(found, order, 1), np.clip(number, MIN_NEIGHBORS, order.shape[1]))


def _compare_totals(
    totals: NDArray[np.float64], neighbors: _Neighbors, kept: NDArray[np.intp]
) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """Return which frames have far less, and which far more counts than nearly all of their neighbors."""
    logs = np.log(np.maximum(totals, 1e-9 * np.median(totals)))
    distant = np.arange(neighbors.indices.shape[1]) >= neighbors.number[:, None]
    nearby = np.sort(np.where(distant, np.inf, logs[neighbors.indices]), axis=1)

    def take(rank: NDArray[np.intp]) -> NDArray[np.float64]:
        ranked: NDArray[np.float64] = np.take_along_axis(nearby, rank[:, None], 1)[:, 0]
        return ranked

    deviations = logs - take(neighbors.number // 2)
    limit = max(np.log(MIN_TOTAL_RATIO), MAX_SPREAD * _compute_spread(deviations[kept]))
    support = np.ceil(SUPPORTING_FRACTION * neighbors.number).astype(np.intp)
    return logs < take(support - 1) - limit, logs > take(neighbors.number - support) + limit


def _compare_patterns(
    patterns: NDArray[np.float32], neighbors: _Neighbors, kept: NDArray[np.intp]
) -> NDArray[np.bool_]:
    """Return which patterns are far from the median pattern of their neighbors, and from that of all frames."""
    sample = patterns[kept[:: max(1, len(kept) // FRAMES_PER_CHUNK)]]
    from_all = 1 - patterns @ _normalize(np.median(sample, axis=0)[None])[0]
    from_neighbors = np.empty(len(patterns))
    places = np.linspace(0, neighbors.number - 1, COMPARED_NEIGHBORS).astype(np.intp).T
    compared = np.take_along_axis(neighbors.indices, places, 1)
    for start in range(0, len(patterns), FRAMES_PER_CHUNK):
        part = slice(start, start + FRAMES_PER_CHUNK)
        median = _normalize(np.median(patterns[compared[part]], axis=1))
        from_neighbors[part] = 1 - np.einsum("np,np->n", patterns[part], median)
    far = np.ones(len(patterns), bool)
    for distances in (from_all, from_neighbors):
        typical = float(np.quantile(distances[kept], TYPICAL_QUANTILE))
        far &= distances > max(MIN_DISTANCE_RATIO * typical, MIN_DISTANCE)
    return far


def _compute_spread(deviations: NDArray[np.float64]) -> float:
    """Return the standard deviation of the normal distribution with the same median absolute deviation."""
    return float(1.4826 * np.median(np.abs(deviations - np.median(deviations))))
