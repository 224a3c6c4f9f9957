"""The part of a scan on which orientations are tried: neighboring patterns of much contrast, on few pixels."""

import logging
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from ptycho_torch.data.photons import photon_scale
from ptycho_torch.data.scan import Scan

WINDOW_PATTERNS = 40
"""Patterns of the window."""

SPACING_FRACTION = 0.09
"""Smallest distance of two patterns of the window, as a fraction of N: a dense scan covers too little otherwise."""

COUNTS_SHARE = 0.98
"""Share of all counts on the pixels that are kept."""

MIN_SIDE_PX, MAX_SIDE_PX = 40, 96
"""Smallest and largest side of the patterns of the window."""

BIN = 3
"""Factor of binning where the side would be larger. An odd block that is centered on zero frequency has no offset."""

EXIT_WAVE_SHARE = 0.99
"""Share of the power of the autocorrelation of the exit waves that must fit into the binned window."""

MAX_TOTAL_RATIO = 5.0
"""Largest ratio, either way, of the counts of a pattern to the median; other patterns are left out."""

CENTERS = 64
"""Number of patterns, spread over the scan, around which the contrast of a window is measured."""

log = logging.getLogger(__name__)


def select_window(scan: Scan) -> Scan:
    """Return the window of ``scan`` in which orientations are tried, without truth and labels.

    Args:
        scan: the whole scan.

    Raises:
        DataError: the scan has no photons.
    """
    scale = photon_scale(scan)
    chosen = choose_patterns(scan)
    window = replace(
        scan.select(chosen),
        truth=None,
        labels=None,
        nominal_positions=None,
        geometry=None,
        photons_per_unit=scale.photons_per_unit,
    )
    side, factor = choose_detector(window)
    log.info("trying orientations on %d of %d patterns, on %d² pixels (bin %d)", len(window), len(scan), side, factor)
    return resample_detector(window, side, factor)


def choose_patterns(scan: Scan) -> NDArray[np.intp]:
    """Return the ascending indices of neighboring patterns around the place of most contrast."""
    usable = np.flatnonzero(_find_ordinary_totals(scan))
    positions = scan.positions[usable]
    count = min(WINDOW_PATTERNS, len(usable))
    order = np.argsort(np.abs(positions - _find_contrast(scan, usable, count)).max(1), kind="stable")
    spacing = SPACING_FRACTION * scan.size
    while len(kept := _thin(positions[order], spacing, count)) < count:
        spacing *= 0.7
        if spacing < 1e-3:  # positions that coincide
            kept = np.arange(count)
            break
    return np.sort(usable[order[kept]])


def _find_ordinary_totals(scan: Scan) -> NDArray[np.bool_]:
    """Return True (n,) for the patterns with about as many counts as the median."""
    amplitudes = scan.amplitudes if scan.mask is None else np.where(scan.mask, scan.amplitudes, np.float32(0))
    totals = np.einsum("nij,nij->n", amplitudes, amplitudes, dtype=np.float64)
    median = np.median(totals[totals > 0]) if (totals > 0).any() else 0.0
    ordinary = (totals * MAX_TOTAL_RATIO > median) & (totals < median * MAX_TOTAL_RATIO)
    return np.asarray(ordinary | (not ordinary.any()))


def _find_contrast(scan: Scan, usable: NDArray[np.intp], count: int) -> NDArray[np.float64]:
    """Return the position (2,) around which the patterns differ most from the mean pattern."""
    from scipy.spatial import cKDTree

    sample = usable[np.linspace(0, len(usable) - 1, min(len(usable), 4 * CENTERS)).round().astype(np.intp)]
    amplitudes = scan.amplitudes[sample]
    if scan.mask is not None:
        amplitudes = np.where(scan.mask if scan.mask.ndim == 2 else scan.mask[sample], amplitudes, np.float32(0))
    amplitudes = amplitudes / np.sqrt(np.square(amplitudes).sum((1, 2), keepdims=True)).clip(1e-12)
    contrast = np.square(amplitudes - amplitudes.mean(0)).sum((1, 2))
    positions = scan.positions[sample]
    neighbors = max(1, round(count * len(sample) / len(usable)))
    _, nearest = cKDTree(positions).query(positions, k=neighbors)
    around = np.median(contrast[nearest.reshape(len(sample), -1)], axis=1)
    # A window that is cut off by the edge of the scan extends to one side only.
    middle, extent = (positions.min(0) + positions.max(0)) / 2, np.ptp(positions, axis=0).clip(1e-9)
    inside = (np.abs(positions - middle) <= 0.3 * extent + 1e-9).all(1)
    best: NDArray[np.float64] = positions[np.where(inside | (not inside.any()), around, -1.0).argmax()]
    return best


def _thin(positions: NDArray[np.float64], spacing: float, count: int) -> NDArray[np.intp]:
    """Return the first ``count`` indices, in order, of positions that keep ``spacing`` from all chosen before."""
    chosen: list[int] = []
    free = np.ones(len(positions), bool)
    while len(chosen) < count and free.any():
        chosen.append(int(free.argmax()))
        free &= np.square(positions - positions[chosen[-1]]).sum(1) >= spacing**2
        free[chosen[-1]] = False
    return np.array(chosen, np.intp)


def choose_detector(window: Scan) -> tuple[int, int]:
    """Return the side in pixels after binning, and the factor of binning, with which the patterns are kept.

    The side is the smallest that holds :data:`COUNTS_SHARE` of the counts. Patterns that need more pixels than
    :data:`MAX_SIDE_PX` are binned if the exit waves fit into the smaller field.
    """
    power = np.square(window.amplitudes, dtype=np.float64)
    mean = (power if window.mask is None else np.where(window.mask, power, 0)).mean(0)
    distance = np.abs(np.arange(window.size) - window.size // 2)
    by_distance = np.bincount(np.maximum(distance[:, None], distance).ravel(), mean.ravel()).cumsum()
    half = int(np.searchsorted(by_distance, COUNTS_SHARE * by_distance[-1])) + 1
    side = min(window.size, max(MIN_SIDE_PX, 2 * half))
    if side <= MAX_SIDE_PX:
        return side, 1
    if _measure_exit_wave(window) * BIN <= window.size:
        return min(side, window.size - BIN) // BIN, BIN
    return MAX_SIDE_PX, 1


def _measure_exit_wave(window: Scan) -> int:
    """Return the side of the square that holds the autocorrelation of the exit waves."""
    power = np.square(window.amplitudes)
    power = power if window.mask is None else np.where(window.mask, power, np.float32(0))
    autocorrelation = np.square(np.abs(np.fft.fft2(power))).mean(0)
    distance = np.abs(np.fft.fftfreq(window.size, 1 / window.size)).round().astype(np.intp)
    by_distance = np.bincount(np.maximum(distance[:, None], distance).ravel(), autocorrelation.ravel()).cumsum()
    return 2 * int(np.searchsorted(by_distance, EXIT_WAVE_SHARE * by_distance[-1])) + 1


def resample_detector(window: Scan, side: int, factor: int) -> Scan:
    """Return ``window`` on the central ``side`` blocks of ``factor`` × ``factor`` detector pixels; ``factor`` is odd.

    The block of zero frequency is centered on it. Positions and probe are converted to the larger object pixels.
    """
    kept = side * factor
    start = window.size // 2 - factor // 2 - factor * (side // 2)
    middle = slice(start, start + kept)
    blocks = (side, factor, side, factor)
    amplitudes = window.amplitudes[:, middle, middle]
    mask = None if window.mask is None else window.mask[..., middle, middle]
    if factor > 1:
        counts = np.square(amplitudes, dtype=np.float64).reshape(-1, *blocks).sum((-3, -1))
        amplitudes = np.sqrt(counts).astype(np.float32)
        mask = None if mask is None else np.asarray(mask.reshape(*mask.shape[:-2], *blocks).all((-3, -1)))
    return replace(
        window,
        amplitudes=np.ascontiguousarray(amplitudes),
        positions=window.positions * (kept / window.size),
        probe=None if window.probe is None else resample_probe(window.probe, side, factor),
        mask=None if mask is None else np.ascontiguousarray(mask),
    )


def resample_probe(probe: NDArray[np.complex64], side: int, factor: int) -> NDArray[np.complex64]:
    """Return a probe (M, N, N) on the pixels of :func:`resample_detector`, (M, side, side)."""
    size, kept = probe.shape[-1], side * factor
    start = size // 2 - kept // 2
    spectrum = np.fft.fftshift(np.fft.fft2(np.fft.ifftshift(probe, (-2, -1))), (-2, -1))
    band = np.fft.ifftshift(spectrum[:, start : start + kept, start : start + kept], (-2, -1))
    coarse = np.fft.fftshift(np.fft.ifft2(band), (-2, -1))
    first = kept // 2 - side // 2
    return coarse[:, first : first + side, first : first + side].astype(np.complex64)
