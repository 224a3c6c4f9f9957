"""CXI and NeXus files in the wild: missing and odd datasets, units, several masks, results."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from cases import make_truth

from ptycho_torch.core.errors import DataError
from ptycho_torch.data.geometry import ELEMENTARY_CHARGE_C
from ptycho_torch.data.reconstruction import Reconstruction
from ptycho_torch.io.formats.registry import get_format
from ptycho_torch.io.scan import load_scan, read_input, read_result_parts, save_scan

DETECTOR = "entry_1/instrument_1/detector_1"
TRANSLATION = "entry_1/sample_1/geometry_1/translation"
ENERGY = "entry_1/instrument_1/source_1/energy"

Write = Callable[..., Path]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """Writes a small CXI file; datasets are replaced by path, None leaves one out."""

    def write_file(**changes: Any) -> Path:
        generator = np.random.default_rng(0)
        content: dict[str, Any] = {
            f"{DETECTOR}/data": generator.poisson(40, (4, 8, 8)).astype(np.int32),
            f"{DETECTOR}/distance": 1.0,
            f"{DETECTOR}/x_pixel_size": 1e-4,
            f"{DETECTOR}/y_pixel_size": 2e-4,
            ENERGY: 8000 * ELEMENTARY_CHARGE_C,
            TRANSLATION: generator.uniform(-1e-6, 1e-6, (4, 3)),
        }
        content |= changes.pop("content", {})
        path = tmp_path / "scan.cxi"
        with h5py.File(path, "w") as file:
            for place, value in content.items():
                if value is not None:
                    file[place] = value
        return path

    return write_file


def test_x_pixel_size_is_the_step_of_columns(write: Write) -> None:
    geometry = load_scan(write()).geometry
    assert geometry is not None
    assert geometry.detector_pixel_m == (2e-4, 1e-4)


def test_a_single_pixel_size_means_square_pixels(write: Write) -> None:
    geometry = load_scan(write(content={f"{DETECTOR}/y_pixel_size": None})).geometry
    assert geometry is not None
    assert geometry.detector_pixel_m == (1e-4, 1e-4)


def test_an_energy_in_electronvolts_is_refused_unless_a_setting_gives_the_energy(write: Write) -> None:
    path = write(content={ENERGY: 8000.0})
    with pytest.raises(DataError, match=r"source_1/energy is 8000 J.*`energy_ev`"):
        load_scan(path)
    geometry = load_scan(path, energy_ev=8000.0).geometry
    assert geometry is not None
    assert geometry.energy_ev == pytest.approx(8000)


def test_the_unit_of_a_dataset_has_priority(write: Write) -> None:
    path = write(content={ENERGY: 8.0, f"{DETECTOR}/distance": 1000.0})
    with h5py.File(path, "a") as file:
        file[ENERGY].attrs["units"] = "keV"
        file[f"{DETECTOR}/distance"].attrs["units"] = "mm"
    geometry = load_scan(path).geometry
    assert geometry is not None
    assert geometry.energy_ev == pytest.approx(8000)
    assert geometry.distance_m == pytest.approx(1.0)


def test_translations_of_two_columns_are_x_and_y(write: Write) -> None:
    full = load_scan(write()).positions
    with h5py.File(write(), "r") as file:
        pairs = file[TRANSLATION][:, :2]
    np.testing.assert_allclose(load_scan(write(content={TRANSLATION: pairs})).positions, full)


def test_translations_without_the_number_of_the_geometry_are_found(write: Write) -> None:
    full = load_scan(write()).positions
    with h5py.File(write(), "r") as file:
        values = file[TRANSLATION][()]
    moved = {TRANSLATION: None, "entry_1/sample_1/geometry/translation": values}
    np.testing.assert_allclose(load_scan(write(content=moved)).positions, full)


def test_a_basis_per_frame_is_averaged(write: Write) -> None:
    full = load_scan(write()).positions
    basis = np.tile([[0, -2e-4, 0], [-1e-4, 0, 0]], (4, 1, 1))
    np.testing.assert_allclose(load_scan(write(content={f"{DETECTOR}/basis_vectors": basis})).positions, full)


def test_a_reversed_basis_negates_the_positions(write: Write) -> None:
    full = load_scan(write()).positions
    basis = np.array([[0, 2e-4, 0], [1e-4, 0, 0]])
    reversed_positions = load_scan(write(content={f"{DETECTOR}/basis_vectors": basis})).positions
    np.testing.assert_allclose(reversed_positions - reversed_positions.mean(0), full.mean(0) - full, atol=1e-9)


def test_only_the_values_0_and_signal_of_a_mask_count(write: Write) -> None:
    bits = np.zeros((4, 8, 8), np.uint32)
    for column, value in enumerate((0x1, 0x2, 0x4, 0x8, 0x200, 0x1000, 0x1001)):
        bits[1, 3, column] = value
    mask = load_scan(write(content={f"{DETECTOR}/mask": bits})).mask
    assert mask is not None
    np.testing.assert_array_equal(mask[1, 3], [False, False, False, False, False, True, False, True])
    assert mask[[0, 2, 3]].all()


def test_dark_frames_are_subtracted_and_negative_counts_become_zero(write: Write) -> None:
    with h5py.File(write(), "r") as file:
        counts = file[f"{DETECTOR}/data"][()]
    dark = np.full((5, 8, 8), 38.0)
    scan = load_scan(write(content={f"{DETECTOR}/data_dark": dark}))
    np.testing.assert_allclose(scan.amplitudes**2, np.maximum(counts - 38.0, 0), rtol=1e-5)


def test_counts_per_joule_give_the_photons_per_count(write: Write) -> None:
    per_joule = 0.25 / (8000 * ELEMENTARY_CHARGE_C)
    assert load_scan(write(content={f"{DETECTOR}/counts_per_joule": per_joule})).photons_per_unit == pytest.approx(4)


def test_a_near_field_is_refused_by_its_title(write: Write) -> None:
    with pytest.raises(DataError, match="near field"):
        load_scan(write(content={"entry_1/title": "Near-field ptychography"}))


@pytest.mark.parametrize(("path", "label"), [(f"{DETECTOR}/data", "patterns"), (TRANSLATION, "positions")])
def test_a_missing_half_is_named(write: Write, path: str, label: str) -> None:
    with pytest.raises(DataError, match=rf"no .*{label}.*{path}"):
        load_scan(write(content={path: None}))


def test_no_positions_mean_one_frame_of_two_axes(write: Write) -> None:
    path = write(content={f"{DETECTOR}/data": np.ones((8, 8)), TRANSLATION: np.zeros((1, 3))})
    assert load_scan(path).amplitudes.shape == (1, 8, 8)


def test_rectangular_detectors_are_padded_with_masked_pixels(write: Write) -> None:
    scan = load_scan(write(content={f"{DETECTOR}/data": np.ones((4, 6, 10), np.uint16)}))
    assert scan.amplitudes.shape == (4, 10, 10)
    assert scan.mask is not None
    np.testing.assert_array_equal(scan.mask.sum(0), np.full(10, 6))


@pytest.mark.parametrize("suffix", ["cxi", "nxs"])
@pytest.mark.parametrize("size", [16, 15])
def test_results_keep_object_probe_and_the_place_of_positions(suffix: str, size: int, tmp_path: Path) -> None:
    truth = make_truth(size)
    result = Reconstruction(
        object=truth.object.astype(np.complex64),
        coverage=np.ones(truth.object.shape, np.float32),
        origin_yx=np.array([-3, 5]),
        probe=truth.probe.astype(np.complex64),
        positions=truth.positions + np.array([-3, 5]),
        geometry=truth.geometry,
    )
    path = tmp_path / f"result.{suffix}"
    get_format({"cxi": "cxi", "nxs": "nexus"}[suffix]).write_result(path, result)
    parts = read_result_parts(path)
    assert parts.patterns is None
    assert parts.positions is not None
    assert parts.object_origin is not None
    placed = (parts.positions - parts.object_origin) / np.asarray(parts.geometry.object_pixel_m)
    np.testing.assert_allclose(placed, truth.positions, atol=1e-6)
    np.testing.assert_array_equal(parts.object, result.object)
    np.testing.assert_array_equal(parts.probe, result.probe)


def test_equal_scans_give_equal_bytes(tmp_path: Path) -> None:
    scan = make_truth(16).make_scan()
    for name in ("a.cxi", "b.cxi"):
        save_scan(tmp_path / name, scan)
    assert (tmp_path / "a.cxi").read_bytes() == (tmp_path / "b.cxi").read_bytes()


def test_rectangular_detector_pixels_keep_their_sides(tmp_path: Path) -> None:
    truth = make_truth(16, square_pixels=False)
    save_scan(tmp_path / "scan.cxi", truth.make_scan())
    scan = load_scan(tmp_path / "scan.cxi")
    np.testing.assert_allclose(scan.positions, truth.positions, atol=1e-6)
    assert scan.geometry is not None
    assert scan.geometry.detector_pixel_m == truth.geometry.detector_pixel_m


def test_the_machine_energy_of_a_nexus_source_is_passed_over(tmp_path: Path) -> None:
    path = tmp_path / "scan.nxs"
    save_scan(path, make_truth(16).make_scan())
    with h5py.File(path, "a") as file:
        del file["entry_1/instrument_1/source_1/wavelength"]
        file[ENERGY][...] = 3e9
        file[ENERGY].attrs["units"] = "eV"
    found = read_input(path)
    assert found.scan.geometry is not None
    assert found.scan.geometry.energy_ev == pytest.approx(8000)
