"""Photon scale: one positive factor from amplitude² to photons, and its origin.

Counts are whole numbers, so amplitude² of a counting detector lies on a lattice: whole multiples of 1 / factor, see
:mod:`~ptycho_torch.data.lattice`.
"""

import logging
import math
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ptycho_torch.core.errors import DataError
from ptycho_torch.data.lattice import estimate_lattice_factor
from ptycho_torch.data.scan import Scan

ASSUMED_PHOTONS_PER_PATTERN = 1e6

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
