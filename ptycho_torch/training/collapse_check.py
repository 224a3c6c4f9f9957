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

from ptycho_torch.models.input_lift import backproject_pattern, inpaint_masked
from ptycho_torch.models.model import PtychoModel
from ptycho_torch.physics.batch import Batch
from ptycho_torch.physics.forward import from_patches, shift_probe
from ptycho_torch.physics.noise import compute_noise_floor
from ptycho_torch.physics.overlap import apply_overlap_constraint
from ptycho_torch.physics.probe import compute_power
from ptycho_torch.training.batches import VALIDATION_BATCH_GROUPS, PatternGroups

MIN_EXPLAINED_SHARE = 0.1
"""Share of what an untaught network leaves beyond counting noise that one must explain to have seen anything."""

MAX_NOISE_SHARE = 0.5
"""Share of what an untaught network leaves that may be counting noise. Beyond, its steps of physics draw that noise and
R thanks it for it, so that a good picture may come out worse."""

MAX_UNTRAINED_CORRELATION = 0.9
"""Correlation with the patches of an untaught network from which on nothing has been learned."""

MIN_RELATIVE_SPREAD = 0.25
"""Spread of the patches, as a share of that of the lifted patterns, below which they are called flat."""

MAX_FLAT_NOISE_RATIO = 1.05
"""Difference between the patterns, as a multiple of counting noise, up to which they may be of a flat sample: a
detector adds a little to that noise."""

MIN_SIGNIFICANCE_SIGMA = 3.0
"""Standard deviations of that multiple that must lie between."""

MAX_TEXTURE_PATTERNS = 256
"""Patterns, spread over the scan, that are compared with their mean."""


class CollapseReport(NamedTuple):
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
    def explained_share(self) -> float:
        """Share of what the untaught network leaves beyond counting noise that the network explains: 1 at best."""
        return (self.r_untaught - self.r) / max(self.r_untaught - self.r_floor, 1e-12)

    @property
    def has_texture(self) -> bool:
        """Whether there is something to see beyond counting noise."""
        return self.texture > MAX_FLAT_NOISE_RATIO + MIN_SIGNIFICANCE_SIGMA * self.texture_error

    @property
    def is_flat(self) -> bool:
        """Whether the picture is."""
        return self.spread < MIN_RELATIVE_SPREAD * self.lift_spread

    @property
    def r_is_informative(self) -> bool:
        """Whether R tells how good the network is: not where most of it is noise, and it says something of its own that
        is about as good as what an untaught one says."""
        own = not self.is_flat and self.likeness < MAX_UNTRAINED_CORRELATION
        return not (
            own and self.r_floor > MAX_NOISE_SHARE * self.r_untaught and abs(self.explained_share) < MAX_NOISE_SHARE
        )

    @property
    def is_collapsed(self) -> bool:
        """Whether there is something to see, and the network sees nothing of it."""
        return self.has_texture and self.r_is_informative and self.explained_share < MIN_EXPLAINED_SHARE

    def description(self) -> str:
        """In words."""
        figures = f"R {self.r:.4g}, untaught {self.r_untaught:.4g}, counting noise alone {self.r_floor:.4g}"
        if not self.has_texture:
            return f"the sample is flat, as far as counting noise lets one see ({figures})"
        if not self.r_is_informative and self.explained_share < MIN_EXPLAINED_SHARE:
            return f"so few photons do not tell whether the network sees the sample ({figures})"
        if not self.is_collapsed:
            return f"the network sees the sample ({figures})"
        seen = "is flat" if self.is_flat else "explains the patterns no better than an untaught network's"
        varying = f"its patches vary by {self.spread:.2g}, lifted patterns by {self.lift_spread:.2g}"
        return f"the picture {seen} ({figures}; {varying})"


@torch.no_grad()
def check_collapse(model: PtychoModel, patterns: PatternGroups) -> CollapseReport:
    """Judge ``model`` on ``patterns``, by its own probe or theirs."""
    probe = model.probes[patterns.scan.scan_index] if patterns.probe is None else patterns.probe
    sums = torch.zeros(12, dtype=torch.float64)
    for _, indices in patterns.batches(VALIDATION_BATCH_GROUPS, 1, np.random.default_rng(0)):
        sums += _compute_sums(model, patterns.scan.take(indices.to(probe.device)), patterns.probe, probe)
    texture, texture_error = _measure_texture(patterns.scan)
    error, floor, photons, overlap, power, spread, mean, lift_spread, lift_mean, *correlation_sums = sums.tolist()
    return CollapseReport(
        r=error / photons,
        r_untaught=1 - overlap**2 / max(power, 1e-30) / photons,
        r_floor=floor / photons,
        spread=(spread / max(mean, 1e-30)) ** 0.5,
        lift_spread=(lift_spread / max(lift_mean, 1e-30)) ** 0.5,
        likeness=math.hypot(*correlation_sums[:2]) / max(spread * correlation_sums[2], 1e-30) ** 0.5,
        texture=texture,
        texture_error=texture_error,
    )


def _compute_sums(model: PtychoModel, batch: Batch, own: Tensor | None, probe: Tensor) -> Tensor:
    """What :func:`check_collapse` adds up over the batches, (12,) float64 on the CPU."""
    found = model.forward_details(batch, own)
    rates, measured = found.fields.intensity, batch.amplitudes
    weights = compute_power(found.probes)
    untrained = model.network.predict_untrained(
        inpaint_masked(measured, batch.mask, found.probes), found.probes, batch.mask
    )
    flat = from_patches(apply_overlap_constraint(untrained, weights, batch.corners), found.probes).intensity.sqrt()
    counted = torch.ones_like(measured, dtype=torch.bool) if batch.mask is None else batch.mask.expand_as(measured)
    maps = (
        (rates.sqrt() - measured).square(),
        compute_noise_floor(rates),
        batch.counts,
        measured * flat,
        flat.square(),
    )
    over_pixels = [torch.where(counted, values.double(), 0.0).sum() for values in maps]
    lifted = backproject_pattern(measured, shift_probe(probe, batch.fractions))
    share = (weights / weights.sum((-2, -1), keepdim=True)).double()
    spreads = [part for patches in (found.patches, lifted) for part in _compute_spread(patches, share)]
    one, other = (patches - _compute_mean(patches, share) for patches in (found.patches, untrained))
    common = (share * one * other.conj()).sum()
    return torch.stack([*over_pixels, *spreads, common.real, common.imag, _compute_spread(untrained, share)[0]]).cpu()


def _compute_spread(patches: Tensor, share: Tensor) -> tuple[Tensor, Tensor]:
    """Variance of each patch about its own mean, and that mean's squared modulus, both summed; ``share`` adds to 1."""
    mean = _compute_mean(patches, share)
    variance = (share * (patches - mean).abs().square()).sum()
    return variance, mean.abs().square().sum()


def _compute_mean(patches: Tensor, share: Tensor) -> Tensor:
    """(n, 1, 1): the mean of each patch over the light."""
    return (share * patches).sum((-2, -1), keepdim=True)


def _measure_texture(scan: Batch) -> tuple[float, float]:
    """How much the patterns of a scan differ in shape, over counting noise of equal ones; and the error.

    Each may have a brightness of its own, since sources fluctuate. Of one pattern alone nothing can be said: then 1.
    """
    n = len(scan.amplitudes)
    chosen = torch.linspace(0, n - 1, min(MAX_TEXTURE_PATTERNS, n), device=scan.amplitudes.device).round().long()
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
    floor = float((counted * compute_noise_floor(modelled.square())).sum(dtype=torch.float64).clamp_min(1e-30))
    # √k has variance ¼ where there are photons, and its square error a relative deviation of √2.
    deviation = (2 / max(4 * floor, 1.0)) ** 0.5
    return float(error) / floor * len(chosen) / (len(chosen) - 1), deviation
