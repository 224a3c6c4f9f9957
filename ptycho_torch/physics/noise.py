"""What the detector does to the expected photons: likelihoods, their wave updates, and the noise floor."""

from typing import Protocol

import torch
from torch import Tensor

from ptycho_torch.core.errors import ConfigError

POISSON_SHIFT = 0.1
"""Photons added to rate and count alike: keeps the likelihood finite at zero rate and its minimum at the truth."""

AMPLITUDE_SHIFT = 1e-3
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
        rate, count = intensity + POISSON_SHIFT, counts + POISSON_SHIFT
        return rate - count - count * torch.log(rate / count)

    def wave_update(self, detector: Tensor, intensity: Tensor, counts: Tensor) -> Tensor:
        # The gradient step of λ − k log λ whose length makes it exact to first order at λ = k (Thibault & Guizar-
        # Sicairos, New J. Phys. 14, 063004 (2012), eq. 15, with half the step of a full replacement).
        ratio = (counts + POISSON_SHIFT) / (intensity + POISSON_SHIFT)
        return 0.5 * (ratio - 1)[..., None, :, :] * detector


class GaussianAmplitude:
    """Amplitudes √k with variance ¼, which Poisson counts have at high dose: ``2 (√λ − √k)²``."""

    def deviance(self, intensity: Tensor, counts: Tensor) -> Tensor:
        return 2 * (torch.sqrt(intensity + AMPLITUDE_SHIFT) - torch.sqrt(counts + AMPLITUDE_SHIFT)).square()

    def wave_update(self, detector: Tensor, intensity: Tensor, counts: Tensor) -> Tensor:
        # The modulus projection: replace the amplitude, keep the phase (Fienup, Appl. Opt. 21, 2758 (1982)).
        ratio = (counts + AMPLITUDE_SHIFT).div_(intensity + AMPLITUDE_SHIFT).sqrt_()  # in place: engines live on this
        return ratio.sub_(1)[..., None, :, :] * detector


NOISE_MODELS: dict[str, type[Poisson] | type[GaussianAmplitude]] = {
    "amplitude": GaussianAmplitude,
    "poisson": Poisson,
}


def noise_model(name: str) -> NoiseModel:
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
    mask = mask.expand_as(values)
    return torch.where(mask, values, torch.zeros_like(values)).sum() / mask.sum().clamp_min(1)


def noise_floor(rates: Tensor) -> Tensor:
    """Exact expectation of (√k − √λ)² for k ~ Poisson(λ), at each of ``rates``.

    It is λ + λ − 2 √λ E[√k]: about ¼ for λ of 10 and more, 2λ for λ near zero. The sum for E[√k] runs over all counts
    that matter up to λ = 50; above, the expansion ¼ + 7/(64 λ) + … is used, which is right to 1e-5 there.

    Args:
        rates: any shape, not negative, in photons.
    """
    rates = rates.double()
    high = 50.0
    low = rates.clamp(1e-12, high)
    # A table over λ, linear in √λ between nodes: exact sums at 2,000 nodes, so that millions of rates cost little.
    nodes = torch.linspace(0, high**0.5, 2001, dtype=torch.float64, device=rates.device)
    counts = torch.arange(0, 160, dtype=torch.float64, device=rates.device)
    rate = nodes.square().clamp_min(1e-300)[:, None]
    probability = torch.exp(torch.xlogy(counts, rate) - rate - torch.lgamma(counts + 1))
    table = 2 * nodes.square() - 2 * nodes * (probability * counts.sqrt()).sum(1)
    place = low.sqrt() / (nodes[1] - nodes[0])
    index = place.floor().long().clamp(0, len(nodes) - 2)
    share = place - index
    inside = table[index] * (1 - share) + table[index + 1] * share
    above = 0.25 + 7 / (64 * rates.clamp_min(1))
    return torch.where(rates > high, above, inside)
