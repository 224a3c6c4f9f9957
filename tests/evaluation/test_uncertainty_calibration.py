"""Calibration: a true standard deviation gives the shares of complex Gaussian errors, in any unit and on any frame."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from ptycho_torch.evaluation.metrics import compare_with_truth
from ptycho_torch.evaluation.uncertainty_calibration import compute_calibration, compute_expected_shares


@pytest.mark.parametrize("factor", [1.0, 0.5, 3j])
@pytest.mark.parametrize("stated", [0.5, 1.0, 2.0])
def test_a_true_standard_deviation_gives_the_expected_shares(
    simulated_case: Any, factor: complex, stated: float
) -> None:
    rec = simulated_case.reconstruction
    rng = np.random.default_rng(0)
    sigma = np.exp(rng.uniform(-6, -4, rec.object.shape))
    noise = (rng.normal(size=sigma.shape) + 1j * rng.normal(size=sigma.shape)) * sigma / np.sqrt(2)
    noisy = replace(
        rec,
        object=(factor * (rec.object + noise)).astype(np.complex64),
        uncertainty=(stated * abs(factor) * sigma).astype(np.float32),
    )
    found = compute_calibration(noisy, compare_with_truth(noisy, simulated_case.truth))
    assert found is not None
    expected = compute_expected_shares(tuple(stated * k for k in (0.5, 1.0, 1.5, 2.0, 3.0)))
    np.testing.assert_allclose(found.shares, expected, atol=0.03)
    assert found.rank_correlation > 0.4


def test_nothing_stated_is_nothing_judged(simulated_case: Any) -> None:
    assert (
        compute_calibration(
            simulated_case.reconstruction, compare_with_truth(simulated_case.reconstruction, simulated_case.truth)
        )
        is None
    )
