"""Files of PtyLab and xptycho: orientation codes, encoders of MATLAB, refused experiments, origins of objects."""

from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from ptycho_torch.core.errors import DataError
from ptycho_torch.data.geometry import Geometry
from ptycho_torch.data.scan import Scan
from ptycho_torch.io.scan import load_scan, read_input, save_scan

COUNT, SIZE = 5, 16
WAVELENGTH_M, DISTANCE_M, PIXEL_M = 6e-7, 0.05, 7e-5
OBJECT_PIXEL_M = WAVELENGTH_M * DISTANCE_M / (SIZE * PIXEL_M)


def make_content(**changes: Any) -> dict[str, Any]:
    rng = np.random.default_rng(3)
    content: dict[str, Any] = {
        "ptychogram": rng.poisson(20, (COUNT, SIZE, SIZE)).astype(np.float32),
        "encoder": rng.uniform(0, 20, (COUNT, 2)) * OBJECT_PIXEL_M,
        "wavelength": np.array([[WAVELENGTH_M]]),
        "zo": np.array([DISTANCE_M]),
        "dxd": PIXEL_M,
    }
    return content | changes


def write(path: Path, content: dict[str, Any]) -> Path:
    with h5py.File(path, "w") as file:
        for key, value in content.items():
            file[key] = value
    return path


def count_photons(scan: Scan) -> np.ndarray[Any, Any]:
    return np.rint(np.square(scan.amplitudes, dtype=np.float64)).astype(int)


# Code of ptypy: 4 transposes, then 2 reverses rows, then 1 reverses columns; zero frequency is at N//2 afterwards.
ORIENTED = {
    0: lambda frames: frames,
    1: lambda frames: frames[:, :, ::-1],
    2: lambda frames: frames[:, ::-1],
    3: lambda frames: frames[:, ::-1, ::-1],
    4: lambda frames: frames.transpose(0, 2, 1),
    5: lambda frames: frames.transpose(0, 2, 1)[:, :, ::-1],
    6: lambda frames: frames.transpose(0, 2, 1)[:, ::-1],
    7: lambda frames: frames.transpose(0, 2, 1)[:, ::-1, ::-1],
}


@pytest.mark.parametrize("code", ORIENTED)
def test_patterns_are_oriented_by_the_code_of_the_file(tmp_path: Path, code: int) -> None:
    content = make_content(orientation=np.array([[code]]))
    scan = load_scan(write(tmp_path / "scan.hdf5", content))
    np.testing.assert_array_equal(count_photons(scan), ORIENTED[code](content["ptychogram"]))
    np.testing.assert_allclose(np.diff(scan.positions, axis=0), np.diff(content["encoder"] / OBJECT_PIXEL_M, axis=0))
    assert scan.geometry is not None
    assert scan.geometry.object_pixel_m == pytest.approx((OBJECT_PIXEL_M, OBJECT_PIXEL_M))


def test_an_encoder_of_matlab_is_transposed(tmp_path: Path) -> None:
    content = make_content()
    first = load_scan(write(tmp_path / "a.hdf5", content))
    second, report = read_input(write(tmp_path / "b.hdf5", content | {"encoder": content["encoder"].T}))
    np.testing.assert_array_equal(first.positions, second.positions)
    assert any("MATLAB" in text for text in report.assumptions)


def test_several_wavelengths_and_a_tilt_are_reported(tmp_path: Path) -> None:
    path = write(tmp_path / "scan.hdf5", make_content(spectralDensity=np.array([6e-7, 7e-7]), theta=0.3))
    report = read_input(path).report
    assert [text.partition(":")[0] for text in report.assumptions] == ["/theta", "/spectralDensity"]


def test_fourier_ptychography_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "scan.hdf5", make_content(zled=0.1, NA=0.2, magnification=4.0))
    with pytest.raises(DataError, match="Fourier ptychography"):
        load_scan(path)


@pytest.mark.parametrize(
    ("key", "value"),
    [("orientation", 9), ("encoder", np.ones((COUNT, 3))), ("ptychogram", np.ones((4, 4))), ("zo", -1.0), ("dxd", "a")],
)
def test_errors_name_the_dataset(tmp_path: Path, key: str, value: Any) -> None:
    with pytest.raises(DataError, match=f"/{key}"):
        load_scan(write(tmp_path / "scan.hdf5", make_content(**{key: value})))


def test_only_square_detector_pixels_are_written(tmp_path: Path) -> None:
    rng = np.random.default_rng(4)
    geometry = Geometry(wavelength_m=1e-10, distance_m=1.0, detector_pixel_m=(1e-4, 2e-4))
    amplitudes = np.sqrt(rng.poisson(20, (COUNT, SIZE, SIZE)))
    scan = Scan(amplitudes, rng.uniform(9, 20, (COUNT, 2)), photons_per_unit=1.0, geometry=geometry)
    with pytest.raises(DataError, match="square"):
        save_scan(tmp_path / "scan.hdf5", scan, format="ptylab")


def write_xptycho(path: Path, *, order: str = "row, column", units: str = "m", pitch: float = PIXEL_M) -> Path:
    rng = np.random.default_rng(5)
    positions = rng.uniform(10, 25, (COUNT, 2)) * OBJECT_PIXEL_M / (1e-6 if units == "um" else 1)
    with h5py.File(path, "w") as file:
        file["scan/frames"] = make_content()["ptychogram"]
        file["scan/probe_positions"] = positions[:, ::-1] if order == "column, row" else positions
        file["scan/probe_positions"].attrs.update({"units": units, "order": order})
        facts = {"wavelength": WAVELENGTH_M, "det_distance": DISTANCE_M, "det_pixel_pitch": pitch}
        file["scan"].attrs.update(facts)
        file["sample/object"] = np.ones((40, 44), np.complex64)
        file["sample/probe"] = np.ones((1, SIZE, SIZE), np.complex64)
        file["sample"].attrs["origin"] = np.array([3.0, -2.0]) * OBJECT_PIXEL_M
    return path


@pytest.mark.parametrize("options", [{}, {"order": "column, row"}, {"units": "um"}])
def test_positions_of_xptycho_are_relative_to_the_origin_of_its_object(tmp_path: Path, options: dict[str, str]) -> None:
    scan = load_scan(write_xptycho(tmp_path / "scan.h5", **options))
    expected = np.random.default_rng(5).uniform(10, 25, (COUNT, 2)) - [3.0, -2.0]
    np.testing.assert_allclose(scan.positions, expected)
    np.testing.assert_array_equal(count_photons(scan), make_content()["ptychogram"])
    assert scan.probe is not None


@pytest.mark.parametrize(("options", "message"), [({"order": "y x"}, "order"), ({"pitch": -1.0}, "det_pixel_pitch")])
def test_errors_of_xptycho_name_the_attribute(tmp_path: Path, options: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError, match=message):
        load_scan(write_xptycho(tmp_path / "scan.h5", **options))
