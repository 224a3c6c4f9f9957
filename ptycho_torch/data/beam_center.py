"""Position of zero frequency on the detector, from the mean pattern and, if known, the probe."""

from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

MIN_OVERLAP = 0.7
"""Smallest share of the mean pattern's power in the comparison of the pattern with its rotation."""

MIN_PROBE_CORRELATION = 0.96
"""Smallest correlation with the far field of the probe at which the probe determines the center to 0.1 pixel."""

MIN_SYMMETRY_CORRELATION = 0.7
"""Smallest correlation of the pattern with its rotation by 180° at which the pattern has a center of symmetry."""

MIN_VISIBLE_SHARE, HIDDEN_UNCERTAINTY_PX = 0.6, 1.0
"""Share of the far field on pixels that count below which the center is uncertain by the given number of pixels."""

MIN_VISIBLE_PIXELS = 0.75
"""Smallest fraction of the pixels around a center of symmetry, within twice the width of the pattern, that count."""

PROBE_UNCERTAINTY_PX = 0.1
"""Uncertainty where the mask excludes little of the far field of the probe."""

MASK_TEST_BLUR_PX, MASK_ERROR_FACTOR = 2.0, 1.5
"""Blur of the far field by which the effect of the mask on the center is measured, and the factor on that effect. An
object blurs the mean pattern, and beside a one-sided mask the blur resembles a displacement."""

SYMMETRY_UNCERTAINTY_PX = 0.5

MAX_UNCERTAINTY_PX = 3.0
"""Largest uncertainty of a center that counts as determined."""


class CenterEstimate(NamedTuple):
    """Zero frequency of the patterns in pixels; ``estimate[:2]`` is (row, column)."""

    row: float
    column: float

    uncertainty: float
    """Approximate uncertainty of either coordinate in pixels; infinite if the pattern has no center."""

    method: Literal["probe", "symmetry", "none"]
    """``probe``: compared with the far field of the probe. ``symmetry``: compared with the rotation of the pattern by
    180°, and with the center of mass. ``none``: the pattern does not determine a center; the estimate is the middle."""

    correlation: float
    """Correlation at the estimate, from 0 to 1."""

    @property
    def decided(self) -> bool:
        """True if the pattern determines a center."""
        return self.uncertainty <= MAX_UNCERTAINTY_PX


def estimate_center(
    mean_pattern: NDArray[Any], mask: NDArray[np.bool_] | None = None, probe: NDArray[Any] | None = None
) -> CenterEstimate:
    """Estimate zero frequency of far-field patterns.

    With a probe, the center is the shift at which the far field of the probe fits the mean pattern best: the mean over
    many positions is that far field, blurred by the object. Without a probe (or if its far field does not fit) the
    center is the point about which the mean pattern is symmetric; the center of mass serves as a check. A far field
    without that symmetry moves the estimate by about a pixel, which a phase ramp of the probe compensates.

    Args:
        mean_pattern: (rows, columns) mean counts, not square roots.
        mask: (rows, columns) True where a pixel counts; masked pixels may hold any value.
        probe: (N, N) or (M, N, N) complex, of any power, in real space.
    """
    counts = np.maximum(np.asarray(mean_pattern, np.float64), 0)
    counting = np.isfinite(counts) if mask is None else mask & np.isfinite(counts)
    amplitude = np.sqrt(np.where(counting, counts, 0))
    middle = (mean_pattern.shape[0] // 2, mean_pattern.shape[1] // 2)
    undecided = CenterEstimate(float(middle[0]), float(middle[1]), float("inf"), "none", 0.0)
    if not amplitude.any() or min(amplitude.shape) < 4:
        return undecided
    symmetry = _estimate_by_symmetry(amplitude, counting) or undecided
    if probe is None:
        return symmetry
    matched = _estimate_by_probe(amplitude, counting, probe)
    if matched is None:
        return symmetry
    if matched.correlation >= MIN_PROBE_CORRELATION:
        return matched
    distance = float(np.hypot(matched.row - symmetry.row, matched.column - symmetry.column))
    return symmetry._replace(uncertainty=max(symmetry.uncertainty, distance))


def compute_far_field(probe: NDArray[Any]) -> NDArray[np.float64]:
    """Return the far-field intensity (N, N) of a probe, summed over modes, zero frequency at N//2."""
    modes = probe.reshape(-1, *probe.shape[-2:]).astype(np.complex128)
    power = np.square(np.abs(np.fft.fft2(modes))).sum(0)
    shifted: NDArray[np.float64] = np.fft.fftshift(power)
    return shifted


def move_far_field(probe: NDArray[Any], offset: tuple[float, float]) -> NDArray[Any]:
    """Return the probe (M, N, N) with a phase ramp that moves its far field by ``offset`` (rows, columns) in pixels."""
    size = probe.shape[-1]
    axis = np.arange(size) - size // 2
    ramp = np.exp(2j * np.pi * (offset[0] * axis[:, None] + offset[1] * axis) / size)
    moved: NDArray[Any] = (probe * ramp).astype(probe.dtype)
    return moved


def _estimate_by_probe(
    amplitude: NDArray[np.float64], counting: NDArray[np.bool_], probe: NDArray[Any]
) -> CenterEstimate | None:
    """Return the center at which the far field of the probe fits the pattern, with the effect of the mask."""
    from scipy.ndimage import gaussian_filter

    model = np.sqrt(compute_far_field(probe))
    estimate = _match_far_field(amplitude, counting, model)
    if estimate is None or counting.all():
        return estimate
    center = np.array(estimate[:2])
    whole = np.rint(center).astype(int)
    middle = np.array(model.shape) // 2
    blurred = np.zeros_like(amplitude)
    spread = np.sqrt(gaussian_filter(np.square(model), MASK_TEST_BLUR_PX))
    first = whole - middle
    here = tuple(slice(max(0, low), max(0, low + side)) for low, side in zip(first, model.shape, strict=True))
    there = tuple(
        slice(max(0, -low), max(0, -low) + min(amplitude.shape[axis], low + side) - max(0, low))
        for axis, (low, side) in enumerate(zip(first, model.shape, strict=True))
    )
    blurred[here] = spread[there]
    test = _match_far_field(np.where(counting, blurred, 0), counting, model)
    if test is None:
        return estimate
    error = MASK_ERROR_FACTOR * float(np.abs(np.array(test[:2]) - whole).max())
    visible = float(np.square(blurred[counting]).sum() / max(np.square(blurred).sum(), 1e-300))
    if visible < MIN_VISIBLE_SHARE:
        error = max(error, HIDDEN_UNCERTAINTY_PX)
    return estimate._replace(uncertainty=max(PROBE_UNCERTAINTY_PX, error))


def _match_far_field(
    amplitude: NDArray[np.float64], counting: NDArray[np.bool_], model: NDArray[np.float64]
) -> CenterEstimate | None:
    """Return the center at which the far-field amplitude ``model`` has the highest correlation with the pattern."""
    from scipy import fft

    shape = [fft.next_fast_len(a + b, real=True) for a, b in zip(amplitude.shape, model.shape, strict=True)]

    def correlate(left: NDArray[np.float64], right: NDArray[np.float64]) -> NDArray[np.float64]:
        product = fft.rfft2(left, shape) * np.conj(fft.rfft2(right, shape))
        result: NDArray[np.float64] = fft.irfft2(product, shape)
        return result

    energy = np.maximum(correlate(counting.astype(np.float64), np.square(model)), 0)
    usable = energy > MIN_OVERLAP / 2 * np.square(model).sum()
    if not usable.any():
        return None
    overlap = correlate(amplitude, model)
    # Only the share of the pattern that the window of the model covers belongs to the comparison.
    covered = np.maximum(correlate(np.square(amplitude), np.ones_like(model)), 0)
    total = np.maximum(covered, MIN_OVERLAP * np.square(amplitude).sum())
    score = np.where(usable, overlap / np.sqrt(np.where(usable, energy, 1) * total), 0)
    peak, value = _find_peak(score)
    lag = [
        position - length if position > length / 2 else position for position, length in zip(peak, shape, strict=True)
    ]
    row, column = (shift + side // 2 for shift, side in zip(lag, model.shape, strict=True))
    return CenterEstimate(row, column, PROBE_UNCERTAINTY_PX, "probe", value)


def _estimate_by_symmetry(amplitude: NDArray[np.float64], counting: NDArray[np.bool_]) -> CenterEstimate | None:
    """Return the point about which the pattern is symmetric, and its distance to the center of mass as uncertainty."""
    from scipy import fft

    shape = [fft.next_fast_len(2 * side, real=True) for side in amplitude.shape]
    pattern, energy, window = (
        fft.rfft2(array, shape) for array in (amplitude, np.square(amplitude), counting.astype(np.float64))
    )
    overlap = fft.irfft2(pattern * pattern, shape)
    compared = np.maximum(fft.irfft2(energy * window, shape), 0)
    usable = compared > MIN_OVERLAP * np.square(amplitude).sum()
    if not usable.any():
        return None
    peak, value = _find_peak(np.where(usable, overlap / np.where(usable, compared, 1), 0))
    if value < MIN_SYMMETRY_CORRELATION:
        return None
    center = np.array(peak) / 2
    mass = compute_center_of_mass(np.square(amplitude))
    # A pattern far from the center of mass of its power is cut off, or has a second beam.
    distance = float(np.hypot(*(center - mass)))
    width = _compute_width(np.square(amplitude), mass)
    if width > 0.25 * min(amplitude.shape) and value > 0.999:
        return None  # uniform: symmetric about every point
    rows, columns = np.indices(amplitude.shape)
    around = np.hypot(rows - center[0], columns - center[1]) <= max(2 * width, 2.0)
    if counting[around].mean() < MIN_VISIBLE_PIXELS:
        return None  # the pattern appears symmetric about the middle of the pixels that count
    uncertainty = max(SYMMETRY_UNCERTAINTY_PX, distance)
    return CenterEstimate(float(center[0]), float(center[1]), uncertainty, "symmetry", min(value, 1.0))


def _find_peak(score: NDArray[np.float64]) -> tuple[tuple[float, float], float]:
    """Return the place of the maximum on a periodic grid, refined by a parabola along each axis, and its value."""
    index = np.unravel_index(int(score.argmax()), score.shape)
    place = []
    for axis in (0, 1):
        line = score[:, index[1]] if axis == 0 else score[index[0]]
        before, peak, after = (line[(index[axis] + step) % len(line)] for step in (-1, 0, 1))
        curvature = before + after - 2 * peak
        place.append(
            float(index[axis] + (0.5 * (before - after) / curvature if curvature < 0 and before > 0 < after else 0))
        )
    return (place[0], place[1]), float(score[index])


def compute_center_of_mass(pattern: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the center of mass (row, column) of a pattern that is not negative, in pixels."""
    total = pattern.sum()
    rows, columns = np.arange(pattern.shape[0]), np.arange(pattern.shape[1])
    return np.array([pattern.sum(1) @ rows, pattern.sum(0) @ columns]) / total


def _compute_width(pattern: NDArray[np.float64], center: NDArray[np.float64]) -> float:
    """Return the rms distance per axis of the power from ``center`` in pixels."""
    rows = np.arange(pattern.shape[0])[:, None] - center[0]
    columns = np.arange(pattern.shape[1])[None, :] - center[1]
    return float(np.sqrt((pattern * (rows**2 + columns**2)).sum() / pattern.sum() / 2))
