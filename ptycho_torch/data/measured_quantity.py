"""Decision whether floating-point patterns are amplitudes or intensities, from their values and the probe."""

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ptycho_torch.config.base import Measurement
from ptycho_torch.data.beam_center import compute_far_field
from ptycho_torch.data.lattice import estimate_lattice_factor
from ptycho_torch.data.layout import (
    REASON_FLOATING_POINT,
    Arrays,
    DiffractionLayout,
    compute_stack_size,
    find_diffraction_key,
    move_pattern_axis_first,
    normalize_probe_shape,
)

MAX_TESTED_FRAMES = 64
"""Largest number of patterns that are tested."""

MIN_CORRELATION, MAX_CORRELATION = 0.2, 0.95
"""Range of the autocorrelation of the probe in which it is compared with that of the exit waves."""

MAX_TYPICAL_RATIO, MAX_HIGH_RATIO = 1.02, 1.05
"""Largest median and 90 % quantile of the ratio of both autocorrelations for amplitudes; at most 1 without errors."""


MAX_LOWEST_COUNT, MAX_LOWEST_STEP = 20.0, 5.0
"""Largest smallest value and largest median step between the smallest distinct values, in multiples of the spacing, of
counts. Amplitudes rounded to a few digits or to float16 are multiples of their last digit, with larger steps."""

N_LOWEST_VALUES = 12
"""Number of the smallest distinct values whose steps are compared."""

REASON_DECIDED = "floating point without metadata; "
"""Start of the reason of a measurement that the values decide, or leave open."""


class MeasuredQuantity(NamedTuple):
    """The quantity of patterns and the evidence; the quantity is None if undecided."""

    measurement: Measurement | None
    evidence: str


def resolve_measurement(arrays: Arrays, layout: DiffractionLayout) -> DiffractionLayout:
    """Return the layout with the measurement of undeclared floating-point patterns decided by their values.

    Values that break other rules, and headers, remain amplitudes.

    Args:
        arrays: arrays or headers by key.
        layout: layout of the patterns.
    """
    key = find_diffraction_key(arrays)
    array = None if key is None else arrays[key]
    if layout.measurement_reason != REASON_FLOATING_POINT or not isinstance(array, np.ndarray) or array.size == 0:
        return layout
    size, count = compute_stack_size(array, layout)
    if size is None or not count or not (array.min() >= 0 and np.isfinite(array.max()) and array.max() > 0):
        return layout
    mask = arrays.get("mask")
    frames = move_pattern_axis_first(array, layout, count)
    counting = None
    if isinstance(mask, np.ndarray) and mask.dtype.kind in "biuf":
        counting = move_pattern_axis_first(mask, layout, count) != 0
        if counting.shape not in (frames.shape, frames.shape[1:]) or not counting.any():
            return layout
    found = decide_measurement(frames, counting, _get_usable_probe(arrays))
    if found.measurement == "amplitude":
        return layout
    return layout._replace(measurement=found.measurement, measurement_reason=REASON_DECIDED + found.evidence)


def _get_usable_probe(arrays: Arrays) -> NDArray[Any] | None:
    probe = arrays.get("probeGuess")
    if not isinstance(probe, np.ndarray) or probe.dtype.kind != "c" or not np.isfinite(probe).all() or not probe.any():
        return None
    return probe.reshape(normalize_probe_shape(probe.shape))


def decide_measurement(
    frames: NDArray[Any], mask: NDArray[np.bool_] | None, probe: NDArray[Any] | None
) -> MeasuredQuantity:
    """Decide whether patterns are amplitudes or intensities.

    Counts, however scaled, are multiples of one number: where the squares of the values are, the values are amplitudes,
    and where the values themselves are, they are intensities. Otherwise the widths decide: the autocorrelation of the
    exit waves is nowhere larger than that of the probe (both are 1 without displacement), because the object
    correlates with itself best without displacement. If the values are intensities, their squares break that limit.

    Args:
        frames: (n, N, N) floating-point values that are not negative, zero frequency at N//2.
        mask: (N, N) or (n, N, N) True where a pixel counts.
        probe: (N, N) or (M, N, N) complex; None: unknown.
    """
    chosen = slice(None, None, max(1, len(frames) // MAX_TESTED_FRAMES))
    counting = mask if mask is None or mask.ndim == 2 else mask[chosen]
    values = frames[chosen].astype(np.float64)
    flat = values.reshape(-1) if counting is None else values[np.broadcast_to(counting, values.shape)]
    if estimate_lattice_factor(np.square(flat)) is not None:
        return MeasuredQuantity("amplitude", "the squares of the values are multiples of one number, as counts are")
    factor = estimate_lattice_factor(flat)
    if factor is not None and _has_small_multiples(flat * factor):
        return MeasuredQuantity("counts", "the values are multiples of one number, as counts are")
    if probe is None or probe.shape[-1] != values.shape[-1]:
        return MeasuredQuantity(
            None, "the values are no multiples of one number, and there is no probe to compare with"
        )
    if counting is not None:
        values = np.where(counting, values, 0)
    ratios = _compare_autocorrelations(np.square(values).mean(0), probe)
    if not ratios.size:
        return MeasuredQuantity("amplitude", "assumed: the probe is too narrow for a test")
    typical, high = float(np.median(ratios)), float(np.quantile(ratios, 0.9))
    if typical > MAX_TYPICAL_RATIO and high > MAX_HIGH_RATIO:
        return MeasuredQuantity(
            None,
            f"the squares of the values are too concentrated for the far field of the probe (by {high:.2f} in their "
            "autocorrelation), as squares of intensities are",
        )
    return MeasuredQuantity("amplitude", "the squares of the values are as wide as the far field of the probe permits")


def _has_small_multiples(multiples: NDArray[np.float64]) -> bool:
    """Return True if the smallest values above zero are small or adjacent multiples, as those of counts are."""
    lowest = np.unique(np.rint(multiples[multiples > 0.5]))[:N_LOWEST_VALUES]
    steps = np.diff(lowest)
    return bool(lowest[0] <= MAX_LOWEST_COUNT or (steps.size > 0 and np.median(steps) <= MAX_LOWEST_STEP))


def _compare_autocorrelations(mean_pattern: NDArray[np.float64], probe: NDArray[Any]) -> NDArray[np.float64]:
    """Return the ratios of the autocorrelation of the exit waves to that of the probe, both 1 without displacement."""
    measured = np.abs(np.fft.fft2(mean_pattern))
    expected = np.abs(np.fft.fft2(compute_far_field(probe)))
    if not measured[0, 0] > 0:
        return np.zeros(0)
    measured, expected = measured / measured[0, 0], expected / expected[0, 0]
    compared = (expected > MIN_CORRELATION) & (expected < MAX_CORRELATION)
    ratios: NDArray[np.float64] = measured[compared] / expected[compared]
    return ratios
