"""Scan files of other programs: keys, axes, origin, orientation and units are converted."""

import bz2
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ptycho_torch.core.errors import ConfigError, ContractError, DataError, PtychoError
from ptycho_torch.data.orientation import Orientation
from ptycho_torch.data.scan import Scan
from ptycho_torch.io.convert import convert_file
from ptycho_torch.io.npz import read_arrays
from ptycho_torch.io.profile import profile_scan_file
from ptycho_torch.io.scan import load_scan

Arrays = dict[str, np.ndarray[Any, Any]]
Make = Callable[..., Arrays]
Write = Callable[..., Path]


def convert(source: Path, **settings: Any) -> Scan:
    destination = source.parent / "converted.npz"
    convert_file(source, destination, **settings)
    return load_scan(destination)


def far_field_intensity(wave: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    return np.abs(np.fft.fftshift(np.fft.fft2(wave))) ** 2


def test_a_tike_file_of_counts_is_convert(canonical_arrays: Make, write_npz: Write) -> None:
    arrays = canonical_arrays()
    counts = np.rint(np.square(arrays["diffraction"], dtype=np.float64))
    scan = np.stack([arrays["ycoords"], arrays["xcoords"]], 1).astype(np.float32)
    path = write_npz(
        {
            "data": np.fft.ifftshift(counts, axes=(1, 2)).astype(np.float32)[None],
            "probe": arrays["probeGuess"][None, None, None, None],
            "scan": scan[None],
        }
    )
    compressed = path.with_suffix(".npz.bz2")
    compressed.write_bytes(bz2.compress(path.read_bytes()))
    for source in (path, compressed):
        result = convert(source, measurement="counts", origin="corner")
        np.testing.assert_array_equal(result.amplitudes, arrays["diffraction"])
        np.testing.assert_array_equal(result.positions, scan)
        np.testing.assert_array_equal(result.probe[0], arrays["probeGuess"])
        assert result.photons_per_unit == 1
        assert result.metadata["converted"] == {"source": source.name, "measurement": "counts", "origin": "corner"}


def test_settings_give_keys_axes_and_units(legacy_arrays: Make, write_npz: Write) -> None:
    arrays = legacy_arrays()
    foreign = {
        "I": np.square(arrays["diffraction"]),
        "P": arrays["probeGuess"],
        "O": arrays["objectGuess"],
        "px": arrays["xcoords"] * 2e-8,
        "py": arrays["ycoords"] * 2e-8,
        "good": 1 - np.eye(8),
    }
    result = convert(
        write_npz(foreign),
        diffraction_key="I",
        probe_key="P",
        object_key="O",
        x_key="px",
        y_key="py",
        mask_key="good",
        measurement="counts",
        position_unit="meter",
        pixel_size=2e-8,
    )
    np.testing.assert_allclose(result.amplitudes, np.moveaxis(arrays["diffraction"], 2, 0), rtol=1e-6)
    np.testing.assert_allclose(result.positions[:, 1], arrays["xcoords"], rtol=1e-12)
    np.testing.assert_array_equal(result.mask, ~np.eye(8, dtype=bool))
    assert result.truth is not None


@pytest.mark.parametrize("size", [8, 9])
@pytest.mark.parametrize(("setting", "axis"), [("flip_y", 0), ("flip_x", 1)])
def test_flip_gives_the_pattern_of_the_mirrored_wave(size: int, setting: str, axis: int) -> None:
    """A mirrored wave has a far field mirrored about zero frequency, for even and odd sizes."""
    rng = np.random.default_rng(0)
    wave = rng.normal(size=(size, size)) + 1j * rng.normal(size=(size, size))
    mirrored = np.take(wave, -np.arange(size) % size, axis=axis)
    orientation = Orientation(setting == "flip_y", setting == "flip_x")
    np.testing.assert_allclose(orientation.apply(far_field_intensity(wave)), far_field_intensity(mirrored), rtol=1e-10)


def test_transpose_gives_the_pattern_of_the_transposed_wave() -> None:
    rng = np.random.default_rng(0)
    wave = rng.normal(size=(6, 6)) + 1j * rng.normal(size=(6, 6))
    orientation = Orientation(transpose=True)
    np.testing.assert_allclose(orientation.apply(far_field_intensity(wave)), far_field_intensity(wave.T), rtol=1e-10)


@pytest.mark.parametrize("size", [8, 9])
def test_corner_origin_moves_to_the_middle(canonical_arrays: Make, write_npz: Write, size: int) -> None:
    patterns = np.zeros((5, size, size))
    patterns[:, 0, 0], patterns[:, 1, 0] = 1, 0.5
    probe = np.ones((size, size), np.complex64)
    source = write_npz(canonical_arrays() | {"diffraction": patterns, "probeGuess": probe})
    centered = load_scan(source, measurement="amplitude", origin="corner").amplitudes
    assert centered[0, size // 2, size // 2] == 1
    assert centered[0, size // 2 + 1, size // 2] == 0.5


@pytest.mark.parametrize(
    ("settings", "change"),
    [
        ({"swap_xy": True}, lambda y, x: (x, y)),
        ({"negate_y": True}, lambda y, x: (-y, x)),
        ({"negate_x": True, "position_scale": 2.0}, lambda y, x: (2 * y, -2 * x)),
        ({"swap_xy": True, "negate_y": True}, lambda y, x: (-x, y)),
    ],
)
def test_coordinates_are_swapped_then_negated_and_scaled(
    canonical_arrays: Make, write_npz: Write, settings: dict[str, Any], change: Callable[..., Any]
) -> None:
    arrays = canonical_arrays()
    arrays |= {"xcoords_start": arrays["xcoords"] + 1, "ycoords_start": arrays["ycoords"] - 1}
    result = convert(write_npz(arrays), measurement="amplitude", **settings)
    expected = np.stack(change(arrays["ycoords"], arrays["xcoords"]), 1)
    np.testing.assert_allclose(result.positions, expected, rtol=1e-14)
    nominal = np.stack(change(arrays["ycoords_start"], arrays["xcoords_start"]), 1)
    np.testing.assert_allclose(result.nominal_positions, nominal, rtol=1e-14)


def test_mask_is_oriented_with_the_patterns(canonical_arrays: Make, write_npz: Write) -> None:
    mask = np.random.default_rng(0).uniform(size=(8, 8)) > 0.5
    arrays = canonical_arrays() | {"mask": mask, "diffraction": np.broadcast_to(mask, (5, 8, 8)).astype(np.float32)}
    result = convert(write_npz(arrays), measurement="amplitude", origin="corner", flip_y=True, transpose=True)
    np.testing.assert_array_equal(result.amplitudes, np.broadcast_to(result.mask, (5, 8, 8)))
    assert not np.array_equal(result.mask, mask)


def test_canonical_file_is_unchanged_without_settings(canonical_arrays: Make, write_npz: Write) -> None:
    metadata = '{"axis_order": "nhw", "measurement": "amplitude", "photons_per_unit": 3.5, "sample": "x"}'
    source = write_npz(canonical_arrays() | {"metadata": np.array(metadata)})
    result, original = convert(source), load_scan(source)
    np.testing.assert_array_equal(result.amplitudes, original.amplitudes)
    assert result.photons_per_unit == 3.5
    assert result.metadata["sample"] == "x"


@pytest.mark.parametrize("key", ["diffraction", "frames"])
def test_undeclared_integers_raise(canonical_arrays: Make, write_npz: Write, key: str) -> None:
    arrays = canonical_arrays()
    counts = np.square(arrays.pop("diffraction")).astype(np.uint16)
    source = write_npz(arrays | {key: counts})
    with pytest.raises(PtychoError, match="set `measurement`"):
        convert(source, diffraction_key=None if key == "diffraction" else key)
    assert not (source.parent / "converted.npz").exists()


def test_destination_equal_to_source_raises(canonical_arrays: Make, write_npz: Write) -> None:
    source = write_npz(canonical_arrays())
    before = source.read_bytes()
    link = source.parent / "link.npz"
    link.symlink_to(source)
    for destination in (source, link):
        with pytest.raises(ConfigError, match="source itself"):
            convert_file(source, destination, measurement="amplitude")
    assert source.read_bytes() == before


def test_existing_destination_is_replaced_only_on_success(canonical_arrays: Make, write_npz: Write) -> None:
    good, bad = (
        write_npz(canonical_arrays(), "good.npz"),
        write_npz(canonical_arrays() | {"xcoords": np.zeros(3)}, "bad.npz"),
    )
    destination = good.parent / "converted.npz"
    destination.write_bytes(b"old")
    with pytest.raises(ContractError, match="too few"):
        convert(bad, measurement="amplitude")
    assert destination.read_bytes() == b"old"
    assert len(convert(good, measurement="amplitude")) == 5


def test_missing_arrays_raise_with_the_setting(canonical_arrays: Make, write_npz: Write) -> None:
    arrays = canonical_arrays()
    source = write_npz({("frames" if key == "diffraction" else key): array for key, array in arrays.items()})
    with pytest.raises(ContractError, match="missing: diffraction"):
        convert(source, measurement="amplitude")
    with pytest.raises(ConfigError, match="`probe_key` is P, which is not in the file"):
        convert(source, measurement="amplitude", diffraction_key="frames", probe_key="P")
    with pytest.raises(DataError, match="no folder"):
        convert_file(source, source.parent / "none" / "a.npz")
    with pytest.raises(DataError, match=r"expected \(n, 2\)"):
        convert(source, measurement="amplitude", diffraction_key="frames", positions_key="objectGuess")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"hello", "format is unknown"),
        (bz2.compress(b"hello"), "not an NPZ"),
        (bz2.compress(b"x" * 999)[:-9], "truncated"),
    ],
)
def test_damaged_compressed_files_raise(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "scan.npz.bz2"
    path.write_bytes(content)
    with pytest.raises(DataError, match=message):
        load_scan(path, measurement="counts")
    with pytest.raises(DataError, match="no such file"):
        load_scan(tmp_path / "none.npz.bz2")


def test_equal_settings_give_equal_bytes(canonical_arrays: Make, write_npz: Write) -> None:
    source = write_npz(canonical_arrays())
    for name in ("a.npz", "b.npz"):
        convert_file(source, source.parent / name, measurement="amplitude")
    assert (source.parent / "a.npz").read_bytes() == (source.parent / "b.npz").read_bytes()
    assert "metadata" in read_arrays(source.parent / "a.npz")


def test_a_converted_scan_needs_no_output_file(canonical_arrays: Make, write_npz: Write) -> None:
    source = write_npz(canonical_arrays())
    scan = load_scan(source, measurement="amplitude", negate_x=True)
    np.testing.assert_array_equal(scan.positions[:, 1], -load_scan(source).positions[:, 1])
    assert [path.name for path in source.parent.iterdir()] == [source.name]


def test_unknown_or_incomplete_settings_raise(canonical_arrays: Make, write_npz: Write) -> None:
    source = write_npz(canonical_arrays())
    with pytest.raises(ConfigError, match=r"`flip` is not a setting.*flip_y, flip_x"):
        load_scan(source, flip=True)
    with pytest.raises(ConfigError, match="`position_unit` is inch; expected pixel or meter"):
        load_scan(source, position_unit="inch")
    with pytest.raises(ConfigError, match="or `pixel_size`"):
        load_scan(source, measurement="amplitude", position_unit="meter")


def write_unknown(folder: Path) -> Path:
    path = folder / "own.npz"
    np.savez(path, frames=np.ones((5, 8, 8), np.uint16), more=np.ones((5, 8, 8), np.float32), p=np.ones((5, 2)))
    return path


def test_arrays_of_unknown_keys_are_listed(tmp_path: Path) -> None:
    path = write_unknown(tmp_path)
    with pytest.raises(DataError, match=r"found frames \(5, 8, 8\) uint16.*p \(5, 2\) float64; set `diffraction_key`"):
        load_scan(path, measurement="counts")
    with pytest.raises(DataError, match=r"found .*p \(5, 2\) float64; set `positions_file`"):
        load_scan(path, measurement="counts", diffraction_key="frames")
    table = tmp_path / "positions.csv"
    table.write_text("y,x\n1,2\n3,4\n")
    with pytest.raises(DataError, match="found frames") as error:
        load_scan(path, measurement="counts", positions_file=table, position_unit="pixel")
    assert "this table" not in str(error.value)
    with pytest.raises(DataError, match=r"holds no positions \(found frames"):
        load_scan(path, measurement="counts", diffraction_key="frames", positions_file=path)


def test_quantities_of_a_partner_are_not_missing(tmp_path: Path) -> None:
    path, table = write_unknown(tmp_path), tmp_path / "positions.csv"
    table.write_text("y,x\n1,2\n3,4\n")
    # Three patterns have no position, so that the profile is that of an incomplete scan.
    profile = profile_scan_file(
        path, measurement="counts", diffraction_key="frames", positions_file=table, position_unit="pixel"
    )
    assert profile.input is not None
    assert [each.partition(":")[0] for each in profile.input["missing"]] == ["probe"]


def test_one_image_of_a_series_and_the_folder_of_a_result_name_the_right_path(tmp_path: Path) -> None:
    tifffile = pytest.importorskip("tifffile")
    series = tmp_path / "series"
    series.mkdir()
    for number in range(3):
        tifffile.imwrite(series / f"image_{number}.tif", np.ones((8, 8), np.uint16))
    with pytest.raises(DataError, match=r"one of 3 TIFF files in the folder .*series; give the folder"):
        load_scan(series / "image_0.tif", measurement="counts")
    result = tmp_path / "result"
    result.mkdir()
    (result / "reconstruction.npz").write_bytes(b"x")
    with pytest.raises(DataError, match=r"folder of a result; give the file reconstruction\.npz"):
        load_scan(result)
