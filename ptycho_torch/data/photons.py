"""Photon scale: one positive factor from amplitude² to photons, and its origin.

Counts are whole numbers, so amplitude² of a counting detector lies on a lattice: whole multiples of 1 / factor. The
lattice survives any scaling of the amplitudes and their rounding to float32, and determines the factor exactly.
"""

import logging
import math
from collections.abc import Iterator
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ptycho_torch.core.errors import DataError
from ptycho_torch.data.scan import Scan

ASSUMED_PHOTONS_PER_PATTERN = 1e6

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

logger = logging.getLogger(__name__)


class PhotonScale(NamedTuple):
    """Photons per squared unit of amplitude, and the origin of the number."""

    photons_per_unit: float
    origin: Literal["given", "metadata", "lattice", "assumed"]
    photons_per_pattern: float
    """Mean over the patterns of the sum over the pixels that count."""


def photon_scale(
    scan: Scan,
    photons_per_unit: float | None = None,
    assumed_photons_per_pattern: float = ASSUMED_PHOTONS_PER_PATTERN,
) -> PhotonScale:
    """Return the factor from amplitude² to photons.

    The factor is, in this order: the argument, the metadata of the file, the lattice of whole counts, or an assumed
    number of photons per pattern with a warning.

    Args:
        scan: the scan.
        photons_per_unit: photons per squared unit of amplitude; None to find the factor.
        assumed_photons_per_pattern: mean photons per pattern where nothing states the scale.

    Raises:
        DataError: ``photons_per_unit`` is not positive, or every pixel that counts is zero.
    """
    intensities = _select_unmasked_intensities(scan)
    per_pattern = float(intensities.sum(dtype=np.float64)) / len(scan)
    if not per_pattern > 0:
        raise DataError(f"{scan.source or 'scan'}: every pixel that counts is zero; expected at least one photon")
    if photons_per_unit is not None:
        if not 0 < photons_per_unit < math.inf:
            raise DataError(f"`photons_per_unit` is {photons_per_unit}; expected a positive finite number")
        return PhotonScale(photons_per_unit, "given", per_pattern * photons_per_unit)
    if scan.photons_per_unit is not None:
        return PhotonScale(scan.photons_per_unit, "metadata", per_pattern * scan.photons_per_unit)
    factor = estimate_lattice_factor(intensities)
    if factor is not None:
        return PhotonScale(factor, "lattice", per_pattern * factor)
    logger.warning(
        "%s: the metadata give no photon scale and the data lie on no lattice of whole counts; assuming %.4g photons "
        "per pattern; set `photons_per_unit` to change it",
        scan.source or "scan",
        assumed_photons_per_pattern,
    )
    return PhotonScale(assumed_photons_per_pattern / per_pattern, "assumed", assumed_photons_per_pattern)


def _select_unmasked_intensities(scan: Scan) -> NDArray[np.float64]:
    """Return amplitude² of every pixel that counts, flat, in float64 to avoid rounding by the square."""
    amplitudes = scan.amplitudes
    if scan.mask is not None:
        amplitudes = amplitudes[np.broadcast_to(scan.mask, amplitudes.shape)]
    intensities: NDArray[np.float64] = np.square(amplitudes, dtype=np.float64)
    return intensities.reshape(-1)


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
