"""Fourier ring correlation of complex images, with the ½-bit threshold.

M. van Heel and M. Schatz, "Fourier shell correlation threshold criteria", J. Struct. Biol. 151, 250 (2005).
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from ptycho_torch.core.errors import DataError

MIN_SQUARE_SIDE_PX = 8
"""Smallest side of a square, in pixels; a smaller one has too few rings."""

_MIN_RING_ENERGY = 1e-20  # share of an image's energy below which a ring holds rounding errors only


class RingCorrelation(NamedTuple):
    """The correlation of two images, ring by ring in Fourier space, from ring 1 to the Nyquist frequency."""

    frequency: NDArray[np.float64]
    """(rings,), cycles per pixel."""

    correlation: NDArray[np.float64]
    """(rings,), −1 to 1."""

    threshold: NDArray[np.float64]
    """(rings,), the ½-bit criterion."""

    crossing: float | None
    """Cycles per pixel where the correlation first falls from above the threshold to below; 0 where it is never above;
    None where it never falls below."""

    @property
    def resolution(self) -> float | None:
        """Half a period at the crossing, in pixels, at best 1; None without a crossing."""
        return 0.5 / self.crossing if self.crossing else None

    def find_crossing(self, level: float) -> float | None:
        """Return the crossing with a fixed ``level`` in place of the threshold."""
        return _find_crossing(self.frequency, self.correlation - level)


def compute_ring_correlation(
    first: NDArray[np.complexfloating], second: NDArray[np.complexfloating]
) -> RingCorrelation:
    """Correlate two complex images of one square.

    FRC(ring) = Re Σ F₁·F₂* / √(Σ|F₁|² Σ|F₂|²), on the complex fields: where a phase is missing the fields differ, so an
    image with a flat phase cannot score by its amplitude alone. Both images lose their mean and are tapered by a Hann
    window before the transform, hence a constant image has no Fourier content and correlates with nothing (0).
    The images must be aligned: a global phase between them counts as a difference.

    Args:
        first: (n, n) complex.
        second: (n, n) complex.

    Raises:
        DataError: the images are not equal squares of at least :data:`MIN_SQUARE_SIDE_PX` pixels.
    """
    side = first.shape[-1]
    if first.shape != second.shape or first.shape != (side, side) or side < MIN_SQUARE_SIDE_PX:
        raise DataError(
            f"ring correlation of images of {first.shape} and {second.shape} pixels, "
            f"expected equal squares of at least {MIN_SQUARE_SIDE_PX}"
        )
    taper = np.outer(*2 * [np.hanning(side + 2)[1:-1]])
    f1, f2 = _compute_spectrum(first, taper), _compute_spectrum(second, taper)
    axis = np.fft.fftfreq(side, 1 / side)
    rings = np.rint(np.hypot(axis[:, None], axis[None, :])).astype(np.int64).ravel()
    last = side // 2

    def over_rings(values: NDArray[np.float64]) -> NDArray[np.float64]:
        return np.asarray(np.bincount(rings, values.ravel())[1 : last + 1], np.float64)

    power = over_rings(np.abs(f1) ** 2) * over_rings(np.abs(f2) ** 2)
    full = power > _MIN_RING_ENERGY
    cross = over_rings((f1 * f2.conj()).real)
    correlation = np.where(full, cross / np.sqrt(np.where(full, power, 1)), 0.0)
    # Tapering correlates neighboring Fourier pixels together: this share of them is independent.
    independent = np.sum(taper**2) ** 2 / np.sum(taper**4) / side**2
    threshold = compute_half_bit_threshold(np.maximum(over_rings(np.ones(rings.shape)) * independent, 1.0))
    frequency = np.arange(1, last + 1) / side
    return RingCorrelation(frequency, correlation, threshold, _find_crossing(frequency, correlation - threshold))


def compute_half_bit_threshold(pixels: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the ½-bit threshold of rings of ``pixels`` independent Fourier pixels (van Heel and Schatz, eq. 17)."""
    root = np.sqrt(pixels)
    return (0.2071 + 1.9102 / root) / (1.2071 + 0.9102 / root)


def find_largest_square(region: NDArray[np.bool_]) -> tuple[slice, slice]:
    """Return the largest square of odd side within ``region`` (rows, columns); empty if there is none."""
    from scipy.ndimage import distance_transform_cdt

    # The chessboard distance to the nearest pixel outside is half the side of the largest square around a pixel.
    reach = distance_transform_cdt(np.pad(region, 1), metric="chessboard")[1:-1, 1:-1]
    row, column = np.unravel_index(int(reach.argmax()), reach.shape)
    half = int(reach[row, column])
    return slice(int(row) - half + 1, int(row) + half), slice(int(column) - half + 1, int(column) + half)


def _compute_spectrum(image: NDArray[np.complexfloating], taper: NDArray[np.float64]) -> NDArray[np.complex128]:
    """Return the Fourier transform of the tapered image without its weighted mean, divided by its norm."""
    image = np.asarray(image, np.complex128)
    energy = np.sqrt(np.sum(np.abs(taper * image) ** 2))
    mean = np.sum(taper * image) / np.sum(taper)
    tapered = taper * (image - mean) / (energy if energy > 0 else 1.0)
    return np.asarray(np.fft.fft2(tapered, norm="ortho"), np.complex128)


def _find_crossing(frequency: NDArray[np.float64], above: NDArray[np.float64]) -> float | None:
    """Return the frequency at which ``above`` first falls below zero, as ``RingCorrelation.crossing``."""
    if not (above > 0).any():
        return 0.0
    falls = np.flatnonzero((above[:-1] > 0) & (above[1:] <= 0))
    if not len(falls):
        return None
    at = int(falls[0])
    share = above[at] / (above[at] - above[at + 1])
    return float(frequency[at] + share * (frequency[at + 1] - frequency[at]))
