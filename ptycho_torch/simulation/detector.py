"""What a detector makes of the expected photons: whole counts, and pixels that do not count."""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

MAX_INVERSION_PHOTONS = 4.0
"""Photons up to which counts are drawn by inverting the distribution, all pixels at once."""

MIN_EXPANSION_PHOTONS = 20.0
"""Photons from which on counts are drawn by an expansion instead of exactly."""


def draw_poisson_counts(rates: Tensor, rng: np.random.Generator) -> Tensor:
    """Whole counts, Poisson distributed: exactly below :data:`MIN_EXPANSION_PHOTONS` photons, by three right moments above.

    Above, the count is λ + s z + (z² − 1)/6, rounded, for a normal z: Cornish & Fisher's expansion (Rev. Inst. Int.
    Stat. 5, 307 (1938)). s² is λ less what the last term (1/18) and rounding (1/12) add to the variance. The total
    variation from the true distribution is 0.1 % at 20 photons and falls as 1/λ; that of a rounded normal is 3 %.

    Args:
        rates: any shape, float32, not negative, in photons.
        rng: source of the noise.

    Returns:
        The counts, of the shape and dtype of ``rates``.
    """
    expected = rates.numpy().ravel()
    counts = np.empty_like(expected)
    faint, bright = expected < MAX_INVERSION_PHOTONS, expected >= MIN_EXPANSION_PHOTONS
    middle = ~(faint | bright)
    counts[faint] = draw_counts_by_inversion(expected[faint], rng)
    counts[middle] = rng.poisson(expected[middle])
    mean = expected[bright]
    normal = rng.standard_normal(len(mean), dtype=np.float32)
    counts[bright] = np.rint(mean + np.sqrt(mean - np.float32(5 / 36)) * normal + (normal * normal - 1) / 6)
    return torch.from_numpy(counts.reshape(rates.shape))


def draw_counts_by_inversion(rates: NDArray[np.float32], rng: np.random.Generator) -> NDArray[np.float32]:
    """Poisson counts at ``rates`` (n,) up to :data:`MAX_INVERSION_PHOTONS`, by inversion.

    A count is the first k whose cumulated probability exceeds a uniform number. All pixels take the step from k to
    k + 1 together, and most of them are done after the first: two to three times faster than one by one. Tails below
    1e-9 are cut, where float32 ends.
    """
    uniform, probability = rng.random(len(rates), dtype=np.float32), np.exp(-rates)
    counts = np.zeros_like(rates)
    left = np.flatnonzero(uniform >= probability)
    uniform, probability, rate = uniform[left], probability[left], rates[left]
    cumulated, count = probability, 0
    while len(left):
        count += 1
        probability = probability * rate / np.float32(count)
        cumulated = cumulated + probability
        counts[left] = count
        more = (uniform >= cumulated) & (probability > 1e-9)
        left, uniform, rate = left[more], uniform[more], rate[more]
        probability, cumulated = probability[more], cumulated[more]
    return counts


def draw_mask(far_power: NDArray[np.float64], rng: np.random.Generator) -> NDArray[np.bool_]:
    """A mask (N, N), True where a pixel counts, zero frequency at [0, 0]: one or more faults drawn at random.

    Dead pixels (0.05 to 2 %), gaps of one to N/32 + 1 pixels between modules, and a beam stop, which hides at most 40 %
    of the light.

    Args:
        far_power: (N, N) power of the bare probe on the detector, zero frequency at [0, 0].
        rng: source of the draw.
    """
    faults = rng.random(3) < 0.5
    if not faults.any():
        faults[rng.integers(3)] = True
    size = len(far_power)
    mask = np.ones(far_power.shape, dtype=bool)
    if faults[0]:
        mask &= rng.random(mask.shape) >= np.exp(rng.uniform(np.log(5e-4), np.log(0.02)))
    if faults[1]:
        for axis in range(2):
            for _ in range(rng.integers(0, 3) or axis):
                start, width = rng.integers(size), rng.integers(1, size // 32 + 2)
                gap = (slice(None),) * axis + (slice(start, start + width),)
                mask[gap] = False
    if faults[2]:
        mask &= ~make_beam_stop(far_power, rng.uniform(0.05, 0.4))
    return mask


def make_beam_stop(far_power: NDArray[np.float64], share: float) -> NDArray[np.bool_]:
    """Pixels (N, N) behind the largest round stop in the middle that hides at most ``share`` of ``far_power``."""
    axis = np.rint(np.fft.fftfreq(len(far_power), 1 / len(far_power))).astype(np.int64)
    ring = axis[:, None] ** 2 + axis[None, :] ** 2  # pixels of one ring are equally far from the middle
    hidden = np.cumsum(np.bincount(ring.ravel(), far_power.ravel())) / far_power.sum()
    return ring < np.searchsorted(hidden, share, side="right")
