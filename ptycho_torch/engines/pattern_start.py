"""Starting values from the patterns alone: a strong background, jumps of the source, and frames to leave out."""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ptycho_torch.engines.state import Measurement

MIN_BACKGROUND_SHARE = 0.1
"""Share of the photons above which the background starts from the data; a weaker one is found by the fit alone."""

MIN_TOTAL_FRACTION = 0.2
"""Total of a frame, relative to the median, below which the frame is no evidence for the background."""

OPENING_FRACTION = 0.25
"""Side of the window of the morphological opening that removes the signal, as a fraction of N."""

SMOOTH_FRACTION = 1 / 16
"""Standard deviation of the Gaussian that smooths a fitted background, as a fraction of N."""

SIGNAL_UNCERTAINTY = 0.05
"""Error of a fitted background as a fraction of the mean signal of a pixel, which barely differs from a background."""

MIN_SIGNIFICANCE = 4.0
"""Deviation from the smooth background, in standard deviations, above which a pixel keeps part of it."""

JUMP_WINDOW_FRAMES = 8
"""Frames before and after a jump of the source whose medians are compared."""

MIN_JUMP_RATIO = 1.25
"""Smallest ratio of the levels before and after a jump, up or down."""

NEIGHBORS = 8
"""Number of neighboring positions with which the total of a frame is compared."""

MAX_BRIGHT_RATIO, MAX_DARK_RATIO = 3.0, 4.0
"""Ratios of the total of a frame to that of its neighbors, up and down, beyond which the frame is left out."""

MIN_COMPARED_FRAMES = 16
"""Smallest number of frames that are compared with one another."""


def estimate_background(measurement: Measurement) -> Tensor:
    """Estimate the background, (N, N) photons with zero frequency at [0, 0], as the smooth part of the darkest counts.

    The smallest count of a pixel over the frames is corrected for its counting noise; a morphological opening and a
    Gaussian then remove the signal, which is narrower than a background. The estimate is accurate to a few percent of
    the signal. A background of less than :data:`MIN_BACKGROUND_SHARE` of the photons is returned as 0.
    """
    from scipy.ndimage import gaussian_filter, grey_opening

    counts, size = measurement.counts, measurement.size
    totals = counts.sum((1, 2))
    kept = totals > MIN_TOTAL_FRACTION * totals.median()
    darkest = torch.full((size, size), torch.inf, device=counts.device)
    for index in torch.arange(len(counts))[kept.cpu()].split(64):
        mask = measurement.select_mask(index)
        part = counts[index] if mask is None else torch.where(mask, counts[index], torch.inf)
        darkest = torch.minimum(darkest, part.amin(0))
    values = np.fft.fftshift(darkest.cpu().double().numpy())
    counted = np.isfinite(values)
    if int(kept.sum()) < MIN_COMPARED_FRAMES or not counted.any():
        return torch.zeros_like(darkest)
    # The smallest of n normal variables is z standard deviations below the mean.
    log_n = np.log(float(kept.sum()))
    z = np.sqrt(2 * log_n) - (np.log(log_n) + np.log(4 * np.pi)) / (2 * np.sqrt(2 * log_n))
    rates = np.where(counted, values, 0)
    rates = rates + z**2 / 2 + z * np.sqrt(rates + z**2 / 4)
    weights = gaussian_filter(counted.astype(float), 1.0)
    smooth = gaussian_filter(np.where(counted, rates, 0), 1.0) / np.maximum(weights, 1e-3)
    opened = grey_opening(smooth, size=int(OPENING_FRACTION * size) + 1, mode="nearest")
    background = gaussian_filter(opened, size / 16, mode="nearest")
    if background.sum() < MIN_BACKGROUND_SHARE * float(totals[kept].median()):
        return torch.zeros_like(darkest)
    return torch.from_numpy(np.fft.ifftshift(background)).to(darkest)


def regularize_background(background: Tensor, measurement: Measurement) -> Tensor:
    """Return a fitted background (N, N), zero frequency at [0, 0], without its insignificant deviations.

    The smooth part is that of :func:`smooth_by_local_parabola`, weighted by the inverse variance of each pixel. The
    variance has two parts: the counting noise of the mean pattern, and the square of a fraction of the mean signal,
    which an object that has not converged exchanges for background. Of a deviation d from the smooth part a pixel
    keeps ``d (1 − z²σ² / d²)``, so that hot pixels, edges and rings remain.
    """
    n, mask = len(measurement), measurement.mask
    counted = torch.full_like(background, n) if mask is None else mask.sum(0).to(background) * (n / len(mask))
    sums = torch.stack([measurement.counts.sum(0), counted, background]).cpu().double().numpy()
    total, number, values = np.fft.fftshift(sums, (-2, -1))
    mean = total / np.maximum(number, 1)
    signal = np.maximum(mean - values, 0)
    variance = (mean + 1 / n) / np.maximum(number, 1) + np.square(SIGNAL_UNCERTAINTY * signal)
    weights, width = np.where(number > 0, 1 / variance, 0), SMOOTH_FRACTION * measurement.size
    smooth = smooth_by_local_parabola(values, weights, width)
    deviation = values - smooth
    kept = 1 - MIN_SIGNIFICANCE**2 * variance / np.maximum(np.square(deviation), 1e-30)
    regular = smooth + deviation * np.clip(kept, 0, 1)
    return torch.from_numpy(np.fft.ifftshift(np.maximum(regular, 0))).to(background)


def smooth_by_local_parabola(
    values: NDArray[np.float64], weights: NDArray[np.float64], width_px: float
) -> NDArray[np.float64]:
    """Return a weighted fit of a parabola about each pixel, which continues the curvature into pixels of low weight.

    Args:
        values: (rows, columns).
        weights: (rows, columns) inverse variances.
        width_px: standard deviation of the Gaussian window.
    """
    from scipy.ndimage import gaussian_filter

    y, x = np.meshgrid(*(np.arange(side) / width_px for side in values.shape), indexing="ij")
    y, x = y - y.mean(), x - x.mean()

    def sum_locally(image: NDArray[np.float64]) -> NDArray[np.float64]:
        return np.asarray(gaussian_filter(image, width_px, mode="constant", truncate=6))

    scaled = weights / max(float(weights.max()), 1e-300)
    powers = [(0, 0), (1, 0), (0, 1), (2, 0), (1, 1), (0, 2)]
    sums = {(a, b): sum_locally(scaled * y**a * x**b) for a in range(5) for b in range(5 - a)}
    matrix = np.stack([np.stack([sums[a + c, b + d] for c, d in powers], -1) for a, b in powers], -2)
    right = np.stack([sum_locally(scaled * values * y**a * x**b) for a, b in powers], -1)
    terms = np.stack([y**a * x**b for a, b in powers], -1)
    diagonal = np.einsum("...ii->...i", matrix)
    unit = 1 / np.sqrt(np.maximum(diagonal, 1e-300))  # a diagonal of ones
    matrix = matrix * unit[..., None] * unit[..., None, :] + 1e-11 * np.eye(len(powers))
    solution = np.linalg.solve(matrix, (right * unit)[..., None])[..., 0]
    return np.asarray((terms * unit * solution).sum(-1), np.float64)


def compute_totals(measurement: Measurement, background: Tensor) -> NDArray[np.float64]:
    """Return the photons of each pattern on the pixels that count, without the background, (n,)."""
    totals = measurement.counts.sum((1, 2), dtype=torch.float64)
    if bool(background.any()):
        parts = []
        for index in torch.arange(len(measurement)).split(64):
            mask = measurement.select_mask(index)
            part = background.expand(len(index), -1, -1)
            part = part if mask is None else torch.where(mask, part, torch.zeros_like(part))
            parts.append(part.sum((1, 2), dtype=torch.float64))
        totals = (totals - torch.cat(parts)).clamp_min(0)
    return np.asarray(totals.cpu().numpy(), np.float64)


def estimate_intensity_levels(totals: NDArray[np.float64], positions: NDArray[np.float64]) -> NDArray[np.float64]:
    """Estimate the level of the source in each pattern, (n,) with a mean of 1, constant between jumps.

    At a jump the totals change from one frame to the next, and against the neighboring positions that were measured
    before: an edge of the object does the first only.

    Args:
        totals: (n,) photons per pattern, in the order of the measurement.
        positions: (n, 2) (y, x) in pixels.
    """
    levels, width = np.ones(len(totals)), JUMP_WINDOW_FRAMES
    if len(totals) < 2 * width or not (totals > 0).all():
        return levels
    logs = np.log(totals)
    windows = np.lib.stride_tricks.sliding_window_view(logs, width)
    medians = np.median(windows, axis=1)
    steps = np.abs(medians[width:] - medians[:-width])  # of the jump before frame j + width
    for start in range(len(steps)):
        near = steps[max(0, start - width) : start + width + 1]
        if steps[start] < np.log(MIN_JUMP_RATIO) or steps[start] < near.max():
            continue
        first = _find_jump(logs, start + width)
        level = _compare_with_earlier(logs - np.log(levels), positions, first)
        if abs(level) > np.log(MIN_JUMP_RATIO):
            levels[first:] *= np.exp(level)
    return np.asarray(levels / levels.mean(), np.float64)


def _find_jump(logs: NDArray[np.float64], around: int) -> int:
    """Return the frame within a window around ``around`` that best separates two constant levels of ``logs`` (n,)."""
    low, high = max(0, around - JUMP_WINDOW_FRAMES), min(len(logs), around + JUMP_WINDOW_FRAMES)
    candidates = range(low + 2, high - 1)
    errors = [np.var(logs[low:j]) * (j - low) + np.var(logs[j:high]) * (high - j) for j in candidates]
    return candidates[int(np.argmin(errors))]


def _compare_with_earlier(logs: NDArray[np.float64], positions: NDArray[np.float64], first: int) -> float:
    """Return the median difference of ``logs`` from frame ``first`` on to the nearest earlier positions."""
    from scipy.spatial import cKDTree

    distances, nearest = cKDTree(positions[:first]).query(positions[first:])
    close = distances <= np.sort(distances)[: max(JUMP_WINDOW_FRAMES, len(distances) // 4)][-1]
    return float(np.median(logs[first:][close] - logs[nearest[close]]))


def find_outlier_totals(totals: NDArray[np.float64], positions: NDArray[np.float64]) -> NDArray[np.bool_]:
    """Return True for frames that are far brighter or darker than the frames at the neighboring positions, (n,).

    Args:
        totals: (n,) photons per pattern, divided by the level of the source.
        positions: (n, 2) (y, x) in pixels.
    """
    from scipy.spatial import cKDTree

    if len(totals) < MIN_COMPARED_FRAMES:
        return np.zeros(len(totals), np.bool_)
    _, neighbors = cKDTree(positions).query(positions, NEIGHBORS + 1)
    expected = np.median(totals[neighbors[:, 1:]], axis=1)
    far = (totals > MAX_BRIGHT_RATIO * expected) | (totals < expected / MAX_DARK_RATIO)
    return np.asarray(far & (np.abs(totals - expected) > 8 * np.sqrt(expected + 1)), np.bool_)
