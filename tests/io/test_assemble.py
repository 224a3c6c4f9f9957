"""The content of a scan file becomes a scan: pairing, corrections, window, units and origin."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ptycho_torch.config.input import make_input_settings
from ptycho_torch.core.errors import ConfigError, ContractError, DataError, PtychoError
from ptycho_torch.data.geometry import Geometry
from ptycho_torch.data.scan import Scan
from ptycho_torch.io.assemble import assemble_scan
from ptycho_torch.io.parts import ScanParts

GEOMETRY = Geometry(wavelength_m=1e-10, distance_m=1.0, detector_pixel_m=(1e-4, 1e-4))
COUNT, SIZE = 6, 16
PIXEL_M = 1e-10 * 1.0 / (SIZE * 1e-4)


def make_parts(**changes: Any) -> ScanParts:
    rng = np.random.default_rng(0)
    parts: dict[str, Any] = {
        "patterns": rng.poisson(5, (COUNT, SIZE, SIZE)).astype(np.uint16),
        "positions": rng.uniform(0, 20, (COUNT, 2)) * PIXEL_M,
        "geometry": GEOMETRY,
    }
    return ScanParts(**(parts | changes))


def assemble(parts: ScanParts, **settings: Any) -> Scan:
    return assemble_scan(parts, make_input_settings(settings), Path("scan.h5"))


def count_photons(scan: Scan) -> np.ndarray[Any, Any]:
    return np.rint(np.square(scan.amplitudes, dtype=np.float64)).astype(int)


def test_counts_positions_and_the_object_pixel_are_converted() -> None:
    parts = make_parts()
    scan = assemble(parts)
    np.testing.assert_array_equal(count_photons(scan), parts.patterns)
    assert parts.positions is not None
    expected = parts.positions / PIXEL_M
    np.testing.assert_allclose(np.diff(scan.positions, axis=0), np.diff(expected, axis=0), rtol=1e-9)
    np.testing.assert_allclose(scan.positions.min(0), SIZE // 2 + 2)
    assert scan.geometry is not None
    assert scan.geometry.object_pixel_m == pytest.approx((PIXEL_M, PIXEL_M))
    assert scan.photons_per_unit == 1
    assert scan.probe is None


def test_the_object_of_the_file_fixes_the_origin() -> None:
    obj = np.ones((40, 44), np.complex64)
    origin = (3 * PIXEL_M, -2 * PIXEL_M)
    parts = make_parts(object=obj, object_origin=origin)
    scan = assemble(parts)
    assert parts.positions is not None
    np.testing.assert_allclose(scan.positions, (parts.positions - origin) / PIXEL_M)
    assert scan.truth is not None
    assert assemble(parts, negate_y=True).truth is None


@pytest.mark.parametrize("shape", [(12, 16), (16, 11)])
def test_frames_that_are_not_square_are_padded_with_masked_pixels(shape: tuple[int, int]) -> None:
    patterns = np.random.default_rng(1).poisson(5, (COUNT, *shape)).astype(np.uint16)
    scan = assemble(make_parts(patterns=patterns))
    assert scan.size == 16
    assert scan.mask is not None
    assert scan.mask.sum() == shape[0] * shape[1]
    np.testing.assert_array_equal(count_photons(scan)[:, scan.mask].reshape(patterns.shape), patterns)
    rows, columns = np.nonzero(scan.mask)
    assert (8 - rows.min(), 8 - columns.min()) == (shape[0] // 2, shape[1] // 2)


@pytest.mark.parametrize(
    ("center", "flip"), [((5.0, 9.0), {}), ((5.2, 8.8), {"flip_y": True}), ((5.0, 9.0), {"transpose": True})]
)
def test_zero_frequency_moves_to_the_middle(center: tuple[float, float], flip: dict[str, bool]) -> None:
    patterns = np.zeros((COUNT, SIZE, SIZE), np.uint16)
    patterns[:, 5, 9], patterns[:, 7, 10] = 9, 4
    for scan in (
        assemble(make_parts(patterns=patterns, center=center), **flip),
        assemble(make_parts(patterns=patterns), center=f"{center[0]},{center[1]}", **flip),
    ):
        photons = count_photons(scan)[0]
        assert photons[8, 8] == 9
        offset = {(): (2, 1), ("flip_y",): (-2, 1), ("transpose",): (1, 2)}[tuple(flip)]
        assert photons[8 + offset[0], 8 + offset[1]] == 4
        assert scan.mask is not None
        assert not scan.mask.all()
    assert count_photons(assemble(make_parts(patterns=patterns, center=center), center="middle"))[0, 5, 9] == 9


@pytest.mark.parametrize("crop", [8, 12, 20])
def test_a_crop_rescales_the_object_pixel_and_the_positions(crop: int) -> None:
    """The field of a pattern is constant: positions in units of it do not change."""
    whole, cropped = assemble(make_parts()), assemble(make_parts(), crop=crop)
    assert cropped.size == crop
    assert cropped.geometry is not None
    assert cropped.geometry.object_pixel_m == pytest.approx((PIXEL_M * SIZE / crop,) * 2)
    np.testing.assert_allclose(
        np.diff(cropped.positions, axis=0) / crop, np.diff(whole.positions, axis=0) / SIZE, rtol=1e-9
    )
    in_pixels = assemble(make_parts(positions=whole.positions, position_unit="pixel"), crop=crop)
    np.testing.assert_allclose(in_pixels.positions, whole.positions * crop / SIZE)


def test_a_cropped_probe_has_the_cropped_far_field() -> None:
    rng = np.random.default_rng(2)
    probe = rng.normal(size=(2, SIZE, SIZE)) + 1j * rng.normal(size=(2, SIZE, SIZE))
    scan = assemble(make_parts(probe=probe), crop=10)
    assert scan.probe is not None
    far_field = np.fft.fftshift(np.fft.fft2(probe, norm="ortho"), axes=(-2, -1))
    cropped = np.fft.fftshift(np.fft.fft2(scan.probe, norm="ortho"), axes=(-2, -1))
    np.testing.assert_allclose(cropped, far_field[:, 3:13, 3:13], atol=1e-5)


def test_binning_sums_counts_and_enlarges_the_detector_pixel() -> None:
    scan = assemble(make_parts(), bin=2)
    assert scan.size == 8
    assert count_photons(scan).sum() == make_parts().patterns.sum()  # type: ignore[union-attr]
    assert scan.geometry is not None
    assert scan.geometry.object_pixel_m == pytest.approx((PIXEL_M, PIXEL_M))
    assert scan.geometry.detector_pixel_m == pytest.approx((2e-4, 2e-4))


def test_dark_and_flat_are_corrected_and_masks_are_combined(tmp_path: Path) -> None:
    rng = np.random.default_rng(3)
    clean = rng.poisson(50, (COUNT, SIZE, SIZE)).astype(np.float64)
    dark = rng.uniform(0, 5, (3, SIZE, SIZE))
    flat = rng.uniform(0.5, 1.5, (SIZE, SIZE))
    flat /= flat.mean()
    mask = np.ones((SIZE, SIZE), bool)
    mask[2, 3] = False
    np.save(tmp_path / "dark.npy", dark)
    np.savez(tmp_path / "many.npz", flat=flat, mask=~mask, other=dark)
    stored = np.ones((SIZE, SIZE), bool)
    stored[4, 5] = False
    raw = (clean * flat + dark.mean(0)).astype(np.float32)
    scan = assemble(
        make_parts(patterns=raw, mask=stored),
        dark=tmp_path / "dark.npy",
        flat=f"{tmp_path / 'many.npz'}:flat",
        mask=tmp_path / "many.npz",
        invert_mask=True,
    )
    np.testing.assert_allclose(np.square(scan.amplitudes), clean, rtol=1e-4, atol=1e-3)
    np.testing.assert_array_equal(scan.mask, mask & stored)
    np.testing.assert_array_equal(assemble(make_parts(mask=~stored), invert_mask=True).mask, stored)
    np.savez(tmp_path / "two.npz", a=flat, b=flat)
    with pytest.raises(DataError, match="expected one array, or FILE:KEY; change `flat`"):
        assemble(make_parts(), flat=tmp_path / "two.npz")
    with pytest.raises(ConfigError, match="`dark` and `flat` apply to counts"):
        assemble(make_parts(patterns=raw, measurement="amplitude"), dark=tmp_path / "dark.npy")


@pytest.mark.parametrize(
    ("dtype", "marker"), [(np.uint16, 65535), (np.uint32, 2**32 - 1), (np.int32, -1), (np.float32, np.nan)]
)
def test_markers_become_masked_pixels(dtype: type, marker: float, caplog: pytest.LogCaptureFixture) -> None:
    patterns = np.random.default_rng(4).poisson(5, (COUNT, SIZE, SIZE)).astype(dtype)
    patterns[:, 3:5] = marker
    scan = assemble(make_parts(patterns=patterns))
    assert scan.mask is not None
    assert scan.mask.ndim == 2
    np.testing.assert_array_equal(np.nonzero(~scan.mask.all(1))[0], [3, 4])
    assert "markers" in caplog.text


def test_small_negative_counts_are_clipped_with_their_number() -> None:
    patterns = np.full((COUNT, SIZE, SIZE), 4.25, np.float32)
    patterns[0, :, 0] = -0.5
    parts = make_parts(patterns=patterns)
    assert (assemble(parts).amplitudes[0, :, 0] == 0).all()
    assert any("16 negative values" in text for text in parts.report.assumptions)


def test_patterns_and_positions_are_paired_by_number() -> None:
    base = make_parts()
    assert base.positions is not None
    numbers = np.array([7, 3, 9, 1, 5, 11])
    shuffled = np.array([2, 0, 5, 1])
    parts = make_parts(pattern_numbers=numbers, positions=base.positions[shuffled], position_numbers=numbers[shuffled])
    scan = assemble(parts)
    order = np.array([1, 0, 2, 5])  # patterns with a position, by ascending number: 3, 7, 9, 11
    np.testing.assert_array_equal(count_photons(scan), base.patterns[order])  # type: ignore[index]
    np.testing.assert_allclose(np.diff(scan.positions, axis=0), np.diff(base.positions[order] / PIXEL_M, axis=0))
    assert any("2 patterns and 0 positions" in text for text in parts.report.assumptions)
    with pytest.raises(ContractError, match="5 positions for 6 patterns"):
        assemble(make_parts(positions=base.positions[:5]))


@pytest.mark.parametrize(("frames", "expected"), [("1:6:2", [1, 3, 5]), ("4,0", [4, 0]), ("file", [2, 5])])
def test_frames_select_patterns_with_their_positions(frames: str, expected: list[int], tmp_path: Path) -> None:
    if frames == "file":
        (tmp_path / "frames.txt").write_text("2\n5\n")
        frames = str(tmp_path / "frames.txt")
    whole, part = assemble(make_parts()), assemble(make_parts(), frames=frames)
    np.testing.assert_array_equal(part.amplitudes, whole.amplitudes[expected])
    np.testing.assert_allclose(np.diff(part.positions, axis=0), np.diff(whole.positions[expected], axis=0))
    np.testing.assert_array_equal(part.source_index, expected)
    assert assemble(make_parts(), frames="0:6").source_index is None


@pytest.mark.parametrize("frames", ["9:12", "1,1", "a", "6", "1:2:3:4"])
def test_impossible_frames_are_refused(frames: str) -> None:
    with pytest.raises(ConfigError, match="`frames`"):
        assemble(make_parts(), frames=frames)


@pytest.mark.parametrize(("unit", "meters"), [("micrometer", 1e-6), ("nm", 1e-9), ("angstrom", 1e-10), ("mm", 1e-3)])
def test_units_of_positions_are_converted(unit: str, meters: float) -> None:
    positions = make_parts().positions
    assert positions is not None
    scan = assemble(make_parts(positions=positions / meters), position_unit=unit)
    np.testing.assert_allclose(scan.positions, assemble(make_parts()).positions)


def test_a_rotation_turns_the_row_axis_to_the_column_axis() -> None:
    positions = np.array([[0.0, 0.0], [10.0, 0.0], [0.0, 4.0], [-10.0, -4.0], [0.0, 0.0], [0.0, 0.0]])
    parts = make_parts(positions=positions, position_unit="pixel")
    np.testing.assert_allclose(
        assemble(parts, rotation=90.0).positions, np.stack([-positions[:, 1], positions[:, 0]], 1), atol=1e-12
    )


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"energy_ev": 12398.4198}, PIXEL_M),
        ({"distance": 2.0}, 2 * PIXEL_M),
        ({"detector_pixel": 2e-4}, PIXEL_M / 2),
        ({"pixel_size": 7e-9}, 7e-9),
    ],
)
def test_settings_override_the_geometry_of_the_file(settings: dict[str, float], expected: float) -> None:
    scan = assemble(make_parts(), **settings)
    assert scan.geometry is not None
    assert scan.geometry.object_pixel_m == pytest.approx((expected, expected), rel=1e-6)


def test_missing_quantities_name_their_settings() -> None:
    with pytest.raises(DataError, match=r"no patterns .*`patterns_file`"):
        assemble(make_parts(patterns=None))
    with pytest.raises(DataError, match=r"no scan positions .*`positions_file`"):
        assemble(make_parts(positions=None))
    with pytest.raises(ConfigError, match=r"positions are in meters .*`energy_ev`.*`distance`.*`detector_pixel`"):
        assemble(make_parts(geometry=Geometry()))
    with pytest.raises(DataError, match="near field"):
        assemble(make_parts(geometry=Geometry(propagation="near_field")))
    parts = make_parts(position_unit="pixel", geometry=Geometry())
    assemble(parts)
    assert [text.partition(":")[0] for text in parts.report.missing][:2] == ["probe", "wavelength"]


@pytest.mark.parametrize(
    "settings",
    [
        {"crop": 8.5},
        {"crop": 10**6},
        {"crop": 10**12},
        {"bin": 2.0},
        {"bin": None},
        {"bin": 3},
        {"center": "1e9,3"},
        {"frames": [1, 2]},
        {"frames": "9" * 400},
        {"frames": "99999999999999999999999"},
        {"rotation": float("nan")},
        {"position_scale": "2"},
        {"position_unit": []},
        {"measurement": "wrong"},
        {"origin": None},
        {"diffraction_key": 3},
        {"detector_pixel": (1e-4, 1e-4)},
        {"flip_y": "no"},
        {"dark": ""},
        {"flat": Path("a\0b")},
        {"mask": Path("x" * 5000)},
        {"dark": Path("nothing.npy")},
    ],
    ids=str,
)
def test_an_impossible_setting_is_refused_by_its_name(settings: dict[str, Any]) -> None:
    with pytest.raises(PtychoError, match=f"`{next(iter(settings))}`"):
        assemble(make_parts(), **settings)


def test_the_bias_of_clipped_values_is_given_where_it_is_large(caplog: pytest.LogCaptureFixture) -> None:
    patterns = np.full((COUNT, SIZE, SIZE), 5, np.uint16)
    patterns[:, : SIZE // 2] = 0
    dark = np.full((SIZE, SIZE), 2.0)
    report = (parts := make_parts(patterns=patterns, dark=dark)).report
    assemble(parts)
    # Half of the values are -2, so that 1 count per pixel is added.
    text = next(each for each in report.assumptions if "negative" in each)
    assert "(50.00% of all)" in text
    assert "adds 1 counts per pixel and pattern" in text
    assert "`mask` or `crop`" in text
    patterns[:] = 5
    patterns[0, 0, 0] = 0
    caplog.clear()
    assemble(make_parts(patterns=patterns, dark=dark))
    assert "1 negative values (0.07% of all)" in caplog.text
    assert "adds" not in caplog.text


@pytest.mark.parametrize(("variation", "reported"), [(0.2, True), (0.001, False)])
def test_a_varying_incident_intensity_is_recorded_and_the_patterns_stay(variation: float, reported: bool) -> None:
    parts = make_parts(intensities=1e9 * (1 + variation * np.sin(np.arange(COUNT))))
    np.testing.assert_array_equal(count_photons(assemble(parts)), parts.patterns)
    assert any("incident intensity" in text for text in parts.report.assumptions) == reported
