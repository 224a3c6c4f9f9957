"""Zero frequency is found to 0.1 pixel with the probe, and not at all where the pattern does not determine it."""

from typing import Any

import numpy as np
import pytest

import ptycho_torch as pt
from ptycho_torch.data.beam_center import estimate_center

Array = np.ndarray[Any, Any]
SHIFTS = [(0, 0), (1, 0), (2, -2), (10, -7)]


def make_mean_pattern(probe: str, seed: int = 0) -> tuple[Array, Array]:
    """Return the mean counts of a simulated scan, and its probe."""
    scan = pt.simulate_scan("tiny", probe=probe, object="photographs", size=64, photons=1e5, seed=seed)
    return np.square(scan.amplitudes, dtype=np.float64).mean(0), scan.probe


@pytest.fixture(scope="module", params=["structured", "zernike", "speckle", "zone_plate"])
def mean_and_probe(request: pytest.FixtureRequest) -> tuple[Array, Array]:
    return make_mean_pattern(request.param)


@pytest.mark.parametrize("shift", SHIFTS)
def test_probe_determines_the_center(mean_and_probe: tuple[Array, Array], shift: tuple[int, int]) -> None:
    mean, probe = mean_and_probe
    estimate = estimate_center(np.roll(mean, shift, (0, 1)), probe=probe)
    expected = (32 + shift[0], 32 + shift[1])
    assert estimate.method == "probe"
    assert estimate[:2] == pytest.approx(expected, abs=0.1)


def test_masked_gaps_do_not_move_the_center() -> None:
    mean, probe = make_mean_pattern("structured")
    mask = np.ones((64, 64), bool)
    mask[35:38] = mask[:, 40:42] = False
    damaged = np.where(mask, np.roll(mean, (3, 2), (0, 1)), np.nan)
    for given in (probe, None):
        assert estimate_center(damaged, mask, given)[:2] == pytest.approx((35, 34), abs=0.15)


def test_center_of_a_symmetric_far_field_needs_no_probe() -> None:
    mean, probe = make_mean_pattern("structured")
    frame = np.pad(mean, ((30, 0), (4, 40)))[5:]
    estimate = estimate_center(frame)
    assert estimate.method == "symmetry"
    assert estimate[:2] == pytest.approx((57, 36), abs=0.15)
    assert estimate_center(frame, probe=probe)[:2] == pytest.approx((57, 36), abs=0.1)


def test_uncertainty_covers_the_error_for_far_fields_without_symmetry() -> None:
    for name in ("zernike", "speckle", "zone_plate"):
        mean, _ = make_mean_pattern(name)
        estimate = estimate_center(mean)
        assert np.hypot(estimate.row - 32, estimate.column - 32) <= 3 * estimate.uncertainty


@pytest.mark.parametrize(
    "pattern",
    [np.zeros((32, 32)), np.ones((32, 32)), np.full((32, 32), np.nan)],
    ids=["zero", "uniform", "not finite"],
)
def test_pattern_without_structure_has_no_center(pattern: Array) -> None:
    estimate = estimate_center(pattern)
    assert not estimate.decided
    assert estimate[:2] == (16, 16)
