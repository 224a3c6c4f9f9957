"""Exports of Ptychodus for networks: counts, inverted mask and half pixel, apart from the package's own files."""

from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from ptycho_torch.core.errors import DataError, PtychoError
from ptycho_torch.io.scan import load_scan, read_input, save_scan

COUNT = 6


def make_arrays(size: int) -> dict[str, Any]:
    rng = np.random.default_rng(size)
    bad = np.zeros((size, size), bool)
    bad[2, 5:9] = True
    return {
        "patterns": rng.poisson(20, (COUNT, size, size)).astype(np.uint32),
        "bad_pixels": bad,
        "probe": rng.normal(size=(2, size, size)) + 1j,
        "object": rng.normal(size=(40, 44)) + 1j,
        "probe_position_y_px": rng.uniform(12, 25, COUNT),
        "probe_position_x_px": rng.uniform(12, 25, COUNT),
    }


def write_training(path: Path, arrays: dict[str, Any]) -> Path:
    facts = {"object_pixel_height_m": 4e-8, "object_pixel_width_m": 5e-8, "photon_energy_eV": 8000.0}
    with h5py.File(path, "w") as file:
        for key, value in (arrays | facts | {"detector_object_distance_m": 2.0}).items():
            file[key] = value
    return path


def write_pinn(path: Path, arrays: dict[str, Any], **changes: Any) -> Path:
    names = {
        "diff3d": "patterns",
        "bad_pixels": "bad_pixels",
        "probeGuess": "probe",
        "objectGuess": "object",
        "ycoords": "probe_position_y_px",
        "xcoords": "probe_position_x_px",
    }
    content = {name: arrays[source] for name, source in names.items()} | {"scan_index": np.zeros(COUNT, int)}
    np.savez(path, **(content | changes))
    return path


@pytest.mark.parametrize(("size", "half"), [(16, 0.5), (15, 0.0)])
@pytest.mark.parametrize(("name", "write"), [("train.h5", write_training), ("scan.npz", write_pinn)])
def test_counts_mask_and_half_pixel_are_converted(
    tmp_path: Path, name: str, write: Any, size: int, half: float
) -> None:
    arrays = make_arrays(size)
    scan = load_scan(write(tmp_path / name, arrays))
    np.testing.assert_allclose(np.square(scan.amplitudes, dtype=np.float64), arrays["patterns"], rtol=1e-6)
    assert scan.photons_per_unit == 1
    assert scan.mask is not None
    np.testing.assert_array_equal(scan.mask, ~arrays["bad_pixels"])
    expected = np.stack([arrays["probe_position_y_px"], arrays["probe_position_x_px"]], 1) + half
    np.testing.assert_allclose(scan.positions, expected)
    np.testing.assert_allclose(scan.require_probe(), arrays["probe"].astype(np.complex64))


def test_a_training_file_gives_the_geometry(tmp_path: Path) -> None:
    geometry = load_scan(write_training(tmp_path / "train.h5", make_arrays(16))).geometry
    assert geometry is not None
    assert geometry.object_pixel_m == pytest.approx((4e-8, 5e-8))
    assert geometry.energy_ev == pytest.approx(8000.0)


def test_floating_point_patterns_of_an_export_are_counts_too(tmp_path: Path) -> None:
    arrays = make_arrays(16)
    arrays["patterns"] = arrays["patterns"].astype(np.float32)
    scan, report = read_input(write_pinn(tmp_path / "scan.npz", arrays))
    assert report.format == "ptychopinn"
    np.testing.assert_allclose(np.square(scan.amplitudes, dtype=np.float64), arrays["patterns"], rtol=1e-6)


def test_the_packages_own_file_is_not_taken_for_an_export(tmp_path: Path) -> None:
    scan = load_scan(write_pinn(tmp_path / "scan.npz", make_arrays(16)))
    save_scan(tmp_path / "own.npz", scan)
    loaded, report = read_input(tmp_path / "own.npz")
    assert report.format == "npz"
    np.testing.assert_array_equal(loaded.positions, scan.positions)


def test_integers_without_bad_pixels_need_the_measurement(tmp_path: Path) -> None:
    path = write_pinn(tmp_path / "scan.npz", make_arrays(16))
    with np.load(path) as file:
        content = {key: file[key] for key in file.files if key != "bad_pixels"}
    np.savez(path, **content)
    with pytest.raises(PtychoError, match="measurement"):
        load_scan(path)
    assert load_scan(path, measurement="counts").photons_per_unit == 1


@pytest.mark.parametrize(
    ("key", "value"),
    [("bad_pixels", np.full((16, 16), 3)), ("xcoords", np.ones(4)), ("probeGuess", np.ones(3, complex))],
)
def test_errors_name_the_array(tmp_path: Path, key: str, value: Any) -> None:
    with pytest.raises(DataError, match=key):
        load_scan(write_pinn(tmp_path / "scan.npz", make_arrays(16), **{key: value}))
