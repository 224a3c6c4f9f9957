"""Metrics: equal to values computed by hand, and invariant to exactly the ambiguities that they remove."""

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from ptycho_torch.evaluation.alignment import apply_phase_ramp, compute_covered_region
from ptycho_torch.evaluation.metrics import (
    TruthComparison,
    compare_with_truth,
    compute_nrmse,
    compute_psnr,
    compute_ssim,
)

EVERYWHERE = np.ones((20, 30), bool)


def compared(known: Any, obj: NDArray[Any], **asked: bool) -> TruthComparison:
    return compare_with_truth(replace(known.reconstruction, object=obj.astype(np.complex64)), known.truth, **asked)


def is_perfect(found: TruthComparison) -> bool:
    """To float32, in every figure."""
    return (
        max(found.nrmse, found.nrmse_scanned_box, found.phase_mae) < 1e-5
        and found.amplitude_psnr > 90
        and min(found.amplitude_ssim, found.phase_ssim) > 1 - 1e-5
        and found.frc is not None
        and found.frc.crossing is None
        and bool((found.frc.correlation > 1 - 1e-4).all())
    )


@pytest.mark.parametrize("factor", [1, -1, 0.003j, 40 * np.exp(0.7j)])
def test_the_truth_times_a_factor_is_perfect(simulated_case: Any, factor: complex) -> None:
    found = compared(simulated_case, factor * simulated_case.reconstruction.object)
    assert is_perfect(found)
    assert found.to_metrics()["removed_scale"] == pytest.approx(1 / abs(factor), rel=1e-5)


def test_a_ramp_counts_unless_it_is_removed(simulated_case: Any) -> None:
    tilted = apply_phase_ramp(simulated_case.reconstruction.object, np.array([0.04, -0.02]))
    assert is_perfect(compared(simulated_case, tilted, remove_ramp=True))
    assert compared(simulated_case, tilted).nrmse > 0.2


def test_a_shift_counts_unless_it_is_removed(simulated_case: Any, sample_object: Callable[..., Any]) -> None:
    rows, columns = (
        start + np.arange(n)
        for start, n in zip(
            simulated_case.reconstruction.origin_yx, simulated_case.reconstruction.object.shape, strict=True
        )
    )
    moved = sample_object(rows + 0.8, columns - 1.3)
    found, left = compared(simulated_case, moved, remove_shift=True), compared(simulated_case, moved)
    assert found.nrmse < 0.02 < 0.2 < left.nrmse
    assert found.phase_mae < 0.02 < 0.2 < left.phase_mae
    np.testing.assert_allclose(found.to_metrics()["removed_shift_pixels"], [0.8, -1.3], atol=0.02)
    assert left.to_metrics()["removed_shift_pixels"] == [0, 0]


@pytest.mark.parametrize("value", [1, 0.2j, -30])
def test_a_flat_image_scores_badly_in_every_metric(simulated_case: Any, value: complex) -> None:
    found = compared(simulated_case, np.full(simulated_case.reconstruction.object.shape, value))
    assert min(found.nrmse, found.nrmse_scanned_box) > 0.3
    assert found.amplitude_psnr < 15
    assert found.phase_mae > 0.3
    assert max(found.amplitude_ssim, found.phase_ssim) < 0.3
    assert found.frc is not None
    assert found.frc.crossing == 0
    assert found.frc.resolution is None


def test_an_object_of_zeros_has_an_nrmse_of_one(simulated_case: Any) -> None:
    found = compared(simulated_case, 0 * simulated_case.reconstruction.object)
    assert found.nrmse == pytest.approx(1)
    assert found.frc is not None
    assert found.frc.crossing == 0


def test_pixels_outside_the_covered_region_do_not_count(simulated_case: Any) -> None:
    outside = ~compute_covered_region(simulated_case.reconstruction)
    assert outside.any()
    assert is_perfect(compared(simulated_case, np.where(outside, 1e3j, simulated_case.reconstruction.object)))


def test_the_scanned_box_lies_between_the_outermost_positions(simulated_case: Any) -> None:
    rec = simulated_case.reconstruction
    rows, columns = (start + np.arange(n) for start, n in zip(rec.origin_yx, rec.object.shape, strict=True))
    low, high = rec.positions.min(0), rec.positions.max(0)
    box = np.outer((rows >= low[0]) & (rows <= high[0]), (columns >= low[1]) & (columns <= high[1]))
    outside = compared(
        simulated_case, np.where(box, 1, 0.3j) * rec.object
    )  # the best factor of the whole is not the box's
    assert outside.nrmse_scanned_box < 1e-6 < 0.1 < outside.nrmse
    inside = compared(simulated_case, np.where(box, 0, rec.object))
    assert inside.nrmse_scanned_box == pytest.approx(1)


def test_the_number_of_compared_pixels(simulated_case: Any) -> None:
    whole = compare_with_truth(simulated_case.reconstruction, simulated_case.truth).to_metrics()["compared_pixels"]
    half = compare_with_truth(simulated_case.reconstruction, simulated_case.truth[:40]).to_metrics()["compared_pixels"]
    assert whole == compute_covered_region(simulated_case.reconstruction).sum()
    assert 0 < half < whole


def test_nrmse_by_hand() -> None:
    truth = np.full((20, 30), 2, np.complex128)
    assert compute_nrmse(truth * 1.5, truth, EVERYWHERE) == pytest.approx(0.5)
    assert compute_nrmse(truth * 1j, truth, EVERYWHERE) == pytest.approx(math.sqrt(2))
    assert math.isnan(compute_nrmse(truth, 0 * truth, EVERYWHERE))
    assert math.isnan(compute_nrmse(truth, truth, ~EVERYWHERE))


@pytest.mark.parametrize("error", [0.1, 0.25])
def test_nrmse_after_the_best_factor_by_hand(simulated_case: Any, error: float) -> None:
    """Truth 1, reconstruction 1 ± e in equal shares: the best factor is 1 / (1 + e²), and e / √(1 + e²) is left."""
    rec = simulated_case.reconstruction
    even = replace(rec, coverage=np.ones_like(rec.coverage))
    sign = np.where(np.arange(rec.object.shape[1]) % 2, 1, -1)
    found = compare_with_truth(
        replace(even, object=np.ones_like(rec.object) * (1 + error * sign).astype(np.complex64)),
        np.ones(simulated_case.truth.shape),
    )
    assert found.nrmse == pytest.approx(error / math.sqrt(1 + error**2), rel=1e-5)


@pytest.mark.parametrize("offset", [0.0, 1.0, 3.1])
@pytest.mark.parametrize("error", [0.2, 1.4])
def test_phase_error_by_hand_and_across_the_branch_cut(simulated_case: Any, offset: float, error: float) -> None:
    """Phase ± e in equal shares of equal modulus: no global phase helps. The cut at ±π is nowhere to be seen."""
    rec = simulated_case.reconstruction
    even = replace(rec, coverage=np.ones_like(rec.coverage))
    truth = np.exp(1j * (np.angle(simulated_case.truth) + offset))
    top, left = rec.origin_yx
    cut = truth[top : top + rec.object.shape[0], left : left + rec.object.shape[1]]
    sign = np.where(np.arange(rec.object.shape[1]) % 2, 1, -1)
    found = compare_with_truth(replace(even, object=(cut * np.exp(1j * error * sign)).astype(np.complex64)), truth)
    assert found.phase_mae == pytest.approx(error, rel=1e-4)


def test_psnr_by_hand() -> None:
    truth = np.zeros((20, 30))
    truth[:, 15:] = 2.0
    assert compute_psnr(truth + 0.2, truth, EVERYWHERE) == pytest.approx(20)
    assert compute_psnr(truth - 0.02, truth, EVERYWHERE) == pytest.approx(40)
    assert compute_psnr(truth, truth, EVERYWHERE) == math.inf
    assert math.isnan(compute_psnr(truth, 0 * truth, EVERYWHERE))
    noisy = truth + 0.2
    noisy[0] = 1e3
    assert compute_psnr(noisy, truth, np.arange(20)[:, None] * np.ones(30) > 0) == pytest.approx(20)


def test_ssim_by_its_definition() -> None:
    """Wang et al. (2004), eq. 13, window by window."""
    rng = np.random.default_rng(0)
    truth = rng.normal(size=(20, 30))
    image = truth + 0.5 * rng.normal(size=(20, 30))
    region = EVERYWHERE.copy()
    region[:4], region[:, 25:] = False, False
    data_range = np.ptp(truth[region])
    c1, c2 = (0.01 * data_range) ** 2, (0.03 * data_range) ** 2
    values = []
    for row in range(4, 20 - 6):
        for column in range(25 - 6):
            a, b = (part[row : row + 7, column : column + 7].ravel() for part in (image, truth))
            covariance = np.cov(a, b)
            luminance = (2 * a.mean() * b.mean() + c1) / (a.mean() ** 2 + b.mean() ** 2 + c1)
            values.append(luminance * (2 * covariance[0, 1] + c2) / (covariance.trace() + c2))
    assert compute_ssim(image, truth, region) == pytest.approx(np.mean(values), rel=1e-10)


def test_ssim_sees_only_windows_inside_the_region() -> None:
    truth = np.random.default_rng(0).normal(size=(20, 30))
    region = EVERYWHERE.copy()
    region[:, 12:] = False
    assert compute_ssim(np.where(region, truth, 1e4), truth, region) == pytest.approx(1, abs=1e-10)
    assert compute_ssim(truth, truth, EVERYWHERE) == pytest.approx(1)
    assert math.isnan(compute_ssim(truth, 0 * truth, EVERYWHERE))
    thin = np.zeros((20, 30), bool)
    thin[3:8] = True
    assert math.isnan(compute_ssim(truth, truth, thin))
