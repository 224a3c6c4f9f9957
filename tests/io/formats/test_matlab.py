"""MATLAB files: results and prepared data of PtychoShelves, files of NSLS-II, versions 5 and 7.3."""

from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from cases_matlab import write_mat

from ptycho_torch.core.errors import DataError
from ptycho_torch.io.mat import Mat5File
from ptycho_torch.io.reconstruction import load_reconstruction
from ptycho_torch.io.scan import load_scan, read_input

SIZE = 16
PIXEL_M, WAVELENGTH_M = 2e-8, 1.4e-10


def make_result(layers: int = 1, size: int = SIZE) -> dict[str, Any]:
    rng = np.random.default_rng(0)
    obj = rng.normal(size=(41, 50, layers)) + 1j * rng.normal(size=(41, 50, layers))
    return {
        "object": obj[:, :, 0] if layers == 1 else obj,
        "probe": rng.normal(size=(size, size, 2, 3)) + 1j * rng.normal(size=(size, size, 2, 3)),
        "outputs": {"probe_positions": rng.uniform(-8, 8, (5, 2))},
        "p": {"dx_spec": np.array([PIXEL_M, PIXEL_M]), "lambda": WAVELENGTH_M, "z": 2.0},
    }


@pytest.mark.parametrize("version", ["6", "7", "7.3"])
@pytest.mark.parametrize("layers", [1, 2])
@pytest.mark.parametrize("size", [16, 15])
def test_result_of_fold_slice_places_windows_from_the_center_of_the_object(
    tmp_path: Path, version: str, layers: int, size: int
) -> None:
    values = make_result(layers, size)
    result = load_reconstruction(write_mat(tmp_path / "result.mat", values, version))
    expected = values["object"] if layers == 1 else values["object"].prod(2)
    np.testing.assert_allclose(result.object, expected, rtol=1e-5)
    np.testing.assert_allclose(result.probe, np.moveaxis(values["probe"][..., 0], 2, 0), rtol=1e-5)
    x, y = values["outputs"]["probe_positions"].T
    top_left = np.stack([y + np.ceil(41 / 2 - size / 2), x + np.ceil(50 / 2 - size / 2)], 1) - 1
    np.testing.assert_allclose(result.positions - size // 2, top_left)
    assert result.geometry is not None
    assert result.geometry.object_pixel_m == pytest.approx((PIXEL_M, PIXEL_M))
    assert result.geometry.wavelength_m == pytest.approx(WAVELENGTH_M)
    assert result.geometry.distance_m == 2


@pytest.mark.parametrize("version", ["7", "7.3"])
def test_result_of_shelves_has_positions_of_the_first_pixel(tmp_path: Path, version: str) -> None:
    values = make_result()
    del values["outputs"]
    values["p"]["positions"] = np.array([[0.0, 1.0], [3.0, 2.0], [5.0, 4.0]])
    result = load_reconstruction(write_mat(tmp_path / "result.mat", values, version))
    np.testing.assert_allclose(result.positions, values["p"]["positions"] + SIZE // 2)


def test_electron_result_has_lengths_in_angstrom(tmp_path: Path) -> None:
    values = make_result()
    values["p"] |= {"dx_spec": np.array([0.25, 0.25]), "lambda": 0.0197}
    geometry = load_reconstruction(write_mat(tmp_path / "result.mat", values, "7")).geometry
    assert geometry is not None
    assert geometry.radiation == "electron"
    assert geometry.object_pixel_m == pytest.approx((0.25e-10,) * 2)
    assert geometry.distance_m is None


def test_h5_result_has_rows_before_columns(tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    obj, probe = rng.normal(size=(41, 50)) + 1j, rng.normal(size=(2, SIZE, SIZE)) + 1j
    path = tmp_path / "recons.h5"
    with h5py.File(path, "w") as file:
        file["reconstruction/p/objects/object_0"] = obj
        file["reconstruction/p/probes/probe_0"] = probe
        file["reconstruction/object"] = h5py.SoftLink("/reconstruction/p/objects/object_0")
        file["reconstruction/probes"] = h5py.SoftLink("/reconstruction/p/probes/probe_0")
        file["reconstruction/p/positions"] = [[1.5, 2.0], [4.0, 9.25]]
        file["reconstruction/p/dx_spec"] = [[PIXEL_M], [PIXEL_M]]
        file["reconstruction/p/lambda"] = WAVELENGTH_M
    result = load_reconstruction(path)
    np.testing.assert_allclose(result.object, obj, rtol=1e-5)
    np.testing.assert_allclose(result.probe, probe, rtol=1e-5)
    np.testing.assert_allclose(result.positions, [[9.5, 10.0], [12.0, 17.25]])


def test_result_with_patterns_of_a_pair_is_a_scan(tmp_path: Path) -> None:
    counts = np.random.default_rng(0).poisson(9, (5, SIZE, SIZE)).astype(np.float32)
    counts[:, 3, 11] += np.arange(5) * 7 + 50
    with h5py.File(tmp_path / "data_dp.hdf5", "w") as file:
        file["dp"] = counts.swapaxes(1, 2)
    path = write_mat(tmp_path / "result.mat", make_result(), "7")
    scan = load_scan(path, patterns_file=tmp_path / "data_dp.hdf5")
    np.testing.assert_allclose(np.square(scan.amplitudes), counts, rtol=1e-5)
    assert scan.probe is not None
    assert scan.truth is not None


# Prepared data


def write_prepared(path: Path, *, per_pattern: bool = False) -> np.ndarray:
    """Write two scans of 3 and 2 patterns and return the counts."""
    counts: np.ndarray = np.random.default_rng(2).poisson(9, (5, SIZE, SIZE)).astype(np.float32)
    with h5py.File(path, "w") as file:
        for number, part in ((0, slice(0, 3)), (1, slice(3, 5))):
            group = file.create_group(f"measurement/n{number}")
            group["data"], group["positions"] = counts[part], np.arange(10, dtype=np.uint32).reshape(5, 2)[part]
            group.attrs["detector"] = np.uint32(number)
            file[f"detector/n{number}/modules"] = np.array([[SIZE, 7, 0, 0], [SIZE, 8, 0, 8]], np.uint32)
            if per_pattern:
                ends = np.arange(1, len(counts[part]) + 1)
                group["bad_pixels"] = np.stack([np.arange(len(ends)), np.full(len(ends), 2)], 1)
                group["bad_pixels_index"] = ends.astype(np.uint64)
            else:
                file[f"detector/n{number}/bad_pixels"] = np.array([[2, 5], [3, 9]], np.uint32)
    return counts


@pytest.mark.parametrize("per_pattern", [False, True])
def test_prepared_data_of_several_scans(tmp_path: Path, per_pattern: bool) -> None:
    path = tmp_path / "S00001_data_16x16.h5"
    counts = write_prepared(path, per_pattern=per_pattern)
    scan = load_scan(path)
    expected = np.ones((5, SIZE, SIZE), bool)
    expected[:, :, 7] = False
    if per_pattern:
        for pattern, row in enumerate([0, 1, 2, 0, 1]):
            expected[pattern, row, 2] = False
    else:
        expected[:, [2, 3], [5, 9]] = False
    np.testing.assert_array_equal(np.broadcast_to(scan.mask, expected.shape), expected)
    measured = np.square(scan.amplitudes)
    np.testing.assert_allclose(measured[expected], counts[expected], rtol=1e-5)
    np.testing.assert_allclose(scan.positions, np.arange(10).reshape(5, 2) + SIZE // 2)
    np.testing.assert_array_equal(scan.scan_index, [0, 0, 0, 1, 1])


def test_older_prepared_data_are_amplitudes(tmp_path: Path) -> None:
    path = tmp_path / "old.h5"
    amplitudes = np.random.default_rng(3).uniform(0, 1, (11, SIZE, SIZE)).astype(np.float32)
    with h5py.File(path, "w") as file:
        for number, frame in enumerate(amplitudes):
            group = file.create_group(f"measurements/measurement_{number}")
            group["diff_pat"] = frame
            group.attrs["position"], group.attrs["detector"] = np.uint32([number, 2 * number]), np.uint32(0)
        file["measurements"].attrs["max_power"] = 40.0
        file["detectors/detector_0/modules"] = np.array([[SIZE, SIZE, 0, 0]], np.uint32)
    scan = load_scan(path)
    np.testing.assert_array_equal(scan.amplitudes, amplitudes)
    assert scan.photons_per_unit == 40
    np.testing.assert_allclose(scan.positions[10], [10 + SIZE // 2, 20 + SIZE // 2])


def test_modules_outside_the_patterns_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "data.h5"
    write_prepared(path)
    with h5py.File(path, "r+") as file:
        file["detector/n0/modules"][0] = [SIZE, 9, 0, 8]
    with pytest.raises(DataError, match="/detector/n0/modules holds a module of 16 × 9"):
        load_scan(path)


# NSLS-II


@pytest.mark.parametrize("version", ["7", "7.3"])
def test_nsls_file_has_micrometers_and_kiloelectronvolts(tmp_path: Path, version: str) -> None:
    rng = np.random.default_rng(4)
    counts, positions = rng.poisson(9, (11, SIZE, SIZE)).astype(np.float32), rng.uniform(0, 2, (11, 2))
    values = {
        "det_data": counts.T if version == "7.3" else counts,
        "pos_xy": positions.T if version == "7.3" else positions,
        "det_pixel_size": 55.0,
        "det_dist": 0.5e6,
        "energy": 12.0,
    }
    scan, report = read_input(write_mat(tmp_path / "scan.mat", values, version))
    np.testing.assert_allclose(np.square(scan.amplitudes), counts, rtol=1e-5)
    pixel = 1.0332e-10 * 0.5 / (SIZE * 55e-6)
    assert scan.geometry is not None
    assert scan.geometry.object_pixel_m == pytest.approx((pixel, pixel), rel=1e-4)
    expected = positions[:, ::-1] * 1e-6 / pixel
    np.testing.assert_allclose(scan.positions - scan.positions[0], expected - expected[0], rtol=1e-4, atol=1e-3)
    assert report.format == "nsls_mat"


def test_arrays_of_any_name_are_read_by_key(tmp_path: Path) -> None:
    rng = np.random.default_rng(6)
    counts, positions = rng.poisson(9, (SIZE, SIZE, 7)).astype(np.uint16), rng.uniform(0, 9, (7, 2))
    path = write_mat(tmp_path / "own.mat", {"frames": counts, "yx": positions, "note": "text"}, "7")
    scan = load_scan(path, diffraction_key="frames", positions_key="yx", axis_order="hwn", measurement="counts")
    np.testing.assert_allclose(np.square(scan.amplitudes), np.moveaxis(counts, 2, 0), rtol=1e-5)
    np.testing.assert_allclose(scan.positions, positions)


# Safety


def test_variables_are_listed_from_their_headers(tmp_path: Path) -> None:
    path = write_mat(tmp_path / "all.mat", make_result() | {"text": "a", "x": np.zeros((3, 4), np.int16)}, "7")
    found = Mat5File(path).variables
    assert {name: each.kind for name, each in found.items()} == {
        "object": "double", "probe": "double", "outputs": "structure", "p": "structure", "text": "text", "x": "int16",
    }  # fmt: skip
    assert found["x"].shape == (3, 4)


@pytest.mark.parametrize("fraction", [0.01, 0.3, 0.9, 0.999])
@pytest.mark.parametrize("version", ["6", "7", "7.3"])
def test_truncated_files_are_refused(tmp_path: Path, version: str, fraction: float) -> None:
    path = write_mat(tmp_path / "result.mat", make_result(), version)
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * fraction)])
    with pytest.raises(DataError, match=r"result\.mat"):
        load_reconstruction(path)


def test_damaged_bytes_never_end_in_another_error(tmp_path: Path) -> None:
    path = write_mat(tmp_path / "result.mat", {name: make_result()[name] for name in ("outputs", "p")}, "6")
    content = path.read_bytes()
    rng = np.random.default_rng(5)
    refused = 0
    for _ in range(150):
        damaged = bytearray(content)
        for place in rng.integers(128, len(content), 3):
            damaged[place] = rng.integers(0, 256)
        path.write_bytes(damaged)
        try:
            file = Mat5File(path)
            for name in ("p.dx_spec", "outputs.probe_positions"):
                file.read(name)
        except DataError:
            refused += 1
    assert refused > 0


def test_huge_declared_size_is_refused_before_reading(tmp_path: Path) -> None:
    path = write_mat(tmp_path / "result.mat", {"p": {"z": 1.0}, "outputs": {}, "object": np.ones((9, 9)) + 1j}, "6")
    content = bytearray(path.read_bytes())
    place = content.index(b"object") - 16
    content[place : place + 8] = np.array([2**30, 2**30], "<i4").tobytes()
    path.write_bytes(content)
    with pytest.raises(DataError, match="declared shape"):
        Mat5File(path).read("object")


def test_cells_and_texts_are_no_numbers(tmp_path: Path) -> None:
    cell = np.empty(2, object)
    cell[:] = [np.ones(2), "text"]
    path = write_mat(tmp_path / "x.mat", {"cell": cell, "text": "1", "p": {"z": cell}}, "7")
    file = Mat5File(path)
    for name, found in (("cell", "cell array"), ("text", "text"), ("p.z", "cell array"), ("none", "there is no")):
        with pytest.raises(DataError, match=found):
            file.read(name)
