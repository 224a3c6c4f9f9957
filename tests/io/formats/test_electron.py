"""Formats of electron microscopes: EMPAD, EMD, ptydy, PtyRAD and phaser."""

import json
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from cases_electron import XML

from ptycho_torch.core.errors import ConfigError, DataError
from ptycho_torch.data.geometry import compute_electron_wavelength
from ptycho_torch.io.reconstruction import load_reconstruction
from ptycho_torch.io.scan import load_scan, read_input

ROWS, COLUMNS, SIZE = 3, 4, 16
STEP_A, PIXEL_A = 2.4, 0.3
WAVELENGTH_M = compute_electron_wavelength(200e3)


def make_counts(size: int = SIZE) -> np.ndarray:
    counts: np.ndarray = np.random.default_rng(0).poisson(9, (ROWS, COLUMNS, size, size)).astype(np.float32)
    counts[:, :, 3, 11] += np.arange(ROWS * COLUMNS).reshape(ROWS, COLUMNS) * 10 + 100
    return counts


def check_order(scan: Any, size: int = SIZE) -> None:
    """Check that patterns and positions are in the order of the scan, columns first."""
    np.testing.assert_allclose(np.square(scan.amplitudes), make_counts(size).reshape(-1, size, size), rtol=1e-5)
    rows, columns = np.divmod(np.arange(ROWS * COLUMNS), COLUMNS)
    steps = (scan.positions - scan.positions[0]) * PIXEL_A / STEP_A
    np.testing.assert_allclose(steps, np.stack([rows, columns], 1), atol=1e-6)


# EMD


def write_emd(path: Path, **calibration: Any) -> Path:
    with h5py.File(path, "w") as file:
        file.attrs["emd_group_type"] = "file"
        file.attrs["version_major"] = 1
        group = file.create_group("datacube_root/datacube")
        group.attrs["emd_group_type"] = "array"
        group.attrs["python_class"] = "DataCube"
        group["data"] = make_counts()
        values: dict[str, Any] = {
            "R_pixel_size": STEP_A,
            "R_pixel_units": "A",
            "Q_pixel_size": 1 / (SIZE * PIXEL_A),
            "Q_pixel_units": "A^-1",
        }
        for name, value in (values | calibration).items():
            file[f"datacube_root/metadatabundle/calibration/{name}"] = value
    return path


def test_emd_gives_raster_and_object_pixel(tmp_path: Path) -> None:
    scan = load_scan(write_emd(tmp_path / "scan.h5"), voltage_kv=200)
    check_order(scan)
    assert scan.geometry is not None
    assert scan.geometry.object_pixel_m == pytest.approx((PIXEL_A * 1e-10,) * 2)
    assert scan.geometry.radiation == "electron"
    assert scan.geometry.wavelength_m == pytest.approx(WAVELENGTH_M)


@pytest.mark.parametrize(("step", "unit"), [(STEP_A / 10, "nm"), (STEP_A, "Å")])
def test_emd_units_are_converted(tmp_path: Path, step: float, unit: str) -> None:
    path = write_emd(tmp_path / "scan.h5", R_pixel_size=step, R_pixel_units=unit)
    check_order(load_scan(path))


def test_emd_angle_per_pixel_requires_a_wavelength(tmp_path: Path) -> None:
    angle = WAVELENGTH_M / (SIZE * PIXEL_A * 1e-10) * 1e3
    path = write_emd(tmp_path / "scan.h5", Q_pixel_size=angle, Q_pixel_units="mrad")
    check_order(load_scan(path, voltage_kv=200))
    with pytest.raises(ConfigError, match="voltage_kv"):
        load_scan(path)


def test_emd_without_scan_step_requires_settings(tmp_path: Path) -> None:
    path = write_emd(tmp_path / "scan.h5", R_pixel_size=1, R_pixel_units="pixels")
    with pytest.raises(DataError, match="`position_unit` and `position_scale`"):
        load_scan(path)
    check_order(load_scan(path, position_unit="angstrom", position_scale=STEP_A))


def test_emd_rotation_turns_the_scan_and_a_transposed_detector_exchanges_its_axes(tmp_path: Path) -> None:
    plain = load_scan(write_emd(tmp_path / "plain.h5"))
    turned, report = read_input(write_emd(tmp_path / "turned.h5", QR_rotation=np.pi / 2))
    steps = np.diff(plain.positions, axis=0)
    np.testing.assert_allclose(np.diff(turned.positions, axis=0), np.stack([steps[:, 1], -steps[:, 0]], 1), atol=1e-9)
    assert any("-90" in each for each in report.assumptions)
    same = load_scan(write_emd(tmp_path / "degrees.h5", QR_rotation_degrees=90.0))
    np.testing.assert_allclose(same.positions, turned.positions, atol=1e-9)
    swapped = load_scan(write_emd(tmp_path / "swapped.h5", QR_flip=True))
    np.testing.assert_allclose(np.diff(swapped.positions, axis=0), steps[:, ::-1], atol=1e-9)


def test_emd_center_of_the_beam_moves_the_window(tmp_path: Path) -> None:
    maps = {"qx0": np.full((ROWS, COLUMNS), SIZE // 2 + 2.2), "qy0": np.full((ROWS, COLUMNS), SIZE // 2 - 1.0)}
    scan = load_scan(write_emd(tmp_path / "scan.h5", **maps))
    counts = make_counts().reshape(-1, SIZE, SIZE)
    np.testing.assert_allclose(np.square(scan.amplitudes[:, :-2, 1:]), counts[:, 2:, :-1], rtol=1e-5)
    assert scan.mask is not None
    assert not scan.mask[-2:].any()


@pytest.mark.parametrize("group", ["4DSTEM_experiment/data/datacubes/datacube_0", "experiment/cube"])
def test_legacy_emd_takes_the_steps_of_its_axes(tmp_path: Path, group: str) -> None:
    path = tmp_path / "legacy.h5"
    with h5py.File(path, "w") as file:
        file.create_group(group).attrs["emd_group_type"] = 1
        file[f"{group}/data"] = make_counts()
        for axis, (step, unit) in enumerate([(STEP_A, "[Å]")] * 2 + [(1 / (SIZE * PIXEL_A), "[A^-1]")] * 2):
            file[f"{group}/dim{axis + 1}"] = np.arange(4) * step
            file[f"{group}/dim{axis + 1}"].attrs["units"] = unit
    check_order(load_scan(path))


def test_emd_of_two_scans_requires_a_key(tmp_path: Path) -> None:
    path = write_emd(tmp_path / "scan.h5")
    with h5py.File(path, "r+") as file:
        file["datacube_root/other/data"] = make_counts() * 2
        file["datacube_root/other"].attrs["python_class"] = "DataCube"
    with pytest.raises(DataError, match="`diffraction_key`"):
        load_scan(path)
    check_order(load_scan(path, diffraction_key="datacube_root/datacube/data"))


# ptydy


@pytest.mark.parametrize("rank", [3, 4])
def test_ptydy_gives_raster_and_wavelength(tmp_path: Path, rank: int) -> None:
    path = tmp_path / "ptydy.h5"
    with h5py.File(path, "w") as file:
        file.attrs.update({"ptydy_format": "ptydy-dataset", "ptydy_format_version": 1, "dataset": "/cube"})
        file["cube"] = make_counts() if rank == 4 else make_counts().reshape(-1, SIZE, SIZE)
        file["cube"].attrs["scan_shape"] = [ROWS, COLUMNS]
        file.create_group("ptydy/calibration").attrs.update(
            {
                "R_pixel_size": STEP_A,
                "R_pixel_units": "A",
                "Q_pixel_size": 1 / (SIZE * PIXEL_A),
                "Q_pixel_units": "A^-1",
                "QR_flip": False,
                "QR_rotation": 0.0,
                "voltage": 200e3,
            }
        )
    scan = load_scan(path)
    check_order(scan)
    assert scan.geometry is not None
    assert scan.geometry.wavelength_m == pytest.approx(WAVELENGTH_M)


# EMPAD


def write_empad(folder: Path, name: str = "acquisition.raw", footer: int = 2) -> Path:
    """Write frames whose rows are reversed, with footers."""
    frames = np.zeros((ROWS * COLUMNS, 128 + footer, 128), "<f4")
    frames[:, :128] = make_counts(128).reshape(-1, 128, 128)[:, ::-1]
    frames[:, 128:] = 7e7
    frames.tofile(folder / name)
    return folder / name


def write_xml(folder: Path, name: str = "acquisition.raw", text: str = XML, rotation: float = 0.0) -> Path:
    path = folder / "acquisition.xml"
    field = STEP_A * 1e-10 * max(ROWS, COLUMNS)
    path.write_text(text.format(name=name, rows=ROWS, columns=COLUMNS, width=field, height=field, rotation=rotation))
    return path


def check_empad(scan: Any) -> None:
    inner = slice(2, -2)
    expected = make_counts(128).reshape(-1, 128, 128)
    np.testing.assert_allclose(np.square(scan.amplitudes)[:, inner, inner], expected[:, inner, inner], rtol=1e-5)
    assert scan.mask[2:-2, 2:-2].all()
    assert scan.mask.sum() == 124**2
    rows, columns = np.divmod(np.arange(ROWS * COLUMNS), COLUMNS)
    steps = (scan.positions - scan.positions[0]) * PIXEL_A / STEP_A
    np.testing.assert_allclose(steps, np.stack([rows, columns], 1), atol=1e-6)


@pytest.mark.parametrize("footer", [2, 0])
def test_empad_reads_raw_or_xml(tmp_path: Path, footer: int) -> None:
    raw, xml = write_empad(tmp_path, footer=footer), write_xml(tmp_path)
    for path in (raw, xml):
        scan = load_scan(path, pixel_size=PIXEL_A * 1e-10)
        check_empad(scan)
        assert scan.geometry.wavelength_m == pytest.approx(WAVELENGTH_M)
    with pytest.raises(ConfigError, match="`detector_pixel`"):
        load_scan(xml)


def test_empad_reads_selected_frames(tmp_path: Path) -> None:
    raw, whole = write_empad(tmp_path), write_xml(tmp_path)
    scan = load_scan(raw, pixel_size=PIXEL_A * 1e-10, frames="2:11:3")
    expected = load_scan(whole, pixel_size=PIXEL_A * 1e-10).amplitudes[2:11:3]
    np.testing.assert_array_equal(scan.amplitudes, expected)


def test_empad_takes_the_shape_of_the_scan_from_its_name(tmp_path: Path) -> None:
    raw = write_empad(tmp_path, f"scan_x{COLUMNS}_y{ROWS}.raw")
    with pytest.raises(DataError, match="`position_scale`"):
        load_scan(raw)
    check_empad(
        load_scan(raw, position_unit="angstrom", position_scale=STEP_A, pixel_size=PIXEL_A * 1e-10, voltage_kv=80)
    )


def test_empad_reads_the_metadata_of_phaser(tmp_path: Path) -> None:
    raw = write_empad(tmp_path)
    values = {
        "file_type": "empad_metadata",
        "raw_filename": raw.name,
        "voltage": 200e3,
        "scan_shape": [COLUMNS, ROWS],
        "scan_step": [STEP_A * 1e-10] * 2,
        "diff_step": WAVELENGTH_M / (128 * PIXEL_A * 1e-10) * 1e3,
        "adu": 1.25,
    }
    (tmp_path / "scan.json").write_text(json.dumps(values))
    scan = load_scan(tmp_path / "scan.json")
    check_empad(scan)
    assert scan.photons_per_unit == pytest.approx(0.8)
    check_empad(load_scan(raw))


def test_empad_scan_rotation_turns_the_positions(tmp_path: Path) -> None:
    raw = write_empad(tmp_path)
    write_xml(tmp_path, rotation=np.pi / 2)
    scan, report = read_input(raw, pixel_size=PIXEL_A * 1e-10)
    first_row = np.diff(scan.positions, axis=0)[0] * PIXEL_A / STEP_A
    np.testing.assert_allclose(first_row, [1, 0], atol=1e-6)
    assert any("rotated" in each for each in report.assumptions)


def test_empad_frames_must_fill_the_scan(tmp_path: Path) -> None:
    raw = write_empad(tmp_path)
    xml = write_xml(tmp_path)
    for size in (raw.stat().st_size - 4, raw.stat().st_size - 130 * 128 * 4):
        raw.write_bytes(raw.read_bytes()[:size])
        with pytest.raises(DataError, match="expected 12"):
            load_scan(xml)
    raw.unlink()
    with pytest.raises(DataError, match=r"raw_file is acquisition\.raw, which does not exist"):
        load_scan(xml)


def test_empad_xml_with_entities_is_refused(tmp_path: Path) -> None:
    write_empad(tmp_path)
    bomb = '<!DOCTYPE r [<!ENTITY a "aaaaaaaaaa"><!ENTITY b "&a;&a;&a;">]>' + XML.partition("?>")[2]
    with pytest.raises(DataError, match="document type or entities"):
        load_scan(write_xml(tmp_path, text=bomb))
    with pytest.raises(DataError, match="XML is damaged"):
        load_scan(write_xml(tmp_path, text=XML[:-9]))


def test_empad_xml_never_leaves_its_folder(tmp_path: Path) -> None:
    folder = tmp_path / "inner"
    folder.mkdir()
    write_empad(tmp_path, "outside.raw")
    with pytest.raises(DataError, match=r"outside\.raw, which does not exist"):
        load_scan(write_xml(folder, "..\\\\outside.raw"))


# Results


@pytest.mark.parametrize("layout", [1, 2])
def test_ptyrad_multiplies_slices_and_adds_shifts(tmp_path: Path, layout: int) -> None:
    rng = np.random.default_rng(2)
    amplitude, phase = rng.uniform(0.5, 1, (2, 3, 40, 42)), rng.uniform(-1, 1, (2, 3, 40, 42))
    corners, shifts = rng.integers(0, 24, (5, 2)), rng.uniform(-0.5, 0.5, (5, 2))
    probe = rng.normal(size=(2, SIZE, SIZE)) + 1j
    path = tmp_path / "model.hdf5"
    first = ("optimizable_tensors/obja", "optimizable_tensors/objp", "optimizable_tensors/probe")
    first += ("model_attributes/crop_pos", "optimizable_tensors/probe_pos_shifts", "model_attributes/")
    parts = "components"
    second = (f"{parts}/object/tensors/amp", f"{parts}/object/tensors/phase", f"{parts}/probe/tensors/modes")
    second += (f"{parts}/positions/tensors/crop_pos", f"{parts}/positions/tensors/shifts", "model_meta/")
    names = first if layout == 1 else second
    with h5py.File(path, "w") as file:
        for name, value in zip(names, (amplitude, phase, probe, corners, shifts), strict=False):
            file[name] = value
        file[names[-1] + "dx"], file[names[-1] + "lambd"] = PIXEL_A, 0.0251
    result = load_reconstruction(path)
    np.testing.assert_allclose(result.object, (amplitude * np.exp(1j * phase))[0].prod(0), rtol=1e-5)
    np.testing.assert_allclose(result.positions, corners + SIZE // 2 + shifts)
    assert result.probe.shape == (2, SIZE, SIZE)
    assert result.geometry is not None
    assert result.geometry.object_pixel_m == pytest.approx((PIXEL_A * 1e-10,) * 2)


@pytest.mark.parametrize("version", ["0.1", "0.2"])
@pytest.mark.parametrize("size", [16, 15])
def test_phaser_windows_start_half_a_pixel_from_ours_for_even_sizes(tmp_path: Path, version: str, size: int) -> None:
    rng = np.random.default_rng(3)
    obj, probe = rng.normal(size=(2, 40, 42)) + 1j, rng.normal(size=(1, size, size)) + 1j
    positions, corner = rng.uniform(2, 6, (5, 2)), np.array([-1.0, 2.0])
    path = write_phaser(tmp_path / "state.h5", obj, probe, positions, corner, version)
    result = load_reconstruction(path)
    top_left = (positions - corner) / PIXEL_A - (size - 1) / 2
    np.testing.assert_allclose(result.positions - size // 2, top_left)
    np.testing.assert_allclose(result.object, obj.prod(0), rtol=1e-5)


def write_phaser(path: Path, obj: Any, probe: Any, positions: Any, corner: Any, version: str) -> Path:
    with h5py.File(path, "w") as file:
        file["type"], file["version"], file["wavelength"] = "phaser_state", version, 0.0251
        file["probe/data"], file["probe/sampling"] = probe, [PIXEL_A] * 2
        file["object/data"], file["object/sampling"], file["object/corner"] = obj, [PIXEL_A] * 2, corner
        file["scan" if version == "0.1" else "scan/data"] = positions.reshape(5, 1, 2)
    return path


def test_phaser_of_a_later_version_is_refused(tmp_path: Path) -> None:
    path = write_phaser(
        tmp_path / "state.h5", np.ones((1, 9, 9)) + 0j, np.ones((1, 4, 4)) + 0j, np.zeros((5, 2)), [0.0, 0.0], "0.3"
    )
    with pytest.raises(DataError, match=r"/version is 0\.3"):
        load_reconstruction(path)


def test_results_name_the_setting_of_the_patterns(tmp_path: Path) -> None:
    path = write_phaser(
        tmp_path / "state.h5", np.ones((1, 40, 40)) + 0j, np.ones((1, 16, 16)) + 0j, np.ones((5, 2)), [0.0, 0.0], "0.2"
    )
    with pytest.raises(DataError, match="no patterns in the file"):
        load_scan(path)
    np.save(tmp_path / "patterns.npy", np.random.default_rng(0).poisson(9, (5, 16, 16)))
    assert len(load_scan(path, patterns_file=tmp_path / "patterns.npy", measurement="counts")) == 5
