"""Photon scale: estimated from whole counts, and from nothing else."""

import logging
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ptycho_torch.core.errors import DataError
from ptycho_torch.data.lattice import MAX_SAMPLED_PIXELS, estimate_lattice_factor
from ptycho_torch.data.photons import photon_scale
from ptycho_torch.data.scan import Scan
from ptycho_torch.io.scan import load_scan

Array = np.ndarray[Any, Any]


def expected_counts(photons: float, n: int = 20, size: int = 24) -> Array:
    """Return rates with the dynamic range of diffraction patterns and a mean of ``photons`` per pattern."""
    rng = np.random.default_rng(5)
    axis = np.arange(size) - size // 2
    falloff = 1 / (1 + axis[:, None] ** 2 + 1.3 * axis**2) ** 1.5
    rates = falloff * rng.exponential(1, (n, size, size))
    return rates * (photons / rates.sum((1, 2)).mean())


def scan_of(intensity: Array, **parts: Any) -> Scan:
    amplitudes = np.sqrt(intensity).astype(np.float32)
    probe = np.ones((1, *intensity.shape[1:]), np.complex64)
    return Scan(amplitudes=amplitudes, positions=np.zeros((len(intensity), 2)), probe=probe, **parts)


@pytest.mark.parametrize("factor", [1e-6, 0.003217, 1.0, 4.0, 784.218341, 1.37e5, 1e9])
@pytest.mark.parametrize("photons", [1e2, 1e4, 1e6, 1e8])
def test_factor_is_recovered_from_counts_at_any_dose(factor: float, photons: float) -> None:
    counts = np.random.default_rng(1).poisson(expected_counts(photons))
    scale = photon_scale(scan_of(counts / factor))
    assert scale.origin == "lattice"
    assert scale.photons_per_unit == pytest.approx(factor, rel=1e-6)
    assert scale.photons_per_pattern == pytest.approx(counts.sum((1, 2)).mean(), rel=1e-5)


@pytest.mark.parametrize("photons", [1e2, 1e4, 1e6, 1e8])
def test_noiseless_data_have_no_lattice(photons: float, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING)
    scale = photon_scale(scan_of(expected_counts(photons) / 3.7))
    assert scale.origin == "assumed"
    assert scale.photons_per_pattern == 1e6
    assert len(caplog.records) == 1
    assert "`photons_per_unit`" in caplog.records[0].message


@pytest.mark.parametrize("shape", [(1, 3, 3), (2, 5, 5), (6, 16, 16)])
def test_random_numbers_have_no_lattice(shape: tuple[int, ...]) -> None:
    rng = np.random.default_rng(2)
    draws = (rng.uniform, lambda size: rng.exponential(size=size) ** 3, lambda size: rng.gamma(0.05, size=size))
    for trial in range(90):
        amplitudes = draws[trial % 3](size=shape).astype(np.float32)
        assert estimate_lattice_factor(np.square(amplitudes, dtype=np.float64).reshape(-1)) is None


@pytest.mark.parametrize("mean", [200, 3_000, 20_000])
def test_factor_is_recovered_if_no_count_is_one(mean: int) -> None:
    counts = np.random.default_rng(3).poisson(mean, (10, 16, 16))
    assert photon_scale(scan_of(counts / 3.3)).photons_per_unit == pytest.approx(3.3, rel=1e-5)


def test_factor_is_recovered_if_no_gap_is_one() -> None:
    counts = np.array([[[10, 16], [31, 0]]])
    assert photon_scale(scan_of(counts * 0.25)).photons_per_unit == pytest.approx(4)


def test_integer_factor_is_exact() -> None:
    counts = np.random.default_rng(4).poisson(expected_counts(1e5))
    assert photon_scale(scan_of(counts)).photons_per_unit == 1.0


def test_integer_amplitudes_are_not_counts() -> None:
    assert estimate_lattice_factor(np.arange(200.0) ** 2) is None
    assert estimate_lattice_factor(np.arange(200.0)) == 1.0


def test_single_value_gives_no_lattice() -> None:
    assert photon_scale(scan_of(np.full((3, 4, 4), 0.37))).origin == "assumed"


def test_argument_overrides_metadata_and_metadata_override_lattice() -> None:
    counts = np.random.default_rng(6).poisson(expected_counts(1e3))
    scan = scan_of(counts, photons_per_unit=2.0)
    total = counts.sum((1, 2)).mean()
    given, declared = photon_scale(scan, 5.0), photon_scale(scan)
    assert (given.origin, given.photons_per_unit) == ("given", 5.0)
    assert given.photons_per_pattern == pytest.approx(5 * total, rel=1e-5)
    assert (declared.origin, declared.photons_per_unit) == ("metadata", 2.0)


def test_masked_pixels_are_ignored() -> None:
    counts = np.random.default_rng(7).poisson(expected_counts(1e4)).astype(float)
    mask = np.ones(counts.shape[1:], bool)
    mask[3, 4] = False
    expected = photon_scale(scan_of(np.where(mask, counts, 0) / 9.0))
    counts[:, 3, 4] = np.random.default_rng(8).uniform(0, 1e5, len(counts))
    scale = photon_scale(scan_of(counts / 9.0, mask=mask))
    assert (scale.origin, scale.photons_per_unit) == ("lattice", pytest.approx(9))
    assert scale.photons_per_pattern == pytest.approx(expected.photons_per_pattern, rel=1e-6)


def test_lattice_is_estimated_from_a_sample_of_bounded_size() -> None:
    intensities = np.random.default_rng(9).poisson(30, 3 * MAX_SAMPLED_PIXELS).astype(np.float64)
    stride = np.arange(len(intensities)) % 3
    intensities[stride > 0] += np.pi  # on no lattice, in pixels that are not sampled
    assert estimate_lattice_factor(intensities) == 1.0


def test_no_photons_or_negative_factor_raise() -> None:
    with pytest.raises(DataError, match="zero"):
        photon_scale(scan_of(np.zeros((2, 4, 4))))
    with pytest.raises(DataError, match="`photons_per_unit`"):
        photon_scale(scan_of(np.ones((2, 4, 4))), -1.0)


@pytest.mark.skipif("PTYCHO_TORCH_DATA" not in os.environ, reason="needs the data folder PTYCHO_TORCH_DATA")
def test_run1084_photons_are_recovered() -> None:
    scan = load_scan(Path(os.environ["PTYCHO_TORCH_DATA"]) / "run1084" / "Run1084_twin_legacy.npz")
    scale = photon_scale(scan)
    assert scale.origin == "lattice"
    counts = np.square(scan.amplitudes, dtype=np.float64) * scale.photons_per_unit
    assert np.abs(counts - np.rint(counts)).max() < 0.01
    assert counts.min() == 0
    assert set(np.unique(np.rint(counts))[:5]) == {0, 1, 2, 3, 4}
    assert scale.photons_per_pattern == pytest.approx(1e6, rel=1e-3)
