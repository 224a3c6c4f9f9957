"""Files of Ptychodus: the middle of arrays, pairing by frame number, bad pixels, probes per pattern, older names."""

from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from ptycho_torch.core.errors import DataError
from ptycho_torch.data.geometry import Geometry
from ptycho_torch.data.scan import Scan
from ptycho_torch.io.scan import load_scan, read_input, read_result_parts, save_scan

COUNT = 5
ROWS, COLUMNS = 41, 50
PIXEL_M = (4e-8, 5e-8)
CENTER_M = (2.1e-6, -1.3e-6)


def make_arrays(size: int) -> dict[str, Any]:
    """Return the datasets of a product whose first position is on the middle of the object."""
    rng = np.random.default_rng(size)
    y = CENTER_M[0] + np.r_[0, rng.uniform(-8, 8, COUNT - 1)] * PIXEL_M[0]
    x = CENTER_M[1] + np.r_[0, rng.uniform(-8, 8, COUNT - 1)] * PIXEL_M[1]
    return {
        "probe_position_indexes": np.arange(COUNT),
        "probe_position_y_m": y,
        "probe_position_x_m": x,
        "probe": rng.normal(size=(1, 2, size, size)) + 1j * rng.normal(size=(1, 2, size, size)),
        "object": rng.normal(size=(1, ROWS, COLUMNS)) + 1j * rng.normal(size=(1, ROWS, COLUMNS)),
    }


def write_product(path: Path, arrays: dict[str, Any], **attributes: Any) -> Path:
    with h5py.File(path, "w") as file:
        for key, value in arrays.items():
            file[key] = value
        sides = {"pixel_height_m": PIXEL_M[0], "pixel_width_m": PIXEL_M[1]}
        file["object"].attrs.update(sides | {"center_y_m": CENTER_M[0], "center_x_m": CENTER_M[1]})
        facts = {"detector_object_distance_m": 2.0, "photon_energy_eV": 8000.0} | attributes
        file.attrs.update({key: value for key, value in facts.items() if value is not None})
    return path


def write_patterns(path: Path, patterns: Any, numbers: Any, bad: Any = None) -> Path:
    with h5py.File(path, "w") as file:
        file["patterns"], file["indexes"] = patterns, numbers
        file["patterns"].attrs.update({"detector_pixel_width_m": 1e-4, "detector_pixel_height_m": 2e-4})
        file["bad_pixels"] = np.zeros(patterns.shape[1:], bool) if bad is None else bad
    return path


def make_patterns(size: int, count: int = COUNT) -> np.ndarray[Any, Any]:
    return np.random.default_rng(7).poisson(20, (count, size, size)).astype(np.uint32)


@pytest.mark.parametrize(("size", "half"), [(16, 0.5), (15, 0.0)])
def test_the_middle_of_the_object_is_half_its_side_less_one(tmp_path: Path, size: int, half: float) -> None:
    # A probe of even N has its center at (N - 1)/2 there, and at N//2 here.
    write_patterns(tmp_path / "diffraction.h5", make_patterns(size), np.arange(COUNT))
    scan = load_scan(write_product(tmp_path / "product.h5", make_arrays(size)))
    np.testing.assert_allclose(scan.positions[0], [(ROWS - 1) / 2 + half, (COLUMNS - 1) / 2 + half])
    assert scan.truth is not None
    assert scan.geometry is not None
    assert scan.geometry.object_pixel_m == pytest.approx(PIXEL_M)
    assert scan.geometry.detector_pixel_m == pytest.approx((2e-4, 1e-4))


@pytest.mark.parametrize("named", ["product.h5", "diffraction.h5"])
def test_patterns_and_positions_are_paired_by_number(tmp_path: Path, named: str) -> None:
    arrays, patterns = make_arrays(16), make_patterns(16)
    arrays["probe_position_indexes"] = np.array([4, 9, 1, 0, 3])
    write_product(tmp_path / "product.h5", arrays)
    write_patterns(tmp_path / "diffraction.h5", patterns, np.array([0, 1, 2, 3, 4]))
    scan, report = read_input(tmp_path / named)
    counts = np.rint(np.square(scan.amplitudes, dtype=np.float64))
    np.testing.assert_array_equal(counts, patterns[[0, 1, 3, 4]])
    columns = (scan.positions[:, 1] - 24.5 - 0.5) * PIXEL_M[1] + CENTER_M[1]
    np.testing.assert_allclose(columns, arrays["probe_position_x_m"][[3, 2, 4, 0]])
    assert any("1 patterns and 1 positions" in text for text in report.assumptions)


def test_bad_pixels_do_not_count(tmp_path: Path) -> None:
    bad = np.zeros((16, 16), bool)
    bad[2, 5:9] = True
    write_patterns(tmp_path / "diffraction.h5", make_patterns(16), np.arange(COUNT), bad)
    mask = load_scan(write_product(tmp_path / "product.h5", make_arrays(16))).mask
    assert mask is not None
    np.testing.assert_array_equal(mask, ~bad)


def test_a_checkpoint_takes_the_patterns_of_its_folder(tmp_path: Path) -> None:
    write_patterns(tmp_path / "diffraction.h5", make_patterns(16), np.arange(COUNT))
    assert len(load_scan(write_product(tmp_path / "product.000010.h5", make_arrays(16)))) == COUNT


def test_a_product_of_arrays_in_npz_is_read(tmp_path: Path) -> None:
    arrays = make_arrays(16)
    sides = {"object_pixel_height_m": PIXEL_M[0], "object_pixel_width_m": PIXEL_M[1]}
    center = {"object_center_y_m": CENTER_M[0], "object_center_x_m": CENTER_M[1]}
    facts = {"photon_energy_eV": 8000.0, "detector_object_distance_m": 2.0, "far_field": True}
    np.savez(tmp_path / "product.npz", **arrays, **sides, **center, **facts)
    bad = np.zeros((16, 16), bool)
    np.savez(tmp_path / "diffraction.npz", patterns=make_patterns(16), indexes=np.arange(COUNT), bad_pixels=bad)
    write_product(tmp_path / "product.h5", arrays)
    first = load_scan(tmp_path / "product.npz")
    write_patterns(tmp_path / "diffraction.h5", make_patterns(16), np.arange(COUNT))
    second = load_scan(tmp_path / "product.h5")
    np.testing.assert_array_equal(first.positions, second.positions)
    np.testing.assert_array_equal(first.amplitudes, second.amplitudes)
    assert first.probe is not None
    np.testing.assert_array_equal(first.probe, second.require_probe())


def test_a_probe_per_pattern_becomes_its_mean(tmp_path: Path) -> None:
    arrays = make_arrays(16)
    rng = np.random.default_rng(4)
    arrays["probe"] = rng.normal(size=(3, 2, 16, 16)) + 0j
    arrays["opr_weights"] = rng.uniform(0, 1, (COUNT, 3))
    parts = read_result_parts(write_product(tmp_path / "product.h5", arrays))
    assert parts.probe is not None
    per_pattern = np.tensordot(arrays["opr_weights"], arrays["probe"][:, 0], axes=1)
    np.testing.assert_allclose(parts.probe, [per_pattern.mean(0), arrays["probe"][0, 1]])
    assert any("orthogonal relaxation" in text for text in parts.report.assumptions)


def test_layers_of_the_object_are_multiplied(tmp_path: Path) -> None:
    arrays = make_arrays(16)
    arrays["object"] = np.repeat(arrays["object"], 2, axis=0)
    parts = read_result_parts(write_product(tmp_path / "product.h5", arrays))
    assert parts.object is not None
    np.testing.assert_allclose(parts.object, arrays["object"][0] ** 2)


def test_the_older_name_of_the_energy_is_read(tmp_path: Path) -> None:
    path = write_product(tmp_path / "product.h5", make_arrays(16), photon_energy_eV=None, probe_energy_eV=9000.0)
    assert read_result_parts(path).geometry.energy_ev == pytest.approx(9000.0)


def test_a_near_field_is_refused(tmp_path: Path) -> None:
    write_patterns(tmp_path / "diffraction.h5", make_patterns(16), np.arange(COUNT))
    with pytest.raises(DataError, match="near field"):
        load_scan(write_product(tmp_path / "product.h5", make_arrays(16), far_field=False))


def test_one_half_of_a_pair_names_the_missing_one(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="`patterns_file`"):
        load_scan(write_product(tmp_path / "product.h5", make_arrays(16)))
    with pytest.raises(DataError, match="`positions_file`"):
        load_scan(write_patterns(tmp_path / "frames.h5", make_patterns(16), np.arange(COUNT)))


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("probe", np.ones((16, 16)), "/probe is float64"),
        ("probe_position_indexes", np.arange(3), "probe_position_indexes has 3 values"),
        ("object", np.ones(9, complex), "/object has shape"),
        ("opr_weights", np.ones((COUNT, 4)), "opr_weights has shape"),
    ],
)
def test_errors_name_the_dataset(tmp_path: Path, key: str, value: Any, message: str) -> None:
    arrays = make_arrays(16)
    arrays["probe"] = np.repeat(arrays["probe"], 2, axis=0)
    with pytest.raises(DataError, match=message):
        read_result_parts(write_product(tmp_path / "product.h5", arrays | {key: value}))


def test_a_scan_is_written_as_a_pair(tmp_path: Path) -> None:
    rng = np.random.default_rng(5)
    geometry = Geometry(wavelength_m=1e-10, distance_m=1.0, detector_pixel_m=(1e-4, 1e-4)).complete(16)
    scan = Scan(
        np.sqrt(rng.poisson(20, (COUNT, 16, 16))),
        rng.uniform(9, 20, (COUNT, 2)),
        probe=np.ones((16, 16), complex),
        photons_per_unit=1.0,
        geometry=geometry,
    )
    save_scan(tmp_path / "sample.h5", scan, format="ptychodus")
    assert {path.name for path in tmp_path.iterdir()} == {"sample.h5", "sample_diffraction.h5"}
    loaded = load_scan(tmp_path / "sample_diffraction.h5")
    np.testing.assert_allclose(loaded.amplitudes, scan.amplitudes, rtol=1e-6)
    np.testing.assert_allclose(np.diff(loaded.positions, axis=0), np.diff(scan.positions, axis=0), atol=1e-9)
