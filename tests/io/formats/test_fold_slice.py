"""Pairs ``*_dp.hdf5`` and ``*_para.hdf5``: electrons as MATLAB writes them, X-rays in C order."""

import dataclasses
from pathlib import Path

import h5py
import numpy as np
import pytest

from ptycho_torch.core.errors import ConfigError, DataError
from ptycho_torch.data.geometry import Geometry
from ptycho_torch.io.scan import load_scan, read_input, save_scan

STEP_M = 1e-8


def _write_pair(folder: Path, positions: np.ndarray, *, shape: tuple[int, ...] = (-1,), **para: float) -> Path:
    """Write a pair with positions (row, column) and return the path of its patterns."""
    rng = np.random.default_rng(1)
    counts = rng.poisson(5, (len(positions), 16, 16)).astype(np.float32)
    counts[:, 3, 11] = rng.poisson(1500, len(positions))
    with h5py.File(folder / "data_roi0_dp.hdf5", "w") as file:
        file["dp"] = counts.swapaxes(1, 2) if np.ptp(positions) > 1 else counts
    with h5py.File(folder / "data_roi0_para.hdf5", "w") as file:
        file["ppY"], file["ppX"] = positions[:, 0].reshape(shape), positions[:, 1].reshape(shape)
        for name, value in para.items():
            file[name] = value
    return folder / "data_roi0_dp.hdf5"


@pytest.fixture
def positions() -> np.ndarray:
    return np.random.default_rng(0).uniform(0, 40, (12, 2)) * STEP_M


def test_either_file_of_the_pair_may_be_named(tmp_path, positions):
    path = _write_pair(tmp_path, positions, dx=STEP_M, **{"lambda": 1e-10})
    first, second = load_scan(path), load_scan(tmp_path / "data_roi0_para.hdf5")
    np.testing.assert_array_equal(first.amplitudes, second.amplitudes)
    np.testing.assert_array_equal(first.positions, second.positions)
    assert (first.amplitudes[:, 3, 11] > 30).all()
    assert first.geometry.radiation == "photon"
    assert first.geometry.object_pixel_m == (STEP_M, STEP_M)
    np.testing.assert_allclose(np.diff(first.positions, axis=0), np.diff(positions, axis=0) / STEP_M, atol=1e-9)


@pytest.mark.parametrize("shape", [(1, -1), (-1, 1)])
def test_positions_may_have_two_axes(tmp_path, positions, shape):
    path = _write_pair(tmp_path, positions, shape=shape, dx=STEP_M)
    assert load_scan(path).positions.shape == (12, 2)


def test_electrons_have_lengths_in_angstrom(tmp_path, positions):
    path = _write_pair(tmp_path, positions / STEP_M * 0.25, dx=0.25, **{"lambda": 0.0197})
    scan, report = read_input(path)
    assert scan.geometry.radiation == "electron"
    assert scan.geometry.wavelength_m == pytest.approx(1.97e-12)
    assert (scan.amplitudes[:, 3, 11] > 30).all()
    assert scan.geometry.object_pixel_m == pytest.approx((0.25e-10, 0.25e-10))
    np.testing.assert_allclose(np.diff(scan.positions, axis=0), np.diff(positions, axis=0) / STEP_M, atol=1e-9)
    assert any("ångströms" in each for each in report.assumptions)


def test_voltage_and_object_pixel_may_be_settings(tmp_path, positions):
    path = _write_pair(tmp_path, positions / STEP_M)
    with pytest.raises(ConfigError, match="`pixel_size`"):
        load_scan(path)
    scan = load_scan(path, pixel_size=1e-10, voltage_kv=80)
    assert scan.geometry.radiation == "electron"
    assert scan.geometry.wavelength_m == pytest.approx(4.176e-12, rel=1e-3)


def test_patterns_alone_require_a_fact_that_decides_their_axes(tmp_path, positions):
    path = _write_pair(tmp_path, positions, dx=STEP_M)
    para = (tmp_path / "data_roi0_para.hdf5").rename(tmp_path / "elsewhere.hdf5")
    table = tmp_path / "positions.npz"
    np.savez(table, positions=positions)
    settings = {"positions_file": table, "position_unit": "meter", "pixel_size": STEP_M}
    assert (load_scan(path, positions_file=para).amplitudes[:, 3, 11] > 30).all()
    with pytest.raises(ConfigError, match="`voltage_kv` for"):
        load_scan(path, **settings)
    assert (load_scan(path, **settings, energy_ev=8000.0).amplitudes[:, 3, 11] > 30).all()
    assert (load_scan(path, **settings, voltage_kv=80.0).amplitudes[:, 11, 3] > 30).all()
    assert (load_scan(path, **settings, format="fold_slice").amplitudes[:, 11, 3] > 30).all()
    with pytest.raises(DataError, match="no scan positions"):
        load_scan(path)


def test_positions_of_ptychovit_decide_that_the_rows_come_first(tmp_path, scan):
    amplitudes = np.zeros_like(scan.amplitudes)
    amplitudes[:, 3, 11] = np.sqrt(np.arange(1, len(scan) + 1) * 100)
    geometry = Geometry(wavelength_m=1e-10, distance_m=1.0, object_pixel_m=(STEP_M, STEP_M))
    stored = dataclasses.replace(scan, amplitudes=amplitudes, photons_per_unit=1.0, geometry=geometry)
    path = tmp_path / "scan_dp.hdf5"
    save_scan(path, stored, format="ptychovit")
    para = (tmp_path / "scan_para.hdf5").rename(tmp_path / "elsewhere.hdf5")
    np.testing.assert_allclose(load_scan(path, positions_file=para).amplitudes, amplitudes, rtol=1e-6)


def test_unequal_numbers_of_coordinates_are_refused(tmp_path, positions):
    path = _write_pair(tmp_path, positions, dx=STEP_M)
    with h5py.File(tmp_path / "data_roi0_para.hdf5", "r+") as file:
        del file["ppX"]
        file["ppX"] = np.zeros(5)
    with pytest.raises(DataError, match="/ppY has 12 values and /ppX 5"):
        load_scan(path)
