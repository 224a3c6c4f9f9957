"""Two halves of a scan: their positions, and the correlation of their reconstructions after the free differences."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from scipy.spatial import cKDTree

from ptycho_torch.core.errors import DataError
from ptycho_torch.data.geometry import Geometry
from ptycho_torch.data.reconstruction import Reconstruction
from ptycho_torch.data.scan import Scan
from ptycho_torch.evaluation.half_split import correlate_half_scans, split_half_indices


@pytest.fixture(scope="module")
def whole(simulated_case: Any) -> Reconstruction:
    reconstruction: Reconstruction = simulated_case.reconstruction
    return reconstruction


@pytest.mark.parametrize("n", [2, 81, 99])
def test_halves_are_disjoint_equal_in_size_and_reproducible(scan_factory: Callable[..., Scan], n: int) -> None:
    positions = scan_factory(n=n).positions
    first, second = split_half_indices(positions, np.random.default_rng(0))
    np.testing.assert_array_equal(np.sort(np.concatenate([first, second])), np.arange(n))
    assert 0 <= len(first) - len(second) <= 1
    again, _ = split_half_indices(positions, np.random.default_rng(0))
    assert (first == again).all()
    if n > 2:
        other, _ = split_half_indices(positions, np.random.default_rng(1))
        assert len(other) != len(first) or (other != first).any()


@pytest.mark.parametrize("seed", range(8))
def test_each_half_covers_the_field(scan_factory: Callable[..., Scan], seed: int) -> None:
    positions = scan_factory(n=196).positions  # about 4 pixels apart; halves drawn freely have holes of up to 9
    for half in split_half_indices(positions, np.random.default_rng(seed)):
        distances, _ = cKDTree(positions[half]).query(positions)
        assert distances.max() < 7.5


def test_a_reconstruction_agrees_with_itself(whole: Reconstruction) -> None:
    result = correlate_half_scans(whole, whole)
    np.testing.assert_allclose(result.frc.correlation, 1, atol=1e-3)
    assert result.frc.crossing is None
    assert np.abs(result.shift).max() < 1e-3
    assert result.to_metrics()["half_scan_resolution_pixels"] is None


def test_factor_ramp_and_shift_have_no_effect(
    whole: Reconstruction, simulated_case: Any, sample_object: Callable[..., Any]
) -> None:
    rows, columns = (start + np.arange(n) for start, n in zip(whole.origin_yx, whole.object.shape, strict=True))
    moved = sample_object(rows + 0.4, columns - 0.7)
    rotated = moved * 1.7 * np.exp(1j * (2 + 0.03 * rows[:, None] - 0.02 * columns))
    result = correlate_half_scans(whole, replace(whole, object=rotated.astype(np.complex64)))
    assert result.shift == pytest.approx((0.4, -0.7), abs=0.02)
    bright = result.frc.frequency < 0.2  # where the object has its periods
    assert result.frc.correlation[bright].min() > 0.98


@pytest.mark.parametrize("cutoff", [0.15, 0.3])
def test_the_crossing_is_the_frequency_above_which_the_halves_differ(whole: Reconstruction, cutoff: float) -> None:
    rng = np.random.default_rng(0)
    shape = whole.object.shape
    radius = np.hypot(np.fft.fftfreq(shape[0])[:, None], np.fft.fftfreq(shape[1]))
    common, *own = (np.fft.fft2(rng.normal(size=(2, *shape)).T @ [1, 1j], axes=(0, 1)).T for _ in range(3))
    halves = [
        replace(whole, object=(1 + 0.1 * np.fft.ifft2(np.where(radius < cutoff, common, noise))).astype(np.complex64))
        for noise in own
    ]
    geometry = Geometry(object_pixel_m=(2e-8, 2e-8))
    result = correlate_half_scans(*(replace(half, geometry=geometry) for half in halves))
    metrics = result.to_metrics()
    assert metrics["half_scan_crossing_cycles_per_pixel"] == pytest.approx(cutoff, abs=0.04)
    assert metrics["half_scan_fixed_crossing_cycles_per_pixel"] == pytest.approx(cutoff, abs=0.04)
    assert metrics["half_scan_resolution_pixels"] == pytest.approx(0.5 / cutoff, rel=0.2)
    assert metrics["half_scan_resolution_nm"] == pytest.approx(metrics["half_scan_resolution_pixels"] * 20)


def test_different_canvases_and_sparse_scans_raise(whole: Reconstruction) -> None:
    with pytest.raises(DataError, match="expected the same"):
        correlate_half_scans(whole, replace(whole, origin_yx=whole.origin_yx + 1))
    coverage = np.zeros_like(whole.coverage)
    coverage[20:24] = 1
    with pytest.raises(DataError, match="too sparse"):
        correlate_half_scans(whole, replace(whole, coverage=coverage))
