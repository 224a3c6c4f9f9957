"""Noise models of the detector: likelihoods, changes of the detector waves, residual sums and noise floors."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from ptycho_torch.core.errors import ConfigError

POISSON_OFFSET_PHOTONS = 0.1
"""Photons added to rate and count alike: keeps the likelihood finite at zero rate and its minimum at the truth."""

POISSON_MAX_RELATIVE_EXCESS = 10.0
"""Limit of the relative excess: the linearized step grows with k / λ, without bound at a high dose."""

AMPLITUDE_OFFSET_PHOTONS = 1e-3
"""Photons under both square roots: keeps the gradient of the amplitude finite at zero rate."""

SCALE_FIT_PATTERNS = 64
"""Number of patterns from which the scale of an object is fitted."""


class NoiseModel(Protocol):
    """A loss for gradients, and a change of the detector waves for projections."""

    def deviance(self, intensity: Tensor, counts: Tensor) -> Tensor:
        """Compute the negative log likelihood of each pixel minus its value at ``intensity == counts``.

        Args:
            intensity: (*, N, N) expected photons, not negative.
            counts: (*, N, N) measured photons.

        Returns:
            (*, N, N): finite, 0 at ``intensity == counts``, positive elsewhere.
        """

    def relative_change(self, intensity: Tensor, counts: Tensor) -> Tensor:
        """Compute the change of the detector waves, relative to the waves, that moves intensity toward counts.

        Args:
            intensity: (*, N, N) expected photons, not negative.
            counts: (*, N, N) measured photons.

        Returns:
            (*, N, N): the change of every mode of a pixel.
        """


@dataclass(frozen=True)
class Poisson:
    """Photon counting: −log Poisson(k | λ) up to a constant, ``λ − k log λ``, accurate in float32 at any dose."""

    offset_photons: float = POISSON_OFFSET_PHOTONS
    """Photons added to the rate and to the count."""

    max_relative_excess: float | None = POISSON_MAX_RELATIVE_EXCESS
    """Upper limit of (k − λ) / (λ + offset) in :meth:`relative_change`; None: no limit."""

    def deviance(self, intensity: Tensor, counts: Tensor) -> Tensor:
        rate, count = intensity + self.offset_photons, counts + self.offset_photons
        # With δ = rate / count − 1 it is count (δ − log(1 + δ)), which near δ = 0 is the difference of equal numbers.
        relative = (rate - count) / count
        series = relative.square() * (0.5 - relative * (1 / 3 - relative * (1 / 4 - relative / 5)))
        return count * torch.where(relative.abs() < 0.03, series, relative - torch.log(rate / count))

    def relative_change(self, intensity: Tensor, counts: Tensor) -> Tensor:
        # The gradient step of λ − k log λ whose length makes it exact to first order at λ = k (Thibault & Guizar-
        # Sicairos, New J. Phys. 14, 063004 (2012), eq. 15, with half the step of a full replacement).
        excess = (counts - intensity) / (intensity + self.offset_photons)
        return (excess if self.max_relative_excess is None else excess.clamp(max=self.max_relative_excess)) / 2


@dataclass(frozen=True)
class GaussianAmplitude:
    """Amplitudes √k with variance ¼, the limit of Poisson counts at high dose: ``2 (√λ − √k)²``."""

    offset_photons: float = AMPLITUDE_OFFSET_PHOTONS
    """Photons added under both square roots."""

    offset_fraction: float = 0.0
    """Added to the rate in :meth:`relative_change`, as a fraction of the largest rate of the pattern."""

    max_ratio: float | None = None
    """Upper limit of √k / √λ in :meth:`relative_change`; None: no limit."""

    def deviance(self, intensity: Tensor, counts: Tensor) -> Tensor:
        difference = torch.sqrt(intensity + self.offset_photons) - torch.sqrt(counts + self.offset_photons)
        return 2 * difference.square()

    def relative_change(self, intensity: Tensor, counts: Tensor) -> Tensor:
        # The modulus projection: replace the amplitude, keep the phase (Fienup, Appl. Opt. 21, 2758 (1982)).
        offset: Tensor | float = self.offset_photons
        if self.offset_fraction:
            offset = offset + self.offset_fraction * intensity.detach().amax((-2, -1), keepdim=True) + 1e-30
        # Two square roots, not one of the ratio, whose gradient is not finite at a count of zero.
        ratio = (counts + self.offset_photons).sqrt_() / (intensity + offset).sqrt_()
        return (ratio if self.max_ratio is None else ratio.clamp(max=self.max_ratio)) - 1


NOISE_MODELS: dict[str, type[Poisson] | type[GaussianAmplitude]] = {
    "amplitude": GaussianAmplitude,
    "poisson": Poisson,
}


def make_noise_model(name: str) -> NoiseModel:
    """Return the noise model ``name``.

    Raises:
        ConfigError: no noise model has that name.
    """
    if name not in NOISE_MODELS:
        raise ConfigError(f"`loss` is {name}; expected one of {', '.join(sorted(NOISE_MODELS))}")
    return NOISE_MODELS[name]()


def masked_mean(values: Tensor, mask: Tensor | None) -> Tensor:
    """Return the mean of ``values`` (*, N, N) over the pixels where ``mask`` (broadcastable, bool) is True.

    Without a mask it is the mean over all pixels.
    """
    if mask is None:
        return values.mean()
    total, count = masked_sum(values, mask)
    return total / count.clamp_min(1)


def masked_sum(values: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor]:
    """Return the sum of ``values`` (*, N, N) over the counted pixels, and the number of counted pixels.

    Args:
        values: (*, N, N) values, of any size outside the mask.
        mask: bool, broadcastable to ``values``, True where a pixel counts; None: all count.
    """
    if mask is None:
        return values.sum(), torch.tensor(values.numel(), device=values.device)
    mask = mask.expand_as(values)
    return torch.where(mask, values, torch.zeros_like(values)).sum(), mask.sum()


def select_scale_patterns(count: int) -> Tensor:
    """Return the indices of at most :data:`SCALE_FIT_PATTERNS` of ``count`` patterns, evenly spread over the scan."""
    return torch.linspace(0, count - 1, min(SCALE_FIT_PATTERNS, count)).round().long()


def fit_amplitude_scale(intensity: Tensor, counts: Tensor, mask: Tensor | None) -> float:
    """Return the factor c that minimizes Σ (c √intensity − √counts)² over the pixels that count.

    Args:
        intensity: (n, N, N) photons of a model.
        counts: (n, N, N) measured photons.
        mask: (n or 1, N, N) bool, True where a pixel counts; None: all count.

    Returns:
        Σ √(intensity · counts) / Σ intensity; 1 where the model has no photons.
    """
    counted = intensity if mask is None else torch.where(mask, intensity, torch.zeros_like(counts))
    power = float(counted.sum(dtype=torch.float64))
    return float((counted * counts).sqrt().sum(dtype=torch.float64)) / power if power > 0 else 1.0


class AmplitudeErrorSums(NamedTuple):
    """Sums over the counted pixels of each pattern, (*) float64, from which R and its noise floor follow."""

    squared_error: Tensor
    """Σ(√λ − √k)² of the rates λ and the counts k."""

    photons: Tensor
    """Σk."""

    expected_squared_error: Tensor
    """Expectation of ``squared_error`` for k ~ Poisson(λ)."""

    pixels: Tensor
    """Number of counted pixels."""


def sum_amplitude_errors(rates: Tensor, counts: Tensor, mask: Tensor | None) -> AmplitudeErrorSums:
    """Sum the squared differences of the amplitudes and their expectation over the pixels of each pattern.

    R is Σ(√λ − √k)² / Σk and its noise floor E[Σ(√λ − √k)²] / Σk, each after summation over the patterns.

    Args:
        rates: (*, N, N) expected photons λ, not negative.
        counts: (*, N, N) measured photons k, of any value outside the mask.
        mask: bool, broadcastable to ``rates``, True where a pixel counts; None: all count.
    """
    counted = torch.ones_like(rates, dtype=torch.bool) if mask is None else mask.expand_as(rates)
    maps = (rates.sqrt() - counts.sqrt()).square(), counts, compute_noise_floor(rates)
    # A masked pixel may be NaN, so its value is replaced instead of multiplied by zero.
    error, photons, expected = (torch.where(counted, part, 0.0).sum((-2, -1), dtype=torch.float64) for part in maps)
    return AmplitudeErrorSums(error, photons, expected, counted.sum((-2, -1), dtype=torch.float64))


def compute_noise_floor(rates: Tensor) -> Tensor:
    """Compute the exact expectation of (√k − √λ)² for k ~ Poisson(λ): about ¼ above 10 photons, 2λ near zero.

    Args:
        rates: (*) expected photons λ, not negative.

    Returns:
        (*) float64.
    """
    above = 0.25 + 7 / (64 * rates.double().clamp_min(1))
    return _compute_expectation(rates, lambda rate, counts: (counts.sqrt() - rate.sqrt()).square(), above)


def compute_deviance_floor(rates: Tensor) -> Tensor:
    """Compute the exact expectation of :meth:`Poisson.deviance` for k ~ Poisson(λ): about ½ above 2 photons.

    Args:
        rates: (*) expected photons λ, not negative.

    Returns:
        (*) float64.
    """
    above = 0.5 + (1 / 12 - POISSON_OFFSET_PHOTONS / 2) / rates.double().clamp_min(1)
    return _compute_expectation(rates, Poisson().deviance, above)


TABLE_MAX_RATE_PHOTONS = 50.0
"""Rate in photons above which an expansion in 1/λ is accurate to 1e-5."""


def _compute_expectation(rates: Tensor, error: Callable[[Tensor, Tensor], Tensor], above: Tensor) -> Tensor:
    """Compute the expectation of ``error(λ, k)`` for k ~ Poisson(λ) as a sum over the counts.

    Args:
        rates: (*) rates λ in photons.
        error: function of a rate and a count.
        above: (*) values for rates above :data:`TABLE_MAX_RATE_PHOTONS`.
    """
    rates = rates.double()
    # Exact sums at 2,000 nodes, interpolated linearly in √λ: a sum per rate would be slow for millions of rates.
    nodes = torch.linspace(0, TABLE_MAX_RATE_PHOTONS**0.5, 2001, dtype=torch.float64, device=rates.device)
    counts = torch.arange(0, 160, dtype=torch.float64, device=rates.device)
    rate = nodes.square().clamp_min(1e-300)[:, None]
    probability = torch.exp(rate.log() * counts - rate - torch.lgamma(counts + 1))
    table = torch.linalg.vecdot(probability, error(rate, counts))
    coordinate = rates.clamp(1e-12, TABLE_MAX_RATE_PHOTONS).sqrt() / (nodes[1] - nodes[0])
    index = coordinate.floor().long().clamp(0, len(nodes) - 2)
    interpolated = torch.lerp(table[index], table[index + 1], coordinate - index)
    return torch.where(rates > TABLE_MAX_RATE_PHOTONS, above, interpolated)
