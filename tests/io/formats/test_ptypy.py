"""Files of ptypy: chunks, weights, centers and absent values of prepared data; storages of results."""

import shutil
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from ptycho_torch.core.errors import DataError
from ptycho_torch.data.geometry import Geometry, compute_photon_wavelength
from ptycho_torch.data.scan import Scan
from ptycho_torch.io.reconstruction import load_reconstruction
from ptycho_torch.io.scan import load_scan, read_input, read_result_parts, save_scan

SIZE, COUNT = 15, 6
ENERGY_EV, DISTANCE_M, PIXEL_M = 8000.0, 2.0, 172e-6
OBJECT_PIXEL_M = compute_photon_wavelength(ENERGY_EV) * DISTANCE_M / (SIZE * PIXEL_M)


@pytest.fixture
def content() -> dict[str, Any]:
    """Content of two chunks whose frame numbers interleave and leave out number 3."""
    rng = np.random.default_rng(0)
    frames = rng.poisson(20, (COUNT, SIZE, SIZE)).astype(np.int32)
    positions = rng.uniform(0, 1e-6, (COUNT, 2))
    numbers = np.array([0, 1, 2, 4, 5, 6])
    return {
        "chunks/10/data": frames[::2],
        "chunks/10/indices": numbers[::2],
        "chunks/10/positions": positions[::2],
        "chunks/9/data": frames[1::2],
        "chunks/9/indices": numbers[1::2],
        "chunks/9/positions": positions[1::2],
        "meta/energy": ENERGY_EV / 1e3,
        "meta/distance": DISTANCE_M,
        "meta/psize": np.array([PIXEL_M, PIXEL_M]),
        "meta/center": np.full(2, SIZE / 2),
        "meta/shape": np.array([SIZE, SIZE]),
    }


def write(path: Path, content: dict[str, Any], absent: tuple[str, ...] = ()) -> Path:
    """Write datasets by path; those in ``absent`` as ptypy writes None."""
    with h5py.File(path, "w") as file:
        for key, value in content.items():
            if key in absent:
                file.create_dataset(key, data=np.zeros(1)).attrs["type"] = "None"
            else:
                file[key] = value
    return path


def get_frames(content: dict[str, Any]) -> np.ndarray[Any, Any]:
    frames = np.empty((COUNT, SIZE, SIZE), np.int32)
    frames[::2], frames[1::2] = content["chunks/10/data"], content["chunks/9/data"]
    return frames


def count_photons(scan: Scan) -> np.ndarray[Any, Any]:
    return np.rint(np.square(scan.amplitudes, dtype=np.float64)).astype(int)


def test_frames_are_in_the_order_of_their_numbers(tmp_path: Path, content: dict[str, Any]) -> None:
    scan = load_scan(write(tmp_path / "scan.h5", content))
    np.testing.assert_array_equal(count_photons(scan), get_frames(content))
    positions = np.empty((COUNT, 2))
    positions[::2], positions[1::2] = content["chunks/10/positions"], content["chunks/9/positions"]
    np.testing.assert_allclose(np.diff(scan.positions, axis=0), np.diff(positions, axis=0) / OBJECT_PIXEL_M)
    assert scan.mask is None
    assert scan.geometry is not None
    assert scan.geometry.energy_ev == pytest.approx(ENERGY_EV)
    assert scan.geometry.object_pixel_m == pytest.approx((OBJECT_PIXEL_M, OBJECT_PIXEL_M))


def test_only_pixels_with_a_positive_weight_count(tmp_path: Path, content: dict[str, Any]) -> None:
    weights = np.ones((COUNT // 2, SIZE, SIZE))
    weights[:, 3, 4:6] = 0
    content |= {"chunks/10/weights": weights * 0.5, "chunks/9/weights": weights}
    mask = load_scan(write(tmp_path / "scan.h5", content)).mask
    assert mask is not None
    np.testing.assert_array_equal(mask, weights[0] > 0)


def test_the_common_weight_holds_for_chunks_without_weights(tmp_path: Path, content: dict[str, Any]) -> None:
    common = np.ones((SIZE, SIZE))
    common[0, :3] = 0
    content |= {"info/weight2d": common, "chunks/9/weights": np.zeros((0, SIZE, SIZE))}
    mask = load_scan(write(tmp_path / "scan.h5", content)).mask
    assert mask is not None
    np.testing.assert_array_equal(mask, common > 0)


def test_zero_frequency_moves_from_the_recorded_center(tmp_path: Path, content: dict[str, Any]) -> None:
    content["meta/center"] = np.array([5.0, 9.0])
    content["chunks/10/data"][:] = 0
    content["chunks/10/data"][:, 5, 9] = 100
    scan = load_scan(write(tmp_path / "scan.h5", content))
    assert count_photons(scan)[0, SIZE // 2, SIZE // 2] == 100


def test_absent_values_are_not_read_as_zeros(tmp_path: Path, content: dict[str, Any]) -> None:
    path = write(tmp_path / "scan.h5", content, absent=("meta/center", "meta/energy", "meta/distance"))
    scan, report = read_input(path, pixel_size=5e-8)
    assert scan.geometry is not None
    assert scan.geometry.wavelength_m is scan.geometry.distance_m is None
    assert any("center" in text for text in report.assumptions)


def test_a_pickle_is_not_read(tmp_path: Path, content: dict[str, Any]) -> None:
    path = write(tmp_path / "scan.h5", content)
    with h5py.File(path, "a") as file:
        del file["meta/energy"]
        file["meta/energy"] = np.bytes_(b"\x80\x04N.")
        file["meta/energy"].attrs["type"] = "pickle"
    scan = load_scan(path, energy_ev=ENERGY_EV)
    assert scan.geometry is not None
    assert scan.geometry.energy_ev == pytest.approx(ENERGY_EV)


def test_chunks_in_other_files_are_read_from_the_same_folder(tmp_path: Path, content: dict[str, Any]) -> None:
    (tmp_path / "first").mkdir()
    parts = {"9": "scan.ptyd.part009", "10": "scan.ptyd.part010"}
    for number, name in parts.items():
        prefix = f"chunks/{number}/"
        write(tmp_path / "first" / name, {k.removeprefix(prefix): v for k, v in content.items() if prefix in k})
    path = write(tmp_path / "first" / "scan.ptyd", {k: v for k, v in content.items() if "chunks" not in k})
    with h5py.File(path, "a") as file:
        for number, name in parts.items():
            file[f"chunks/{number}"] = h5py.ExternalLink(name, "/")
    shutil.move(tmp_path / "first", tmp_path / "second")
    scan = load_scan(tmp_path / "second" / "scan.ptyd")
    np.testing.assert_array_equal(count_photons(scan), get_frames(content))


def test_a_near_field_is_refused(tmp_path: Path, content: dict[str, Any]) -> None:
    content["meta/propagation"] = "nearfield"
    with pytest.raises(DataError, match="near field"):
        load_scan(write(tmp_path / "scan.h5", content))


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("chunks/10/data", np.ones((3, SIZE)), "/chunks/10/data has shape"),
        ("chunks/10/indices", np.arange(2), "/chunks/10/indices has 2 values"),
        ("chunks/9/positions", np.ones((3, 3)), "/chunks/9/positions has shape"),
        ("chunks/9/weights", np.ones((3, 4, 4)), "/chunks/9/weights has shape"),
        ("meta/energy", 0.0, "/meta/energy is 0.0"),
        ("meta/psize", "pixel", "/meta/psize is"),
    ],
)
def test_errors_name_the_path_in_the_file(
    tmp_path: Path, content: dict[str, Any], key: str, value: Any, message: str
) -> None:
    with pytest.raises(DataError, match=message):
        load_scan(write(tmp_path / "scan.h5", content | {key: value}))


def test_a_scan_without_a_geometry_is_not_written(tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    amplitudes = np.sqrt(rng.poisson(20, (COUNT, 16, 16)))
    scan = Scan(amplitudes, rng.uniform(0, 9, (COUNT, 2)), photons_per_unit=1.0, geometry=Geometry(distance_m=1.0))
    with pytest.raises(DataError, match="`detector_pixel`"):
        save_scan(tmp_path / "scan.ptyd", scan)
    assert not list(tmp_path.iterdir())


def write_result(path: Path, changes: dict[str, Any] | None = None) -> Path:
    rng = np.random.default_rng(2)
    content: dict[str, Any] = {
        "content/probe/S00G00/data": np.ones((1, SIZE, SIZE), np.complex64),
        "content/probe/S00G00/_energy": ENERGY_EV / 1e3,
        "content/obj/S00G00/data": rng.normal(size=(1, 40, 44)).astype(np.complex64),
        "content/obj/S00G00/_psize": np.full(2, OBJECT_PIXEL_M),
        "content/obj/S00G00/_origin": np.array([-3.0, 5.0]) * OBJECT_PIXEL_M,
        "content/obj/S00G00/_energy": 1.0,
        "content/positions/S00G00": np.full((4, 2), 20.0) * OBJECT_PIXEL_M,
    }
    return write(path, content | (changes or {}))


def test_positions_of_a_result_are_relative_to_the_origin_of_its_object(tmp_path: Path) -> None:
    result = load_reconstruction(write_result(tmp_path / "result.ptyr"))
    np.testing.assert_allclose(result.positions, np.tile([23.0, 15.0], (4, 1)))
    assert result.geometry is not None
    assert result.geometry.energy_ev == pytest.approx(ENERGY_EV)


def test_the_origin_of_an_old_result_is_that_of_its_center(tmp_path: Path) -> None:
    path = write_result(tmp_path / "result.ptyr", {"content/obj/S00G00/_center": np.array([3, -5])})
    with h5py.File(path, "a") as file:
        del file["content/obj/S00G00/_origin"]
    np.testing.assert_allclose(load_reconstruction(path).positions, np.tile([23.0, 15.0], (4, 1)))


def test_a_result_takes_the_patterns_of_the_prepared_data_beside_it(tmp_path: Path, content: dict[str, Any]) -> None:
    write(tmp_path / "scan.ptyd", content)
    positions = np.random.default_rng(3).uniform(8, 25, (COUNT, 2))
    path = write_result(tmp_path / "scan.ptyr", {"content/positions/S00G00": positions * OBJECT_PIXEL_M})
    scan = load_scan(path)
    np.testing.assert_array_equal(count_photons(scan), get_frames(content))
    np.testing.assert_allclose(scan.positions, positions + np.array([3, -5]))
    assert scan.probe is not None


def test_of_several_storages_the_first_is_read_and_reported(tmp_path: Path) -> None:
    path = write_result(tmp_path / "result.ptyr", {"content/probe/S01G00/data": np.zeros((1, 8, 8), np.complex64)})
    report = read_result_parts(path).report
    assert any("/content/probe: S00G00 is read of the storages S00G00, S01G00" in text for text in report.assumptions)
