"""Recognition of near-field patterns: shadow images of an illumination that is wider than a far-field window.

A pattern recorded behind a diverging beam is a magnified shadow of the illuminated object, and a displacement s of the
sample moves the shadow by B · s, with s in far-field object pixels and the shadow in detector pixels. The illumination
that makes a pattern of width W is then W / |B| far-field pixels wide. A far-field reconstruction can hold at most N of
them, so a larger illumination is a near field. The principle is that of defocus measurement by Ronchigrams.
"""

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ptycho_torch.data.extent import compute_probe_diameter

MAX_PAIRS = 60
"""Largest number of compared pairs of patterns."""

MAX_PATTERNS = 400
"""Largest number of patterns from which pairs are taken."""

MIN_DISTANCE_FRACTION, MAX_DISTANCE_FRACTION = 0.15, 1.5
"""Smallest and largest distance of a pair of positions, as fractions of N."""

MAX_MAGNIFICATION, NUM_CANDIDATES = 0.7, 141
"""Largest tested |B|, and number of tested values; a larger |B| is no near field for any pattern within the window."""

MIN_CORRELATION = 0.4
"""Smallest correlation of shifted shadows that counts as a match. The measured near field of PETRA III P25 has 0.63;
far fields of unmatched scale have at most 0.2."""

MIN_WIDTH_FRACTION = 1.5
"""Smallest width of the illumination, as a fraction of N, that counts as a near field. Simulated far fields of
defocused probes have at most 0.85, the measured near field of PETRA III P25 has 4.0."""

DARK_FRACTION = 0.05
"""Mean intensity, as a fraction of its largest values, below which pixels are left out."""

MIN_OVERLAP_PX = 20
"""Smallest number of pixels that two shifted shadows must share on average."""


class ShadowMotion(NamedTuple):
    """Motion of the shadows with the scan positions."""

    magnification: float
    """B in detector pixels per object pixel."""

    correlation: float
    """Mean correlation of the shadows at that magnification."""

    illumination_px: float
    """Diameter of the illumination in far-field object pixels."""

    @property
    def is_near_field(self) -> bool:
        """True if the shadows match and their illumination is wider than a far-field window."""
        return self.correlation >= MIN_CORRELATION and self.illumination_px >= MIN_WIDTH_FRACTION

    def describe(self, size: int) -> str:
        """Return the evidence as text, for patterns of ``size`` pixels."""
        return (
            f"the patterns are shadow images that move by {self.magnification:.3f} detector pixels per object pixel of "
            f"the scan (correlation {self.correlation:.2f}), from an illumination of {self.illumination_px * size:.0f} "
            f"object pixels in a window of {size}"
        )


def estimate_shadow_motion(
    intensities: NDArray[Any], positions: NDArray[np.float64], mask: NDArray[np.bool_] | None = None
) -> ShadowMotion | None:
    """Estimate the motion of the shadows in the patterns with the scan positions.

    Args:
        intensities: (n, N, N) patterns.
        positions: (n, 2) (y, x) in object pixels of the far field.
        mask: (N, N) or (n, N, N), True where a pixel counts.

    Returns:
        The motion, with the illumination as a fraction of N; None if no two positions have a suitable distance.
    """
    from scipy import fft

    rng = np.random.default_rng(0)  # fixed: the same file gives the same answer
    chosen = np.sort(rng.permutation(len(positions))[:MAX_PATTERNS])
    size = intensities.shape[-1]
    first, second = _select_pairs(positions[chosen], size, rng)
    if not len(first):
        return None
    first, second = chosen[first], chosen[second]
    members, inverse = np.unique([first, second], return_inverse=True)
    selected = intensities[members].astype(np.float64)
    if mask is not None:
        selected = np.where(mask[members] if mask.ndim == 3 else mask, selected, 0)
    mean = selected.mean(0)
    if not mean.any():
        return None
    bright = mean > DARK_FRACTION * np.sort(mean, axis=None)[-size // 2 :].mean()
    shadows = _compute_shadows(selected, mean, bright)
    padded = fft.next_fast_len(2 * size, real=True)
    spectra = fft.rfft2(shadows, s=(padded, padded))
    left, right = inverse.reshape(2, -1)
    correlations = fft.irfft2(spectra[left].conj() * spectra[right], s=(padded, padded))
    support = fft.irfft2(np.abs(fft.rfft2(bright.astype(float), s=(padded, padded))) ** 2, s=(padded, padded))
    power = np.sqrt(np.square(shadows).sum((1, 2)) / max(int(bright.sum()), 1))
    scale = np.maximum(power[left] * power[right], np.finfo(np.float32).tiny)
    candidates = np.linspace(-MAX_MAGNIFICATION, MAX_MAGNIFICATION, NUM_CANDIDATES)
    moves = positions[second] - positions[first]
    correlations /= scale[:, None, None]
    scores = np.array([_score(correlations, support, -b * moves) for b in candidates])
    best = int(scores.argmax())
    width = compute_probe_diameter(np.sqrt(mean))
    magnification = float(candidates[best])
    return ShadowMotion(magnification, float(scores[best]), width / max(abs(magnification), 1e-9) / size)


def _select_pairs(
    positions: NDArray[np.float64], size: int, rng: np.random.Generator
) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """Return the indices of both members of pairs at a suitable distance."""
    distances = np.hypot(*np.moveaxis(positions[:, None] - positions[None], -1, 0))
    suitable = (distances > MIN_DISTANCE_FRACTION * size) & (distances < MAX_DISTANCE_FRACTION * size)
    first, second = np.nonzero(np.triu(suitable))
    order = rng.permutation(len(first))[:MAX_PAIRS]
    return first[order], second[order]


def _compute_shadows(
    patterns: NDArray[np.float64], mean: NDArray[np.float64], bright: NDArray[np.bool_]
) -> NDArray[np.float64]:
    """Return the relative deviations (m, N, N) of patterns from their mean, of zero sum; 0 at dark pixels."""
    totals = patterns.sum((1, 2), keepdims=True)
    relative = patterns * (totals.mean() / np.maximum(totals, np.finfo(np.float64).tiny))
    shadows = np.where(bright, relative / np.where(bright, mean, 1) - 1, 0)
    offset = shadows.sum((1, 2), keepdims=True) / max(int(bright.sum()), 1)
    return np.where(bright, shadows - offset, 0)


def _score(correlations: NDArray[Any], support: NDArray[Any], shifts: NDArray[np.float64]) -> float:
    """Return the mean correlation of all pairs at their shifts (m, 2), per shared pixel."""
    from scipy.ndimage import map_coordinates

    places = [np.arange(len(shifts)), *shifts.T]
    values = map_coordinates(correlations, places, order=1, mode="grid-wrap")
    shared = map_coordinates(support, shifts.T, order=1, mode="grid-wrap")
    return float(values.sum() / shared.sum()) if shared.mean() > MIN_OVERLAP_PX else 0.0
