"""Pairs of PtychoViT: the center of the object, scaled counts, and the difference from pairs of fold_slice."""

from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from ptycho_torch.core.errors import DataError
from ptycho_torch.io.container import open_input
from ptycho_torch.io.formats.registry import recognize_format
from ptycho_torch.io.scan import load_scan, read_input, save_scan

COUNT, SIZE = 6, 16
PIXEL_M = (4e-8, 5e-8)
ROWS, COLUMNS = 41, 50


def write_pair(folder: Path, dp: Any = None, center: tuple[float, float] | None = (0.0, 0.0), shift: float = 0) -> Path:
    """Write a pair whose first position is on the center of the object, plus ``shift`` pixels."""
    rng = np.random.default_rng(1)
    offsets = (np.r_[np.zeros((1, 2)), rng.uniform(-8, 8, (COUNT - 1, 2))] + shift) * PIXEL_M
    with h5py.File(folder / "scan_dp.hdf5", "w") as file:
        file["dp"] = make_counts() if dp is None else dp
    with h5py.File(folder / "scan_para.hdf5", "w") as file:
        file["object"] = np.ones((1, ROWS, COLUMNS), np.complex64)
        file["object"].attrs.update({"pixel_height_m": PIXEL_M[0], "pixel_width_m": PIXEL_M[1]})
        if center is not None:
            file["object"].attrs.update({"center_y_m": center[0], "center_x_m": center[1]})
            offsets = offsets + center
        file["probe"] = np.ones((1, 1, SIZE, SIZE), np.complex64)
        file["probe_position_y_m"], file["probe_position_x_m"] = offsets.T
    return folder / "scan_dp.hdf5"


def make_counts() -> np.ndarray[Any, Any]:
    return np.random.default_rng(2).poisson(20, (COUNT, SIZE, SIZE)).astype(np.float32)


@pytest.mark.parametrize("center", [(0.0, 0.0), (2e-6, -1e-6)])
@pytest.mark.parametrize("named", ["scan_dp.hdf5", "scan_para.hdf5"])
def test_the_center_of_the_object_is_half_its_rounded_side_plus_a_half(
    tmp_path: Path, named: str, center: tuple[float, float]
) -> None:
    write_pair(tmp_path, center=center)
    scan = load_scan(tmp_path / named)
    # rint(41 / 2) = 20, rint(50 / 2) = 25; plus half a pixel for even N.
    np.testing.assert_allclose(scan.positions[0], [21.0, 26.0])
    np.testing.assert_allclose(np.square(scan.amplitudes), make_counts(), rtol=1e-6)
    assert scan.photons_per_unit == 1
    assert scan.geometry is not None
    assert scan.geometry.object_pixel_m == pytest.approx(PIXEL_M)


def test_an_object_of_unknown_place_is_left_out(tmp_path: Path) -> None:
    scan, report = read_input(write_pair(tmp_path, center=None, shift=40))
    assert scan.truth is None
    assert any("left out" in text for text in report.assumptions)
    (tmp_path / "inside").mkdir()
    assert load_scan(write_pair(tmp_path / "inside", center=None)).truth is not None


def test_scaled_counts_have_no_assumed_unit(tmp_path: Path) -> None:
    scaled = make_counts() * np.float32(0.37)
    scan = load_scan(write_pair(tmp_path, dp=scaled))
    assert scan.photons_per_unit is None
    np.testing.assert_allclose(np.square(scan.amplitudes), scaled, rtol=1e-5)
    assert load_scan(tmp_path / "scan_dp.hdf5", photons_per_unit=1 / 0.37).photons_per_unit == pytest.approx(1 / 0.37)


def test_a_pair_of_fold_slice_is_another_format(tmp_path: Path) -> None:
    path = write_pair(tmp_path)
    with h5py.File(tmp_path / "scan_para.hdf5", "w") as file:
        file["ppX"], file["ppY"] = np.zeros((2, COUNT))
    with open_input(path) as file:
        assert recognize_format(file).name == "fold_slice"


def test_a_written_pair_needs_a_name_of_the_pair(tmp_path: Path) -> None:
    scan = load_scan(write_pair(tmp_path))
    with pytest.raises(DataError, match="_dp or _para"):
        save_scan(tmp_path / "other.hdf5", scan, format="ptychovit")
    save_scan(tmp_path / "other_para.hdf5", scan, format="ptychovit")
    loaded = load_scan(tmp_path / "other_dp.hdf5")
    np.testing.assert_allclose(loaded.positions, scan.positions)


def test_a_partner_without_patterns_is_named(tmp_path: Path) -> None:
    write_pair(tmp_path)
    with h5py.File(tmp_path / "scan_dp.hdf5", "a") as file:
        del file["dp"]
        file["frames"] = make_counts()[0, 0]
    with pytest.raises(DataError, match=r"scan_dp\.hdf5, beside the file, holds none; set `patterns_file`"):
        load_scan(tmp_path / "scan_para.hdf5")
