"""Collapse check: whether a trained network reconstructs structure, or returns a constant for every pattern.

The loss of a collapsed network is finite and its history smooth. Only comparisons reveal the collapse: with the best
constant object under the same probe, after the data-consistency steps of an untrained network, and with the variation
of the patterns themselves.
"""

import math
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from ptycho_torch.models.input_lift import backproject_pattern, inpaint_masked
from ptycho_torch.models.model import PtychoModel
from ptycho_torch.physics.batch import Batch
from ptycho_torch.physics.forward import from_patches, shift_probe
from ptycho_torch.physics.noise import sum_amplitude_errors
from ptycho_torch.physics.overlap import apply_overlap_constraint
from ptycho_torch.physics.probe import compute_power
from ptycho_torch.training.batches import VALIDATION_BATCH_GROUPS, PatternGroups

MIN_EXPLAINED_SHARE = 0.1
"""Smallest fraction of the untrained residual beyond counting noise that a network without collapse explains."""

MAX_NOISE_SHARE = 0.5
"""Largest fraction of the untrained network's residual that may be counting noise for R to be informative. Above it,
data-consistency steps fit the noise and lower R without improving the object."""

MAX_UNTRAINED_CORRELATION = 0.9
"""Correlation with the patches of the untrained network above which the network has learned nothing."""

MIN_RELATIVE_SPREAD = 0.25
"""Spread of the patches, as a fraction of the spread of the input lift, below which the object is called constant."""

MAX_FLAT_NOISE_RATIO = 1.05
"""Largest variation between the patterns of a featureless sample, as a multiple of counting noise: a detector adds a
little to the noise."""

MIN_SIGNIFICANCE_SIGMA = 3.0
"""Standard deviations by which the variation between the patterns must exceed this multiple."""

MAX_TEXTURE_PATTERNS = 256
"""Patterns, spread over the scan, that are compared with their mean."""

STORED_NAMES = {"r_untrained": "r_untaught", "untrained_correlation": "likeness"}
"""Names of fields in the provenance of a model that differ from their names here."""


class CollapseReport(NamedTuple):
    """Comparison of a network with an untrained one on validation patterns."""

    r: float
    """R of the network: Σ(√λ − √k)² / Σk over counted pixels."""

    r_untrained: float
    """R of the untrained network: of the best constant object under the same probe, after the data-consistency steps of
    the network."""

    r_floor: float
    """R of counting noise alone at the rates of the network."""

    spread: float
    """Standard deviation of the patches about their means, with the illumination as weight, over the modulus of the
    means."""

    lift_spread: float
    """The same quantity of the input lift, which includes the noise."""

    untrained_correlation: float
    """Correlation of the patches with those of the untrained network, 0 to 1; undefined if these are constant."""

    texture: float
    """Variation between the patterns over counting noise; 1 for a featureless sample under any probe."""

    texture_error: float
    """Standard deviation of ``texture`` for a featureless sample."""

    @property
    def explained_share(self) -> float:
        """Fraction of the untrained network's residual beyond counting noise that the network explains; at best 1."""
        return (self.r_untrained - self.r) / max(self.r_untrained - self.r_floor, 1e-12)

    @property
    def has_texture(self) -> bool:
        """Whether the patterns vary by more than counting noise."""
        return self.texture > MAX_FLAT_NOISE_RATIO + MIN_SIGNIFICANCE_SIGMA * self.texture_error

    @property
    def is_flat(self) -> bool:
        """Whether the patches are nearly constant."""
        return self.spread < MIN_RELATIVE_SPREAD * self.lift_spread

    @property
    def r_is_informative(self) -> bool:
        """Whether R measures the quality of the network.

        It does not if R is mostly noise, and the network differs from the untrained one at about equal R.
        """
        differs = not self.is_flat and self.untrained_correlation < MAX_UNTRAINED_CORRELATION
        is_mostly_noise = self.r_floor > MAX_NOISE_SHARE * self.r_untrained
        return not (differs and is_mostly_noise and abs(self.explained_share) < MAX_NOISE_SHARE)

    @property
    def is_collapsed(self) -> bool:
        """Whether the sample has structure, and the network reconstructs none of it."""
        return self.has_texture and self.r_is_informative and self.explained_share < MIN_EXPLAINED_SHARE

    def description(self) -> str:
        """Return the result as a sentence with its figures."""
        figures = f"R {self.r:.4g}, untrained {self.r_untrained:.4g}, noise floor {self.r_floor:.4g}"
        if not self.has_texture:
            return f"featureless sample within counting noise ({figures})"
        if not self.r_is_informative and self.explained_share < MIN_EXPLAINED_SHARE:
            return f"too few photons to check for collapse ({figures})"
        if not self.is_collapsed:
            return f"no collapse ({figures})"
        reason = (
            "the object is constant"
            if self.is_flat
            else "the object explains the patterns no better than that of an untrained network"
        )
        spreads = f"relative spread of patches {self.spread:.2g}, of the input lift {self.lift_spread:.2g}"
        return f"collapsed: {reason} ({figures}; {spreads})"

    def to_record(self) -> dict[str, Any]:
        """Return the report as the provenance of a model stores it; JSON."""
        figures = {STORED_NAMES.get(name, name): value for name, value in self._asdict().items()}
        return figures | {"collapsed": self.is_collapsed, "told": self.description()}


@torch.no_grad()
def check_collapse(model: PtychoModel, patterns: PatternGroups) -> CollapseReport:
    """Compare ``model`` with an untrained network on ``patterns``.

    Args:
        model: the trained model.
        patterns: validation patterns; their probe, or the probe of the model if they have none, is used.
    """
    probe = model.probes[patterns.scan.scan_index] if patterns.probe is None else patterns.probe
    sums = torch.zeros(12, dtype=torch.float64)
    for _, indices in patterns.batches(VALIDATION_BATCH_GROUPS, 1, np.random.default_rng(0)):
        sums += _compute_sums(model, patterns.scan.take(indices.to(probe.device)), patterns.probe, probe)
    texture, texture_error = _measure_texture(patterns.scan)
    error, floor, photons, overlap, power, spread, mean, lift_spread, lift_mean, *correlation_sums = sums.tolist()
    return CollapseReport(
        r=error / photons,
        r_untrained=1 - overlap**2 / max(power, 1e-30) / photons,
        r_floor=floor / photons,
        spread=(spread / max(mean, 1e-30)) ** 0.5,
        lift_spread=(lift_spread / max(lift_mean, 1e-30)) ** 0.5,
        untrained_correlation=math.hypot(*correlation_sums[:2]) / max(spread * correlation_sums[2], 1e-30) ** 0.5,
        texture=texture,
        texture_error=texture_error,
    )


def _compute_sums(model: PtychoModel, batch: Batch, own: Tensor | None, probe: Tensor) -> Tensor:
    """Return the sums over a batch that :func:`check_collapse` needs, (12,) float64 on the CPU."""
    result = model.forward_details(batch, own)
    rates, measured = result.fields.intensity, batch.amplitudes
    weights = compute_power(result.probes)
    untrained = model.network.predict_untrained(
        inpaint_masked(measured, batch.mask, result.probes), result.probes, batch.mask
    )
    flat = from_patches(apply_overlap_constraint(untrained, weights, batch.corners), result.probes).intensity.sqrt()
    counted = torch.ones_like(measured, dtype=torch.bool) if batch.mask is None else batch.mask.expand_as(measured)
    errors = sum_amplitude_errors(rates, batch.counts, batch.mask)
    over_pixels = [part.sum() for part in (errors.squared_error, errors.expected_squared_error, errors.photons)]
    over_pixels += [torch.where(counted, values.double(), 0.0).sum() for values in (measured * flat, flat.square())]
    lifted = backproject_pattern(measured, shift_probe(probe, batch.fractions))
    share = (weights / weights.sum((-2, -1), keepdim=True)).double()
    spreads = [part for patches in (result.patches, lifted) for part in _compute_spread(patches, share)]
    trained_residual, untrained_residual = (
        patches - _compute_mean(patches, share) for patches in (result.patches, untrained)
    )
    common = (share * trained_residual * untrained_residual.conj()).sum()
    return torch.stack([*over_pixels, *spreads, common.real, common.imag, _compute_spread(untrained, share)[0]]).cpu()


def _compute_spread(patches: Tensor, share: Tensor) -> tuple[Tensor, Tensor]:
    """Return the summed variances of the patches about their means, and the summed squared moduli of the means.

    ``share`` (n, N, N) are weights that sum to 1 per patch.
    """
    mean = _compute_mean(patches, share)
    variance = (share * (patches - mean).abs().square()).sum()
    return variance, mean.abs().square().sum()


def _compute_mean(patches: Tensor, share: Tensor) -> Tensor:
    """Return the weighted mean of each patch, (n, 1, 1)."""
    return (share * patches).sum((-2, -1), keepdim=True)


def _measure_texture(scan: Batch) -> tuple[float, float]:
    """Return the variation in shape between the patterns over counting noise, and its standard deviation.

    Each pattern has a free scale, because the flux of a source fluctuates. For a single pattern the result is 1.
    """
    n = len(scan.amplitudes)
    chosen = torch.linspace(0, n - 1, min(MAX_TEXTURE_PATTERNS, n), device=scan.amplitudes.device).round().long()
    sample = scan.take(chosen)
    if len(chosen) < 2:
        return 1.0, 0.0
    shape = sample.amplitudes.shape
    counted = torch.ones(shape, device=chosen.device) if sample.mask is None else sample.mask.expand(shape).float()
    mean = (sample.counts * counted).sum(0) / counted.sum(0).clamp_min(1)
    expected = mean.sqrt()
    scales = (sample.amplitudes * counted * expected).sum((1, 2)) / (counted * mean).sum((1, 2)).clamp_min(1e-30)
    modeled = scales[:, None, None] * expected
    sums = sum_amplitude_errors(modeled.square(), sample.counts, sample.mask)
    floor = float(sums.expected_squared_error.sum().clamp_min(1e-30))
    # √k has variance ¼ where there are photons, and its square error a relative deviation of √2.
    deviation = (2 / max(4 * floor, 1.0)) ** 0.5
    return float(sums.squared_error.sum()) / floor * len(chosen) / (len(chosen) - 1), deviation
