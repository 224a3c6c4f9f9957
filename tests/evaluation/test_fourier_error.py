"""R: zero at the true object without noise, the noise floor with noise, and large for a wrong object."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from ptycho_torch.core.errors import DataError
from ptycho_torch.evaluation.fourier_error import (
    FourierError,
    compute_fourier_error,
    compute_measured_photons,
    predict_photons,
)

Change = Callable[[NDArray[Any]], NDArray[Any]]


def evaluate(case: Any, **options: Any) -> FourierError:
    return compute_fourier_error(
        case.reconstruction, case.scan, photons_per_unit=case.reconstruction.photons_per_unit, **options
    )


@pytest.mark.parametrize(("size", "modes"), [(24, 1), (24, 3), (15, 1)])
def test_the_true_object_explains_noiseless_patterns(case_factory: Callable[..., Any], size: int, modes: int) -> None:
    result = evaluate(case_factory(size=size, modes=modes))
    assert result.r < 1e-10
    assert result.loss < 1e-6
    assert result.skipped == 0
    assert result.photons_per_pattern == pytest.approx(1e5 * 0.65, rel=0.2)


@pytest.mark.parametrize("photons", [200, 1e4, 1e6])
def test_the_true_object_reaches_the_noise_floor(case_factory: Callable[..., Any], photons: float) -> None:
    result = evaluate(case_factory(photons=photons, noise=True))
    assert result.r == pytest.approx(result.r_floor, rel=0.03)


def test_at_low_dose_the_floor_is_not_a_quarter_per_pixel(case_factory: Callable[..., Any]) -> None:
    case = case_factory(photons=200, noise=True)
    result = evaluate(case)
    assert result.r_floor < 0.75 * 0.25 * case.scan.size**2 / result.photons_per_pattern


@pytest.mark.parametrize(
    "change",
    [
        lambda obj: obj.conj(),
        lambda obj: obj[::-1],
        lambda obj: obj[:, ::-1],
        lambda obj: np.roll(obj, 1, axis=0),
        lambda obj: np.roll(obj, -1, axis=1),
        np.abs,
        np.ones_like,
    ],
    ids=["conjugate", "rows reversed", "columns reversed", "one row off", "one column off", "no phase", "flat"],
)
def test_a_wrong_object_is_far_from_the_patterns(simulated_case: Any, change: Change) -> None:
    wrong = np.ascontiguousarray(change(simulated_case.reconstruction.object), np.complex64)
    assert (
        evaluate(simulated_case._replace(reconstruction=replace(simulated_case.reconstruction, object=wrong))).r > 0.01
    )


def test_a_global_phase_changes_nothing(simulated_case: Any) -> None:
    rotated = replace(
        simulated_case.reconstruction, object=simulated_case.reconstruction.object * np.complex64(np.exp(2j))
    )
    assert evaluate(simulated_case._replace(reconstruction=rotated)).r < 1e-10


def test_the_unit_of_the_file_changes_nothing(case_factory: Callable[..., Any]) -> None:
    case = case_factory(photons=1e4, noise=True)
    unit = case.reconstruction.photons_per_unit
    scan = replace(case.scan, amplitudes=case.scan.amplitudes * np.float32(3))
    other = compute_fourier_error(case.reconstruction, scan, photons_per_unit=unit / 9)
    assert other.r == pytest.approx(evaluate(case).r, rel=1e-5)
    assert other.photons_per_pattern == pytest.approx(evaluate(case).photons_per_pattern, rel=1e-5)


@pytest.mark.parametrize("per_pattern", [False, True], ids=["one mask", "one mask per pattern"])
def test_masked_pixels_do_not_count(case_factory: Callable[..., Any], per_pattern: bool) -> None:
    case = case_factory(photons=1e4, noise=True)
    count, size, _ = case.scan.amplitudes.shape
    mask = np.random.default_rng(0).random((count, size, size) if per_pattern else (size, size)) > 0.2
    clean = evaluate(case._replace(scan=replace(case.scan, mask=mask)))
    for junk in (np.nan, 1e6, 0.0):
        amplitudes = np.where(mask, case.scan.amplitudes, np.float32(junk))
        result = evaluate(case._replace(scan=replace(case.scan, amplitudes=amplitudes, mask=mask)))
        assert result[:3] == clean[:3]
    counted = np.sum(case.scan.amplitudes**2 * mask, dtype=np.float64) * case.reconstruction.photons_per_unit
    assert clean.photons_per_pattern * count == pytest.approx(counted, rel=1e-5)


def test_a_subset_of_the_patterns_has_the_same_values(case_factory: Callable[..., Any]) -> None:
    case = case_factory(photons=1e4, noise=True)
    everything, chosen = evaluate(case), np.array([80, 3, 17])
    result = evaluate(case, indices=chosen)
    np.testing.assert_array_equal(result.indices, chosen)
    np.testing.assert_allclose(result.per_pattern, everything.per_pattern[chosen], rtol=1e-5)
    photons = np.sum(case.scan.amplitudes[chosen].astype(float) ** 2, axis=(1, 2))
    assert result.r == pytest.approx(np.sum(result.per_pattern * photons) / photons.sum(), rel=1e-5)


def test_patterns_outside_the_canvas_are_skipped_and_counted(simulated_case: Any) -> None:
    rec = simulated_case.reconstruction
    lower = rec.origin_yx + np.array([6, 0])
    cut = replace(rec, object=rec.object[6:], coverage=rec.coverage[6:], origin_yx=lower)
    result = evaluate(simulated_case._replace(reconstruction=cut))
    corners = np.floor(simulated_case.scan.positions[:, 0] - simulated_case.scan.size // 2 + 0.5)
    outside = corners < cut.origin_yx[0]
    assert 0 < result.skipped == outside.sum()
    np.testing.assert_array_equal(result.indices, np.flatnonzero(~outside))
    assert result.r < 1e-10


def test_r_of_a_pattern_without_photons_is_nan(simulated_case: Any) -> None:
    amplitudes = simulated_case.scan.amplitudes.copy()
    amplitudes[4] = 0
    result = evaluate(simulated_case._replace(scan=replace(simulated_case.scan, amplitudes=amplitudes)))
    assert np.flatnonzero(np.isnan(result.per_pattern)).tolist() == [4]
    assert np.isfinite(result.r)


def test_measurement_and_model_have_the_same_origin(simulated_case: Any) -> None:
    indices = np.array([0, 44])
    model = predict_photons(simulated_case.reconstruction, simulated_case.scan.positions[indices])
    counts = compute_measured_photons(simulated_case.scan, indices, simulated_case.reconstruction.photons_per_unit)
    np.testing.assert_allclose(model.numpy(), counts.numpy(), rtol=2e-4, atol=1e-2)


def test_a_scan_that_does_not_fit_the_reconstruction_raises(
    simulated_case: Any, case_factory: Callable[..., Any]
) -> None:
    with pytest.raises(DataError, match=r"patterns are 15 × 15 pixels.*is 24 × 24"):
        evaluate(simulated_case._replace(scan=case_factory(size=15).scan))
    far = replace(simulated_case.reconstruction, origin_yx=simulated_case.reconstruction.origin_yx + 500)
    with pytest.raises(DataError, match="none of the 90 patterns"):
        evaluate(simulated_case._replace(reconstruction=far))
    amplitudes = simulated_case.scan.amplitudes.copy()
    amplitudes[3] = 0
    dark = replace(simulated_case.scan, amplitudes=amplitudes)
    with pytest.raises(DataError, match="have 0 photons"):
        evaluate(simulated_case._replace(scan=dark), indices=np.array([3]))
