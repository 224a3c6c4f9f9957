"""The lattice of counts: whole numbers, however scaled, are multiples of one number.

The lattice survives any scaling of the values and their rounding to float32, and determines the factor exactly.
"""

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

RELATIVE_ROUNDING_ERROR = 5e-7
"""Relative error of amplitude² after a few float32 operations on the amplitude."""

MAX_LATTICE_COUNT = 100_000
"""Rounding to float32 moves larger counts by up to a twentieth, too much to recognize whole numbers."""

MAX_SAMPLED_PIXELS = 500_000
"""Approximate number of pixels, spread over the scan, on which the lattice is searched and verified."""

N_SMALLEST_VALUES = 500
MAX_GAP_DIVISOR = 12
MIN_EVIDENCE_DIGITS = 5.0
"""Smallest −log10 of the probability that values off any lattice agree equally well by chance."""


def estimate_lattice_factor(intensities: NDArray[np.float64]) -> float | None:
    """Estimate the smallest factor that makes every intensity a whole number.

    The spacing of the lattice divides the smallest gap between the values. Each small divisor of that gap is refined
    by least squares over increasing counts, and must then fit every value within its rounding error. Values above
    :data:`MAX_LATTICE_COUNT` spacings are left out, because their rounding error hides fractions.

    Args:
        intensities: flat, not negative.

    Returns:
        The factor; None if the intensities lie on no lattice.
    """
    values = _select_distinct(intensities[:: max(1, len(intensities) // MAX_SAMPLED_PIXELS)])
    smallest = values[:N_SMALLEST_VALUES]
    for spacing in _generate_spacings(smallest):
        if _compute_evidence(smallest, spacing) >= MIN_EVIDENCE_DIGITS and _compute_evidence(values, spacing):
            return None if _has_only_squares(values, spacing) else _round_near_integer(1 / spacing)
    return None


def _round_near_integer(factor: float) -> float:
    """Return the nearest whole number if ``factor`` equals it within rounding error, otherwise ``factor``."""
    whole = round(factor)
    return float(whole) if whole and abs(factor / whole - 1) < 1e-7 else factor


def _select_distinct(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return sorted positive values; values closer than the rounding error are merged.

    Subnormal amplitudes are left out, because float32 itself puts them on a lattice.
    """
    values = np.unique(values[values > float(np.finfo(np.float32).tiny) ** 2])
    apart: NDArray[np.bool_] = np.diff(values, prepend=-np.inf) > 2 * RELATIVE_ROUNDING_ERROR * values
    distinct: NDArray[np.float64] = values[apart]
    return distinct


def _generate_spacings(values: NDArray[np.float64]) -> Iterator[float]:
    """Yield candidate spacings, coarsest first: the smallest gap (or value) divided by 1, 2, 3, …, each refined."""
    if len(values) < 2:
        return
    smallest = min(values[0], np.diff(values).min())
    for divisor in range(1, MAX_GAP_DIVISOR + 1):
        # Gaps first: they are small multiples of the spacing even if the values are large multiples.
        spacing = _refine_spacing(smallest / divisor, values - values[0])
        yield _refine_spacing(spacing, values)


def _refine_spacing(spacing: float, values: NDArray[np.float64]) -> float:
    """Return the least-squares spacing of ``values``, from small, certain multiples first, then from larger ones."""
    limit = 4.0
    while limit <= MAX_LATTICE_COUNT:
        near = values[values <= limit * spacing]
        multiples = np.rint(near / spacing)
        if multiples.any():
            spacing = float(near @ multiples / (multiples @ multiples))
        limit *= 2
    return spacing


def _compute_lattice_multiples(values: NDArray[np.float64], spacing: float) -> NDArray[np.float64]:
    """Return, in spacings, the values small enough for their rounding error not to hide fractions."""
    return values[: int(np.searchsorted(values, MAX_LATTICE_COUNT * spacing, "right"))] / spacing


def _compute_evidence(values: NDArray[np.float64], spacing: float) -> float:
    """Return −log10 of the probability that unrelated (sorted) values fit equally well; zero if any value does not fit.

    The smallest value is not counted, because it may have determined the spacing.
    """
    multiples = _compute_lattice_multiples(values, spacing)
    tolerance = RELATIVE_ROUNDING_ERROR * (multiples + 1)
    if len(multiples) < 2 or (np.abs(multiples - np.rint(multiples)) > tolerance).any():
        return 0.0
    return float(-np.log10(2 * tolerance[1:]).sum())


def _has_only_squares(values: NDArray[np.float64], spacing: float) -> bool:
    """Return True if only perfect squares occur: then the amplitudes are whole numbers, and counts are unknown."""
    roots = np.sqrt(np.rint(_compute_lattice_multiples(values, spacing)))
    return bool((roots == np.rint(roots)).all())
