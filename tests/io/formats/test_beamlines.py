"""Beamline layouts and Eiger masters: paths, units, order of the data files; Zarr and TIFF that cannot be read."""

from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from ptycho_torch.config.input import InputSettings
from ptycho_torch.core.errors import DataError
from ptycho_torch.io.container import open_input
from ptycho_torch.io.formats.cxi_layout import read_center
from ptycho_torch.io.formats.registry import recognize_format
from ptycho_torch.io.hdf5 import open_hdf5
from ptycho_torch.io.parts import InputReport, ScanParts
from ptycho_torch.io.scan import load_scan

COUNTS = np.arange(3 * 8 * 8, dtype=np.uint16).reshape(3, 8, 8)
Y, X = np.array([1.0, 2.0, 4.0]), np.array([-3.0, 0.5, 7.0])
ATTRIBUTES = "entry/instrument/NDAttributes"

LAYOUTS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "NSLS-II": (
        {"diff_data/merlin1/det_images": COUNTS, "scan/scan_positions": [X, Y], "scan/energy": 8.0},
        {"energy_ev": 8000.0, "position_unit": "micrometer"},
    ),
    "LCLS XPP": (
        {"jungfrau1M/image_img": COUNTS, "lmc/ch03": X, "lmc/ch04": Y, "ipm2/sum": [1.0, 2.0, 3.0]},
        {"position_unit": "micrometer"},
    ),
    "PSI cSAXS": (
        {
            "entry/data/data": COUNTS,
            "entry/instrument/monochromator/distance": 2171.0,
            "entry/instrument/monochromator/energy": 6.2,
            "entry/instrument/eiger_4/x_pixel_size": 75.0,
            "entry/instrument/eiger_4/y_pixel_size": 75.0,
        },
        {"energy_ev": 6200.0, "distance_m": 2.171, "detector_pixel_m": (75e-6, 75e-6)},
    ),
    "APS 19-ID": (
        {
            "entry/data/data": COUNTS,
            "entry/data/X_Position": X,
            "entry/data/Y_Position": Y,
            f"{ATTRIBUTES}/Wavelength": [1.5, 1.5, 1.5],
        },
        {"wavelength_m": 1.5e-10, "position_unit": "micrometer"},
    ),
    "APS 12-ID": (
        {"dp": COUNTS, "positions": np.stack([X, Y], 1)},
        {"position_unit": "meter"},
    ),
    "APS exchange": ({"exchange/data": COUNTS}, {}),
}


def read(path: Path) -> ScanParts:
    with open_input(path) as file:
        return recognize_format(file).read(file, InputSettings())


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_layout_gives_positions_and_geometry_in_its_units(layout: str, tmp_path: Path) -> None:
    content, expected = LAYOUTS[layout]
    path = tmp_path / "scan.h5"
    with h5py.File(path, "w") as file:
        for place, values in content.items():
            file[place] = values
    parts = read(path)
    np.testing.assert_array_equal(parts.patterns, COUNTS)
    assert parts.report.assumptions[0].startswith(f"the paths are those of {layout}")
    for name, value in expected.items():
        found = parts.position_unit if name == "position_unit" else getattr(parts.geometry, name)
        assert found == (value if isinstance(value, str) else pytest.approx(value, rel=1e-6))
    if "position_unit" in expected:
        np.testing.assert_array_equal(parts.positions, np.stack([Y, X], 1))
    else:
        assert parts.positions is None
        assert any(each.startswith("positions: ") for each in parts.report.missing)


def test_data_files_of_an_eiger_are_read_in_the_order_of_their_numbers(tmp_path: Path) -> None:
    hdf5plugin = pytest.importorskip("hdf5plugin")
    path = tmp_path / "scan_master.h5"
    with h5py.File(path, "w") as file:
        for number in (2, 10, 1000000, 1):
            name = f"data_{number:06d}"
            with h5py.File(tmp_path / f"{name}.h5", "w") as data:
                frames = np.full((2, 8, 8), number, np.uint32)
                data.create_dataset("entry/data/data", data=frames, chunks=(1, 8, 8), **hdf5plugin.Bitshuffle())
            file[f"entry/data/{name}"] = h5py.ExternalLink(f"{name}.h5", "/entry/data/data")
        file["entry/instrument/beam/incident_wavelength"] = 1.2
    parts = read(path)
    assert parts.patterns is not None
    np.testing.assert_array_equal(parts.patterns[:, 0, 0], [1, 1, 2, 2, 10, 10, 1000000, 1000000])
    assert parts.geometry.wavelength_m == pytest.approx(1.2e-10)


def test_a_missing_data_file_of_an_eiger_is_named(tmp_path: Path) -> None:
    path = tmp_path / "scan_master.h5"
    with h5py.File(path, "w") as file:
        file["entry/data/data_000001"] = h5py.ExternalLink("scan_data_000001.h5", "/entry/data/data")
    with pytest.raises(DataError, match=r"data_000001 is a link to scan_data_000001\.h5, which does not exist"):
        load_scan(path)


def test_zarr_arrays_of_python_objects_are_refused(tmp_path: Path) -> None:
    (tmp_path / "scan.zarr").mkdir()
    (tmp_path / "scan.zarr" / ".zarray").write_text('{"zarr_format": 2, "filters": [{"id": "pickle"}]}')
    with pytest.raises(DataError, match="pickle"):
        load_scan(tmp_path / "scan.zarr", measurement="counts")


def test_a_damaged_zarr_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "scan.zarr").mkdir()
    (tmp_path / "scan.zarr" / ".zarray").write_text('{"zarr_format": 2, "shape": [3')
    with pytest.raises(DataError, match="Zarr folder cannot be read"):
        load_scan(tmp_path / "scan.zarr", measurement="counts")


def test_images_of_a_series_that_differ_in_shape_are_refused(tmp_path: Path) -> None:
    tifffile = pytest.importorskip("tifffile")
    for index, side in enumerate((16, 16, 12)):
        tifffile.imwrite(tmp_path / f"frame_{index}.tif", np.zeros((side, 16), np.uint16))
    with pytest.raises(DataError, match=r"frame_2\.tif: the image has shape \(12, 16\) .*; expected \(16, 16\)"):
        load_scan(tmp_path, measurement="counts")


def test_images_of_a_series_that_differ_in_type_are_refused(tmp_path: Path) -> None:
    tifffile = pytest.importorskip("tifffile")
    for index, kind in enumerate((np.uint8, np.uint8, np.uint16)):
        tifffile.imwrite(tmp_path / f"frame_{index}.tif", np.full((16, 16), 200 if kind == np.uint8 else 300, kind))
    with pytest.raises(DataError, match=r"frame_2\.tif: .* type uint16; expected \(16, 16\) and uint8"):
        load_scan(tmp_path, measurement="counts")


@pytest.mark.parametrize(("values", "expected"), [((0, 0), None), ((3, 0), (3.0, 0.0)), ((5.5, 4), (5.5, 4.0))])
def test_a_beam_center_of_two_zeros_is_unknown(
    tmp_path: Path, values: tuple[float, float], expected: tuple[float, float] | None
) -> None:
    with h5py.File(tmp_path / "center.h5", "w") as file:
        file["y"], file["x"] = values
    with open_hdf5(tmp_path / "center.h5") as tree:
        assert read_center(tree, ("/y", "/x"), InputReport("test")) == expected
        assert read_center(tree, ("/y", "/absent"), InputReport("test")) is None
