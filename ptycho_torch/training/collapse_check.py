"""Whether a trained network has seen anything, or has collapsed: its picture beside a flat one and beside the noise.

A network may settle on one constant for every pattern. Its loss is then finite and its history smooth, so that only a
comparison tells: with the best flat object under the same probe, after the steps of physics that an untaught network
would take from it, and with what the patterns themselves show.
"""

import math
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from ptycho_torch.distributed.process_group import ALONE
from ptycho_torch.models.input_lift import filled, lift
from ptycho_torch.models.model import PtychoModel
from ptycho_torch.physics.batch import Batch
from ptycho_torch.physics.forward import agreed, from_patches, probe_at
from ptycho_torch.physics.noise import noise_floor
from ptycho_torch.physics.probe import power_of
from ptycho_torch.training.trainer import VALIDATION_BATCH, Patterns

NEEDED_SHARE = 0.1
"""Share of what an untaught network leaves beyond counting noise that one must explain to have seen anything."""

NOISY = 0.5
"""Share of what an untaught network leaves that may be counting noise. Beyond, its steps of physics draw that noise and
R thanks it for it, so that a good picture may come out worse."""

ALIKE = 0.9
"""Correlation with the patches of an untaught network from which on nothing has been learned."""

FLAT_SPREAD = 0.25
"""Spread of the patches, as a share of that of the lifted patterns, below which they are called flat."""

TEXTURE = 1.05
"""Difference between the patterns, as a multiple of counting noise, up to which they may be of a flat sample: a
detector adds a little to that noise."""

CERTAINTY = 3.0
"""Standard deviations of that multiple that must lie between."""

COMPARED = 256
"""Patterns, spread over the scan, that are compared with their mean."""


class Verdict(NamedTuple):
    """A network beside an untaught one, on the patterns of a validation."""

    r: float
    """Σ(√λ − √k)² / Σk of the network's patches, over pixels that count."""

    r_untaught: float
    """The same of what the network would say untaught: the best flat object under the same probe, one constant, after
    the network's steps of physics, if it takes any."""

    r_floor: float
    """What counting noise alone would leave at the network's rates."""

    spread: float
    """Standard deviation of the patches about their means where they are lit, over the means' modulus."""

    lift_spread: float
    """The same of the lifted patterns, noise and all: what there is to see."""

    likeness: float
    """Correlation of its patches with those of an untaught one, 0 to 1; means nothing where those are constant."""

    texture: float
    """Difference between the patterns over counting noise. A flat sample gives the same pattern everywhere, whatever
    the probe: 1."""

    texture_error: float
    """Standard deviation of that figure for a flat sample."""

    @property
    def explained(self) -> float:
        """Share of what the untaught network leaves beyond counting noise that the network explains: 1 at best."""
        return (self.r_untaught - self.r) / max(self.r_untaught - self.r_floor, 1e-12)

    @property
    def textured(self) -> bool:
        """Whether there is something to see beyond counting noise."""
        return self.texture > TEXTURE + CERTAINTY * self.texture_error

    @property
    def flat(self) -> bool:
        """Whether the picture is."""
        return self.spread < FLAT_SPREAD * self.lift_spread

    @property
    def decided(self) -> bool:
        """Whether R tells how good the network is: not where most of it is noise, and it says something of its own that
        is about as good as what an untaught one says."""
        own = not self.flat and self.likeness < ALIKE
        return not (own and self.r_floor > NOISY * self.r_untaught and abs(self.explained) < NOISY)

    @property
    def collapsed(self) -> bool:
        """Whether there is something to see, and the network sees nothing of it."""
        return self.textured and self.decided and self.explained < NEEDED_SHARE

    def told(self) -> str:
        """In words."""
        figures = f"R {self.r:.4g}, untaught {self.r_untaught:.4g}, counting noise alone {self.r_floor:.4g}"
        if not self.textured:
            return f"the sample is flat, as far as counting noise lets one see ({figures})"
        if not self.decided and self.explained < NEEDED_SHARE:
            return f"so few photons do not tell whether the network sees the sample ({figures})"
        if not self.collapsed:
            return f"the network sees the sample ({figures})"
        seen = "is flat" if self.flat else "explains the patterns no better than an untaught network's"
        varying = f"its patches vary by {self.spread:.2g}, lifted patterns by {self.lift_spread:.2g}"
        return f"the picture {seen} ({figures}; {varying})"


@torch.no_grad()
def judge(model: PtychoModel, patterns: Patterns) -> Verdict:
    """Judge ``model`` on ``patterns``, by its own probe or theirs."""
    probe = model.probes[patterns.scan.source] if patterns.probe is None else patterns.probe
    sums = torch.zeros(12, dtype=torch.float64)
    for _, indices in patterns.batches(VALIDATION_BATCH, 1, np.random.default_rng(0)):
        sums += _sums(model, patterns.scan.take(indices.to(probe.device)), patterns.probe, probe)
    texture, texture_error = _texture(patterns.scan)
    error, floor, photons, overlap, power, spread, mean, lift_spread, lift_mean, *alike = sums.tolist()
    return Verdict(
        r=error / photons,
        r_untaught=1 - overlap**2 / max(power, 1e-30) / photons,
        r_floor=floor / photons,
        spread=(spread / max(mean, 1e-30)) ** 0.5,
        lift_spread=(lift_spread / max(lift_mean, 1e-30)) ** 0.5,
        likeness=math.hypot(*alike[:2]) / max(spread * alike[2], 1e-30) ** 0.5,
        texture=texture,
        texture_error=texture_error,
    )


def _sums(model: PtychoModel, batch: Batch, own: Tensor | None, probe: Tensor) -> Tensor:
    """What :func:`judge` adds up over the batches, (12,) float64 on the CPU."""
    found = model.explain(batch, own)
    rates, measured = found.fields.intensity, batch.amplitudes
    weights = power_of(found.probes)
    untaught = model.network.untaught(filled(measured, batch.mask, found.probes), found.probes, batch.mask)
    flat = from_patches(agreed(ALONE, untaught, weights, batch.corners), found.probes).intensity.sqrt()
    counted = torch.ones_like(measured, dtype=torch.bool) if batch.mask is None else batch.mask.expand_as(measured)
    maps = (
        (rates.sqrt() - measured).square(),
        noise_floor(rates),
        batch.counts,
        measured * flat,
        flat.square(),
    )
    over_pixels = [torch.where(counted, values.double(), 0.0).sum() for values in maps]
    lifted = lift(measured, probe_at(probe, batch.fractions))
    share = (weights / weights.sum((-2, -1), keepdim=True)).double()
    spreads = [part for patches in (found.patches, lifted) for part in _spread(patches, share)]
    one, other = (patches - _mean(patches, share) for patches in (found.patches, untaught))
    common = (share * one * other.conj()).sum()
    return torch.stack([*over_pixels, *spreads, common.real, common.imag, _spread(untaught, share)[0]]).cpu()


def _spread(patches: Tensor, share: Tensor) -> tuple[Tensor, Tensor]:
    """Variance of each patch about its own mean, and that mean's squared modulus, both summed; ``share`` adds to 1."""
    mean = _mean(patches, share)
    variance = (share * (patches - mean).abs().square()).sum()
    return variance, mean.abs().square().sum()


def _mean(patches: Tensor, share: Tensor) -> Tensor:
    """(n, 1, 1): the mean of each patch over the light."""
    return (share * patches).sum((-2, -1), keepdim=True)


def _texture(scan: Batch) -> tuple[float, float]:
    """How much the patterns of a scan differ in shape, over counting noise of equal ones; and the error.

    Each may have a brightness of its own, since sources fluctuate. Of one pattern alone nothing can be said: then 1.
    """
    n = len(scan.amplitudes)
    chosen = torch.linspace(0, n - 1, min(COMPARED, n), device=scan.amplitudes.device).round().long()
    some = scan.take(chosen)
    if len(chosen) < 2:
        return 1.0, 0.0
    shape = some.amplitudes.shape
    counted = torch.ones(shape, device=chosen.device) if some.mask is None else some.mask.expand(shape).float()
    mean = (some.counts * counted).sum(0) / counted.sum(0).clamp_min(1)
    expected = mean.sqrt()
    brightness = (some.amplitudes * counted * expected).sum((1, 2)) / (counted * mean).sum((1, 2)).clamp_min(1e-30)
    modelled = brightness[:, None, None] * expected
    error = (counted * (some.amplitudes - modelled).square()).sum(dtype=torch.float64)
    floor = float((counted * noise_floor(modelled.square())).sum(dtype=torch.float64).clamp_min(1e-30))
    # √k has variance ¼ where there are photons, and its square error a relative deviation of √2.
    deviation = (2 / max(4 * floor, 1.0)) ** 0.5
    return float(error) / floor * len(chosen) / (len(chosen) - 1), deviation
