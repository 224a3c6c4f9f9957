"""The factor from a file's amplitudes to photons: found from whole counts, never from anything else."""

import logging
import os
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ptycho_torch.core.errors import DataError
from ptycho_torch.data.photons import estimate_lattice_factor, photon_scale
from ptycho_torch.data.scan import Scan
from ptycho_torch.io.npz import load_scan

Array = np.ndarray[Any, Any]


def expected_counts(photons: float, n: int = 20, size: int = 24) -> Array:
    """A rate with the range of a diffraction pattern, ``photons`` a pattern on average."""
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
def test_whole_counts_give_the_factor_back_at_any_dose(factor: float, photons: float) -> None:
    counts = np.random.default_rng(1).poisson(expected_counts(photons))
    scale = photon_scale(scan_of(counts / factor))
    assert scale.origin == "lattice"
    assert scale.photons_per_unit == pytest.approx(factor, rel=1e-6)
    assert scale.photons_per_pattern == pytest.approx(counts.sum((1, 2)).mean(), rel=1e-5)


@pytest.mark.parametrize("photons", [1e2, 1e4, 1e6, 1e8])
def test_noiseless_data_are_no_lattice(photons: float, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING)
    scale = photon_scale(scan_of(expected_counts(photons) / 3.7))
    assert scale.origin == "assumed"
    assert scale.photons_per_pattern == 1e6
    assert len(caplog.records) == 1
    assert "--photons_per_unit" in caplog.records[0].message


@pytest.mark.parametrize("shape", [(1, 3, 3), (2, 5, 5), (6, 16, 16)])
def test_arbitrary_numbers_are_no_lattice(shape: tuple[int, ...]) -> None:
    rng = np.random.default_rng(2)
    draws = (rng.uniform, lambda size: rng.exponential(size=size) ** 3, lambda size: rng.gamma(0.05, size=size))
    for trial in range(90):
        amplitudes = draws[trial % 3](size=shape).astype(np.float32)
        assert estimate_lattice_factor(np.square(amplitudes, dtype=np.float64).reshape(-1)) is None


@pytest.mark.parametrize("mean", [200, 3_000, 20_000])
def test_the_smallest_count_need_not_be_one(mean: int) -> None:
    counts = np.random.default_rng(3).poisson(mean, (10, 16, 16))
    assert photon_scale(scan_of(counts / 3.3)).photons_per_unit == pytest.approx(3.3, rel=1e-5)


def test_gaps_need_not_be_one_either() -> None:
    counts = np.array([[[10, 16], [31, 0]]])
    assert photon_scale(scan_of(counts * 0.25)).photons_per_unit == pytest.approx(4)


def test_a_whole_factor_is_exact() -> None:
    counts = np.random.default_rng(4).poisson(expected_counts(1e5))
    assert photon_scale(scan_of(counts)).photons_per_unit == 1.0


def test_rounded_amplitudes_are_no_counts() -> None:
    assert estimate_lattice_factor(np.arange(200.0) ** 2) is None
    assert estimate_lattice_factor(np.arange(200.0)) == 1.0


def test_one_value_alone_says_nothing() -> None:
    assert photon_scale(scan_of(np.full((3, 4, 4), 0.37))).origin == "assumed"


def test_what_is_given_wins_over_the_metadata_and_those_over_the_data() -> None:
    counts = np.random.default_rng(6).poisson(expected_counts(1e3))
    scan = scan_of(counts, photons_per_unit=2.0)
    total = counts.sum((1, 2)).mean()
    given, said = photon_scale(scan, 5.0), photon_scale(scan)
    assert (given.origin, given.photons_per_unit) == ("given", 5.0)
    assert given.photons_per_pattern == pytest.approx(5 * total, rel=1e-5)
    assert (said.origin, said.photons_per_unit) == ("metadata", 2.0)


def test_masked_pixels_say_nothing() -> None:
    counts = np.random.default_rng(7).poisson(expected_counts(1e4)).astype(float)
    mask = np.ones(counts.shape[1:], bool)
    mask[3, 4] = False
    expected = photon_scale(scan_of(np.where(mask, counts, 0) / 9.0))
    counts[:, 3, 4] = np.random.default_rng(8).uniform(0, 1e5, len(counts))
    found = photon_scale(scan_of(counts / 9.0, mask=mask))
    assert (found.origin, found.photons_per_unit) == ("lattice", pytest.approx(9))
    assert found.photons_per_pattern == pytest.approx(expected.photons_per_pattern, rel=1e-6)


def test_no_light_and_a_bad_factor_are_refused() -> None:
    with pytest.raises(DataError, match="zero"):
        photon_scale(scan_of(np.zeros((2, 4, 4))))
    with pytest.raises(DataError, match="--photons_per_unit"):
        photon_scale(scan_of(np.ones((2, 4, 4))), -1.0)


@pytest.mark.skipif("PTYCHO_TORCH_DATA" not in os.environ, reason="needs the data folder PTYCHO_TORCH_DATA")
def test_the_run1084_twin_gives_its_photons_back() -> None:
    scan = load_scan(Path(os.environ["PTYCHO_TORCH_DATA"]) / "run1084" / "Run1084_twin_legacy.npz")
    start = time.perf_counter()
    scale = photon_scale(scan)
    assert time.perf_counter() - start < 1.0
    assert scale.origin == "lattice"
    counts = np.square(scan.amplitudes, dtype=np.float64) * scale.photons_per_unit
    assert np.abs(counts - np.rint(counts)).max() < 0.01
    assert counts.min() == 0
    assert set(np.unique(np.rint(counts))[:5]) == {0, 1, 2, 3, 4}
    assert scale.photons_per_pattern == pytest.approx(1e6, rel=1e-3)
