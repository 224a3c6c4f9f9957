"""Two halves of a scan: what may differ between them is removed, and what is left is their agreement."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from ptycho_torch.core.errors import DataError
from ptycho_torch.data.reconstruction import Reconstruction
from ptycho_torch.evaluation.half_split import correlate_half_scans, read_pixel_size


@pytest.fixture(scope="module")
def whole(simulated_case: Any) -> Reconstruction:
    reconstruction: Reconstruction = simulated_case.reconstruction
    return reconstruction


def test_a_reconstruction_agrees_with_itself(whole: Reconstruction) -> None:
    found = correlate_half_scans(whole, whole)
    np.testing.assert_allclose(found.frc.correlation, 1, atol=1e-3)
    assert found.frc.crossing is None
    assert np.abs(found.shift).max() < 1e-3
    assert found.to_metrics()["half_scan_resolution_pixels"] is None


def test_factor_ramp_and_shift_do_not_count(
    whole: Reconstruction, simulated_case: Any, sample_object: Callable[..., Any]
) -> None:
    rows, columns = (start + np.arange(n) for start, n in zip(whole.origin_yx, whole.object.shape, strict=True))
    moved = sample_object(rows + 0.4, columns - 0.7)
    turned = moved * 1.7 * np.exp(1j * (2 + 0.03 * rows[:, None] - 0.02 * columns))
    found = correlate_half_scans(whole, replace(whole, object=turned.astype(np.complex64)))
    assert found.shift == pytest.approx((0.4, -0.7), abs=0.02)
    bright = found.frc.frequency < 0.2  # where the object has its periods
    assert found.frc.correlation[bright].min() > 0.98


@pytest.mark.parametrize("cutoff", [0.15, 0.3])
def test_the_crossings_are_where_the_halves_begin_to_differ(whole: Reconstruction, cutoff: float) -> None:
    rng = np.random.default_rng(0)
    shape = whole.object.shape
    radius = np.hypot(np.fft.fftfreq(shape[0])[:, None], np.fft.fftfreq(shape[1]))
    common, *own = (np.fft.fft2(rng.normal(size=(2, *shape)).T @ [1, 1j], axes=(0, 1)).T for _ in range(3))
    halves = [
        replace(whole, object=(1 + 0.1 * np.fft.ifft2(np.where(radius < cutoff, common, noise))).astype(np.complex64))
        for noise in own
    ]
    found = correlate_half_scans(*halves, pixel_size=2e-8)
    figures = found.to_metrics()
    assert figures["half_scan_crossing_cycles_per_pixel"] == pytest.approx(cutoff, abs=0.04)
    assert figures["half_scan_fixed_crossing_cycles_per_pixel"] == pytest.approx(cutoff, abs=0.04)
    assert figures["half_scan_resolution_pixels"] == pytest.approx(0.5 / cutoff, rel=0.2)
    assert figures["half_scan_resolution_nm"] == pytest.approx(figures["half_scan_resolution_pixels"] * 20)


def test_other_canvases_and_sparse_scans_are_refused(whole: Reconstruction) -> None:
    with pytest.raises(DataError, match="expected the same"):
        correlate_half_scans(whole, replace(whole, origin_yx=whole.origin_yx + 1))
    coverage = np.zeros_like(whole.coverage)
    coverage[20:24] = 1
    with pytest.raises(DataError, match="too sparse"):
        correlate_half_scans(whole, replace(whole, coverage=coverage))


@pytest.mark.parametrize(
    ("metadata", "expected"),
    [
        ({"pixel_size": 3e-8}, 3e-8),
        ({"converted": {"pixel_size": 5e-9}}, 5e-9),
        ({"converted": {"pixel_size": None}}, None),
        ({"pixel_size": "large", "converted": "yes"}, None),
        ({"pixel_size": 0}, None),
        ({}, None),
    ],
)
def test_the_pixel_size_is_that_of_the_metadata(
    simulated_case: Any, metadata: dict[str, Any], expected: float | None
) -> None:
    assert read_pixel_size(replace(simulated_case.scan, metadata=metadata)) == expected
