"""Detector model: Poisson counts and masks of defective pixels."""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

MAX_INVERSION_PHOTONS = 4.0
"""Rate in photons below which counts are drawn by inversion of the distribution, all pixels at once."""

MIN_EXPANSION_PHOTONS = 20.0
"""Rate in photons above which counts are drawn by an expansion instead of exactly."""


def draw_poisson_counts(rates: Tensor, rng: np.random.Generator) -> Tensor:
    """Draw Poisson counts, exact for rates below :data:`MIN_EXPANSION_PHOTONS` photons and approximate above.

    Above, the count is λ + s z + (z² − 1)/6, rounded, for a normal z: the expansion of Cornish & Fisher (Rev. Inst.
    Int. Stat. 5, 307 (1938)), which matches three moments. s² is λ minus the variance that the last term (1/18) and
    rounding (1/12) add. The total variation distance to the Poisson distribution is 0.1 % at 20 photons and falls as
    1/λ; for a rounded normal distribution it is 3 %.

    Args:
        rates: any shape, float32, not negative, in photons.
        rng: random generator of the noise.

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
    """Draw Poisson counts at ``rates`` (n,) up to :data:`MAX_INVERSION_PHOTONS` by inversion.

    A count is the first k with a cumulative probability above a uniform random number. All pixels advance from k to
    k + 1 together, and most are finished after the first step: two to three times faster than pixel by pixel. Tails
    below 1e-9, the resolution of float32, are cut.
    """
    uniform, probability = rng.random(len(rates), dtype=np.float32), np.exp(-rates)
    counts = np.zeros_like(rates)
    remaining = np.flatnonzero(uniform >= probability)
    uniform, probability, rate = uniform[remaining], probability[remaining], rates[remaining]
    cumulative, count = probability, 0
    while len(remaining):
        count += 1
        probability = probability * rate / np.float32(count)
        cumulative = cumulative + probability
        counts[remaining] = count
        more = (uniform >= cumulative) & (probability > 1e-9)
        remaining, uniform, rate = remaining[more], uniform[more], rate[more]
        probability, cumulative = probability[more], cumulative[more]
    return counts


def draw_mask(far_power: NDArray[np.float64], rng: np.random.Generator) -> NDArray[np.bool_]:
    """Draw a detector mask with one or more random defects.

    The defects are dead pixels (0.05 to 2 %), gaps of one to N/32 + 1 pixels between modules, and a beam stop that
    hides at most 40 % of the power.

    Args:
        far_power: (N, N) power of the probe without an object on the detector, zero frequency at [0, 0].
        rng: random generator.

    Returns:
        (N, N), True where a pixel counts, zero frequency at [0, 0].
    """
    defects = rng.random(3) < 0.5
    if not defects.any():
        defects[rng.integers(3)] = True
    size = len(far_power)
    mask = np.ones(far_power.shape, dtype=bool)
    if defects[0]:
        mask &= rng.random(mask.shape) >= np.exp(rng.uniform(np.log(5e-4), np.log(0.02)))
    if defects[1]:
        for axis in range(2):
            for _ in range(rng.integers(0, 3) or axis):
                start, width = rng.integers(size), rng.integers(1, size // 32 + 2)
                gap = (slice(None),) * axis + (slice(start, start + width),)
                mask[gap] = False
    if defects[2]:
        mask &= ~make_beam_stop(far_power, rng.uniform(0.05, 0.4))
    return mask


def make_beam_stop(far_power: NDArray[np.float64], share: float) -> NDArray[np.bool_]:
    """Return the pixels (N, N) behind the largest round central stop that hides at most ``share`` of ``far_power``."""
    axis = np.rint(np.fft.fftfreq(len(far_power), 1 / len(far_power))).astype(np.int64)
    ring = axis[:, None] ** 2 + axis[None, :] ** 2  # pixels of a ring have the same distance from the middle
    hidden = np.cumsum(np.bincount(ring.ravel(), far_power.ravel())) / far_power.sum()
    return ring < np.searchsorted(hidden, share, side="right")
