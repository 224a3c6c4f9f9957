"""Calibration of an estimated uncertainty: the share of pixels with an error within k standard deviations."""

import math
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ptycho_torch.data.reconstruction import Reconstruction
from ptycho_torch.evaluation.metrics import TruthComparison

SIGMA_MULTIPLES = (0.5, 1.0, 1.5, 2.0, 3.0)
"""k: standard deviations."""


class UncertaintyCalibration(NamedTuple):
    """An estimated uncertainty and the true error, over the covered region."""

    uncertainty: NDArray[np.float64]
    """(rows, columns) of the comparison, in units of the truth."""

    error: NDArray[np.float64]
    """(rows, columns): \\|reconstruction − truth\\| after the comparison's alignment."""

    shares: tuple[float, ...]
    """Share of the pixels with error ≤ k · uncertainty, for each k of :data:`SIGMA_MULTIPLES`."""

    rank_correlation: float
    """Spearman's, of the uncertainty with the error; NaN where one of them is constant."""

    def to_metrics(self) -> dict[str, Any]:
        """Return the numbers by the names that ``metrics.json`` uses."""
        return {
            "uncertainty_shares": list(self.shares),
            "uncertainty_expected_shares": list(compute_expected_shares()),
            "uncertainty_rank_correlation": self.rank_correlation,
        }


def compute_expected_shares(multiples: tuple[float, ...] = SIGMA_MULTIPLES) -> tuple[float, ...]:
    """Return 1 − exp(−k²), the shares of complex Gaussian errors with E|e|² = σ²."""
    return tuple(1 - math.exp(-(k**2)) for k in multiples)


def compute_calibration(reconstruction: Reconstruction, comparison: TruthComparison) -> UncertaintyCalibration | None:
    """Compare the uncertainty of ``reconstruction`` with its error in ``comparison``; None without an uncertainty."""
    if reconstruction.uncertainty is None:
        return None
    pair, alignment = comparison.overlap_region, comparison.alignment
    top, left = pair.origin_yx - reconstruction.origin_yx
    height, width = pair.truth.shape
    cut = np.asarray(reconstruction.uncertainty[top : top + height, left : left + width], np.float64)
    uncertainty, error = cut * abs(alignment.scale), np.abs(alignment.object - pair.truth)
    estimated, actual = uncertainty[pair.region], error[pair.region]
    shares = tuple(float(np.mean(actual <= k * estimated)) for k in SIGMA_MULTIPLES)
    return UncertaintyCalibration(uncertainty, error, shares, _compute_rank_correlation(estimated, actual))


def _compute_rank_correlation(first: NDArray[np.float64], second: NDArray[np.float64]) -> float:
    from scipy.stats import spearmanr

    if np.ptp(first) == 0 or np.ptp(second) == 0:
        return math.nan
    return float(spearmanr(first, second)[0])
