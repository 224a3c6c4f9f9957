"""Patterns that the estimate does not explain, found from their residuals during a run."""

from typing import NamedTuple

import torch
from torch import Tensor

from ptycho_torch.engines.measurement_model import ProbeObjectView
from ptycho_torch.engines.state import Measurement, ReconstructionState
from ptycho_torch.physics.forward import from_patches

MAX_RELATIVE_ERROR = 0.1
"""Error of a pattern over its measured or predicted photons above which the pattern may be an outlier."""

MAX_ERROR_RATIO = 10.0
"""Error of a pattern over the median error above which the pattern may be an outlier."""

MAX_CONVERGED_ERROR = 0.04
"""Median of the relative errors above which the estimate is too rough to judge patterns."""

MAX_TOTAL_RATIO = 2.0
"""Ratio of measured and predicted photons above which a pattern is no misplaced one, while positions are refined."""

MAX_EXCLUDED_FRACTION = 0.3
"""Fraction of the patterns above which the estimate is wrong rather than the patterns."""


class PatternErrors(NamedTuple):
    """Misfit of each pattern, (n,) float64 on the CPU."""

    squared_error: Tensor
    """Σ (√rate − √count)² over the pixels that count."""

    measured: Tensor
    """Σ count."""

    predicted: Tensor
    """Σ rate."""


@torch.no_grad()
def compute_pattern_errors(measurement: Measurement, state: ReconstructionState) -> PatternErrors:
    """Compare every pattern with ``state``, in about a third of the time of an epoch."""
    view, sums = ProbeObjectView(state), []
    for indices in torch.arange(len(measurement)).split(64):
        rates = from_patches(view.patches(indices), view.probes(indices), state.background).intensity
        counts, mask = measurement.counts[indices], measurement.select_mask(indices)
        parts = torch.stack([(rates.sqrt() - counts.sqrt()).square(), counts, rates])
        parts = parts if mask is None else torch.where(mask, parts, torch.zeros_like(parts))
        sums.append(parts.sum((-2, -1), dtype=torch.float64).cpu())
    return PatternErrors(*torch.cat(sums, 1))


def find_unexplained(errors: PatternErrors, positions_move: bool) -> Tensor | None:
    """Return True for the patterns that the estimate does not explain, (n,) bool; None if it explains too few.

    Args:
        errors: misfit of each pattern.
        positions_move: whether positions are refined; a misplaced pattern is no outlier then.
    """
    larger = torch.maximum(errors.measured, errors.predicted).clamp_min(1e-30)
    relative = errors.squared_error / larger
    if not bool(torch.isfinite(relative).all()) or float(relative.median()) > MAX_CONVERGED_ERROR:
        return None
    outlier = (relative > MAX_RELATIVE_ERROR) & (errors.squared_error > MAX_ERROR_RATIO * errors.squared_error.median())
    if positions_move:
        outlier &= larger > MAX_TOTAL_RATIO * torch.minimum(errors.measured, errors.predicted)
    return outlier if float(outlier.double().mean()) <= MAX_EXCLUDED_FRACTION else None
