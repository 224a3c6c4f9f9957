"""What the detector does to the expected photons: likelihoods, their wave updates, and the noise floor."""

from collections.abc import Callable
from typing import Protocol

import torch
from torch import Tensor

from ptycho_torch.core.errors import ConfigError

POISSON_OFFSET_PHOTONS = 0.1
"""Photons added to rate and count alike: keeps the likelihood finite at zero rate and its minimum at the truth."""

AMPLITUDE_OFFSET_PHOTONS = 1e-3
"""Photons under both square roots: keeps the gradient of the amplitude finite at zero rate."""


class NoiseModel(Protocol):
    """Both faces of a noise model: a loss for gradients, and a wave update for projections."""

    def deviance(self, intensity: Tensor, counts: Tensor) -> Tensor:
        """Negative log likelihood of each pixel less its value at ``intensity == counts``: zero there, else above.

        Both arguments are (*, N, N) in photons; the result is finite for every ``intensity`` from zero up.
        """

    def wave_update(self, detector: Tensor, intensity: Tensor, counts: Tensor) -> Tensor:
        """The change of the far field (*, M, N, N) that brings ``intensity`` to ``counts``, for all modes alike."""


class Poisson:
    """Photon counting: −log Poisson(k | λ), up to a constant, ``λ − k log λ``."""

    def deviance(self, intensity: Tensor, counts: Tensor) -> Tensor:
        rate, count = intensity + POISSON_OFFSET_PHOTONS, counts + POISSON_OFFSET_PHOTONS
        return rate - count - count * torch.log(rate / count)

    def wave_update(self, detector: Tensor, intensity: Tensor, counts: Tensor) -> Tensor:
        # The gradient step of λ − k log λ whose length makes it exact to first order at λ = k (Thibault & Guizar-
        # Sicairos, New J. Phys. 14, 063004 (2012), eq. 15, with half the step of a full replacement).
        ratio = (counts + POISSON_OFFSET_PHOTONS) / (intensity + POISSON_OFFSET_PHOTONS)
        return 0.5 * (ratio - 1)[..., None, :, :] * detector


class GaussianAmplitude:
    """Amplitudes √k with variance ¼, which Poisson counts have at high dose: ``2 (√λ − √k)²``."""

    def deviance(self, intensity: Tensor, counts: Tensor) -> Tensor:
        return (
            2
            * (
                torch.sqrt(intensity + AMPLITUDE_OFFSET_PHOTONS) - torch.sqrt(counts + AMPLITUDE_OFFSET_PHOTONS)
            ).square()
        )

    def wave_update(self, detector: Tensor, intensity: Tensor, counts: Tensor) -> Tensor:
        # The modulus projection: replace the amplitude, keep the phase (Fienup, Appl. Opt. 21, 2758 (1982)).
        ratio = (
            (counts + AMPLITUDE_OFFSET_PHOTONS).div_(intensity + AMPLITUDE_OFFSET_PHOTONS).sqrt_()
        )  # in place: engines live on this
        return ratio.sub_(1)[..., None, :, :] * detector


NOISE_MODELS: dict[str, type[Poisson] | type[GaussianAmplitude]] = {
    "amplitude": GaussianAmplitude,
    "poisson": Poisson,
}


def make_noise_model(name: str) -> NoiseModel:
    """The noise model called ``name``.

    Raises:
        ConfigError: there is none of that name.
    """
    if name not in NOISE_MODELS:
        raise ConfigError(f"--loss is {name}: known are {', '.join(sorted(NOISE_MODELS))}")
    return NOISE_MODELS[name]()


def masked_mean(values: Tensor, mask: Tensor | None) -> Tensor:
    """Mean of ``values`` (*, N, N) over the pixels where ``mask`` (broadcastable, bool) is True; None: over all."""
    if mask is None:
        return values.mean()
    total, count = masked_sum(values, mask)
    return total / count.clamp_min(1)


def masked_sum(values: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor]:
    """Sum of ``values`` (*, N, N) over the pixels where ``mask`` (broadcastable, bool) is True, and their number."""
    if mask is None:
        return values.sum(), torch.tensor(values.numel(), device=values.device)
    mask = mask.expand_as(values)
    return torch.where(mask, values, torch.zeros_like(values)).sum(), mask.sum()


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


def compute_noise_floor(rates: Tensor) -> Tensor:
    """Exact expectation of (√k − √λ)² for k ~ Poisson(λ), at each of ``rates``: about ¼ from 10 on, 2λ near zero.

    Args:
        rates: any shape, not negative, in photons.

    Returns:
        float64 of that shape.
    """
    above = 0.25 + 7 / (64 * rates.double().clamp_min(1))
    return _compute_expectation(rates, lambda rate, counts: (counts.sqrt() - rate.sqrt()).square(), above)


def compute_deviance_floor(rates: Tensor) -> Tensor:
    """Exact expectation of :meth:`Poisson.deviance` at the true rate, for k ~ Poisson(λ): about ½ from 2 on.

    Args:
        rates: any shape, not negative, in photons.

    Returns:
        float64 of that shape.
    """
    above = 0.5 + (1 / 12 - POISSON_OFFSET_PHOTONS / 2) / rates.double().clamp_min(1)
    return _compute_expectation(rates, Poisson().deviance, above)


TABLE_MAX_RATE_PHOTONS = 50.0
"""Photons: for higher rates an expansion in 1/λ is right to 1e-5."""


def _compute_expectation(rates: Tensor, error: Callable[[Tensor, Tensor], Tensor], above: Tensor) -> Tensor:
    """Expectation of ``error(λ, k)`` for k ~ Poisson(λ), by its sum over all counts that matter; beyond, ``above``."""
    rates = rates.double()
    # A table over λ, linear in √λ between nodes: exact sums at 2,000 nodes, so that millions of rates cost little.
    nodes = torch.linspace(0, TABLE_MAX_RATE_PHOTONS**0.5, 2001, dtype=torch.float64, device=rates.device)
    counts = torch.arange(0, 160, dtype=torch.float64, device=rates.device)
    rate = nodes.square().clamp_min(1e-300)[:, None]
    probability = torch.exp(rate.log() * counts - rate - torch.lgamma(counts + 1))
    table = torch.linalg.vecdot(probability, error(rate, counts))
    place = rates.clamp(1e-12, TABLE_MAX_RATE_PHOTONS).sqrt() / (nodes[1] - nodes[0])
    index = place.floor().long().clamp(0, len(nodes) - 2)
    inside = torch.lerp(table[index], table[index + 1], place - index)
    return torch.where(rates > TABLE_MAX_RATE_PHOTONS, above, inside)
