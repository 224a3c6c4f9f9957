"""The deviance that counting noise alone leaves, against its sum over all counts."""

import numpy as np
import pytest
import torch
from scipy.stats import poisson

from ptycho_torch.physics.noise import Poisson, compute_deviance_floor


@pytest.mark.parametrize("rate", [0.001, 0.033, 0.5, 1.0, 2.7, 10.0, 49.9, 50.1, 300.0, 1e4])
def test_it_is_the_poisson_expectation(rate: float) -> None:
    spread = 12 * np.sqrt(rate) + 40
    counts = np.arange(max(0, int(rate - spread)), int(rate + spread)).astype(float)
    deviance = Poisson().deviance(torch.tensor(rate, dtype=torch.float64), torch.from_numpy(counts)).numpy()
    expected = float((poisson.pmf(counts, rate) * deviance).sum())
    assert compute_deviance_floor(torch.tensor([rate])).item() == pytest.approx(expected, rel=1e-3, abs=1e-5)


def test_it_is_a_half_for_bright_pixels_and_nothing_for_dark_ones() -> None:
    found = compute_deviance_floor(torch.tensor([[0.0, 1e6]]))
    assert found.shape == (1, 2)
    assert found[0].tolist() == pytest.approx([0, 0.5], abs=1e-5)
