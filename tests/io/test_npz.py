"""Reading and writing scan files: layouts, axis order, counts, damage, and the same bytes again."""

import contextlib
import json
import logging
import zipfile
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ptycho_torch.core.errors import ContractError, DataError
from ptycho_torch.data.scan import Scan
from ptycho_torch.io.npz import load_scan, read_arrays, read_headers, save_scan

Arrays = dict[str, np.ndarray[Any, Any]]
Make = Callable[..., Arrays]
Write = Callable[..., Path]


def full_scan(n: int = 5, size: int = 7, modes: int = 2) -> Scan:
    """A scan with every optional part."""
    rng = np.random.default_rng(3)

    def field(*shape: int) -> np.ndarray[Any, Any]:
        return (rng.normal(size=shape) + 1j * rng.normal(size=shape)).astype(np.complex64)

    return Scan(
        amplitudes=rng.uniform(1e-3, 1, (n, size, size)).astype(np.float32),
        positions=rng.uniform(size, 20, (n, 2)),
        probe=field(modes, size, size),
        mask=rng.uniform(size=(n, size, size)) > 0.2,
        truth=field(30, 33),
        scan_index=np.arange(n) // 2,
        nominal_positions=rng.uniform(size, 20, (n, 2)),
        labels=field(n, size, size),
        photons_per_unit=123.25,
        metadata={"sample": "étoile", "run": 7},
    )


@pytest.mark.parametrize(("n", "size"), [(5, 8), (8, 5), (3, 7), (1, 6)])
def test_canonical_and_legacy_files_give_the_same_scan(
    canonical_arrays: Make, legacy_arrays: Make, write_npz: Write, n: int, size: int
) -> None:
    new, old = (
        load_scan(write_npz(canonical_arrays(n, size), "new.npz")),
        load_scan(write_npz(legacy_arrays(n, size), "old.npz")),
    )
    arrays = canonical_arrays(n, size)
    assert new.amplitudes.shape == (n, size, size)
    for scan in (new, old):
        np.testing.assert_array_equal(scan.amplitudes, arrays["diffraction"])
        np.testing.assert_array_equal(scan.positions[:, 0], arrays["ycoords"])
        np.testing.assert_array_equal(scan.positions[:, 1], arrays["xcoords"])
        np.testing.assert_array_equal(scan.probe[0], arrays["probeGuess"])
        np.testing.assert_array_equal(scan.truth, arrays["objectGuess"])
        assert scan.amplitudes.flags.c_contiguous
        assert (scan.amplitudes.dtype, scan.positions.dtype, scan.probe.dtype) == (np.float32, np.float64, np.complex64)


def test_the_alias_and_trailing_singletons_are_read(canonical_arrays: Make, write_npz: Write) -> None:
    arrays = canonical_arrays()
    expected = arrays["diffraction"]
    alias = {key: array for key, array in arrays.items() if key != "diffraction"} | {"diff3d": expected}
    both = arrays | {"diff3d": expected.copy()}
    trailing = arrays | {"diffraction": expected[..., None], "probeGuess": arrays["probeGuess"][..., None]}
    for name, variant in (("alias", alias), ("both", both), ("trailing", trailing)):
        scan = load_scan(write_npz(variant, f"{name}.npz"))
        np.testing.assert_array_equal(scan.amplitudes, expected)
        assert scan.probe.shape == (1, 8, 8)


def test_incoherent_modes_stay_in_order(canonical_arrays: Make, write_npz: Write) -> None:
    modes = np.stack([canonical_arrays(seed=seed)["probeGuess"] for seed in range(3)])
    np.testing.assert_array_equal(load_scan(write_npz(canonical_arrays() | {"probeGuess": modes})).probe, modes)


def test_a_canonical_cube_is_read_and_a_legacy_cube_waits_for_the_axis_order(
    canonical_arrays: Make, legacy_arrays: Make, write_npz: Write
) -> None:
    expected = canonical_arrays(8, 8)["diffraction"]
    np.testing.assert_array_equal(load_scan(write_npz(canonical_arrays(8, 8))).amplitudes, expected)
    path = write_npz(legacy_arrays(8, 8), "legacy.npz")
    with pytest.raises(ContractError, match="--axis_order") as caught:
        load_scan(path)
    assert caught.value.rule == "R5"
    np.testing.assert_array_equal(load_scan(path, axis_order="hwn").amplitudes, expected)
    path = write_npz(legacy_arrays(8, 8) | {"metadata": np.array('{"axis_order": "hwn"}')}, "said.npz")
    np.testing.assert_array_equal(load_scan(path).amplitudes, expected)


def test_stacks_beside_legacy_diffraction_follow_it_or_the_contract(legacy_arrays: Make, write_npz: Write) -> None:
    rng = np.random.default_rng(0)
    mask, labels = rng.uniform(size=(5, 8, 8)) > 0.3, rng.normal(size=(5, 8, 8)) + 1j
    for axes in ((0, 1, 2), (1, 2, 0)):
        scan = load_scan(write_npz(legacy_arrays() | {"mask": mask.transpose(axes), "Y": labels.transpose(axes)}))
        np.testing.assert_array_equal(scan.mask, mask)
        np.testing.assert_array_equal(scan.labels, labels.astype(np.complex64))


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.int32, np.int64, np.float32, np.float64])
def test_declared_counts_become_their_square_root_without_wrapping(
    canonical_arrays: Make, write_npz: Write, dtype: type
) -> None:
    highest = 200 if dtype is np.uint8 else 60_000
    counts = np.random.default_rng(0).integers(0, highest, (5, 8, 8))
    path = write_npz(canonical_arrays() | {"diffraction": counts.astype(dtype)})
    scan = load_scan(path, measurement="counts")
    np.testing.assert_array_equal(scan.amplitudes, np.sqrt(counts.astype(np.float64)).astype(np.float32))
    assert scan.photons_per_unit == 1
    assert load_scan(path, measurement="counts", photons_per_unit=0.5).photons_per_unit == 0.5
    path = write_npz(
        canonical_arrays() | {"diffraction": counts.astype(dtype), "metadata": np.array('{"measurement": "counts"}')}
    )
    np.testing.assert_array_equal(load_scan(path).amplitudes, scan.amplitudes)
    amplitudes = load_scan(path, measurement="amplitude")
    np.testing.assert_array_equal(amplitudes.amplitudes, counts)
    assert amplitudes.photons_per_unit is None


def test_whole_numbers_read_as_amplitude_and_shifted_patterns_cause_a_warning(
    canonical_arrays: Make, write_npz: Write, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING)
    arrays = canonical_arrays()
    load_scan(write_npz(arrays))
    assert not caplog.records
    load_scan(write_npz(arrays | {"diffraction": np.rint(np.square(arrays["diffraction"]))}))
    load_scan(write_npz(arrays | {"diffraction": np.fft.ifftshift(arrays["diffraction"], axes=(1, 2))}))
    assert [("--measurement" in r.message, "--origin corner" in r.message) for r in caplog.records] == [
        (True, False),
        (False, True),
    ]


def test_a_scan_comes_back_to_the_bit(tmp_path: Path) -> None:
    scan = full_scan()
    save_scan(tmp_path / "scan.npz", scan)
    back = load_scan(tmp_path / "scan.npz")
    for field in fields(Scan):
        if field.name not in ("metadata", "source"):
            np.testing.assert_array_equal(getattr(back, field.name), getattr(scan, field.name), err_msg=field.name)
    assert back.source == tmp_path / "scan.npz"
    assert back.metadata | scan.metadata == back.metadata
    metadata = json.loads(str(read_arrays(tmp_path / "scan.npz")["metadata"]))
    said = {"schema": "ptycho_torch scan", "version": 1, "axis_order": "nhw", "measurement": "amplitude"}
    assert metadata == scan.metadata | said | {"photons_per_unit": 123.25}


def test_a_cube_that_was_written_here_is_read_without_asking(tmp_path: Path) -> None:
    scan = full_scan(n=7, size=7)
    save_scan(tmp_path / "scan.npz", scan)
    np.testing.assert_array_equal(load_scan(tmp_path / "scan.npz").amplitudes, scan.amplitudes)


@pytest.mark.parametrize("layout", ["canonical", "legacy"])
def test_the_same_scan_gives_the_same_bytes(tmp_path: Path, layout: Any) -> None:
    for name in ("a.npz", "b.npz"):
        save_scan(tmp_path / name, full_scan(), layout)
    assert (tmp_path / "a.npz").read_bytes() == (tmp_path / "b.npz").read_bytes()


def test_the_legacy_layout_is_that_of_the_published_files(tmp_path: Path) -> None:
    scan = full_scan(modes=1)
    save_scan(tmp_path / "scan.npz", scan, "legacy")
    arrays = read_arrays(tmp_path / "scan.npz")
    assert arrays["diffraction"].shape == (7, 7, 5)
    assert arrays["diffraction"].max() == pytest.approx(1.7036, rel=1e-12)
    assert {key: str(arrays[key].dtype) for key in ("diffraction", "probeGuess", "objectGuess", "xcoords_start")} == {
        "diffraction": "float64",
        "probeGuess": "complex128",
        "objectGuess": "complex128",
        "xcoords_start": "float64",
    }
    assert "metadata" not in arrays
    back = load_scan(tmp_path / "scan.npz")
    ratio = back.amplitudes / scan.amplitudes
    np.testing.assert_allclose(ratio, ratio.mean(), rtol=1e-6)


def test_an_invalid_scan_is_not_written_and_the_old_file_stays(tmp_path: Path) -> None:
    path = tmp_path / "scan.npz"
    path.write_bytes(b"old")
    scan = full_scan()
    scan.amplitudes[0, 0, 0] = np.nan
    with pytest.raises(ContractError):
        save_scan(path, scan)
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_headers_tell_shapes_and_dtypes(legacy_arrays: Make, write_npz: Write) -> None:
    arrays = legacy_arrays()
    headers = read_headers(write_npz(arrays))
    assert {key: (header.shape, header.dtype) for key, header in headers.items()} == {
        key: (array.shape, array.dtype) for key, array in arrays.items()
    }


def test_headers_are_read_from_a_file_whose_values_are_damaged(canonical_arrays: Make, write_npz: Write) -> None:
    path = write_npz(canonical_arrays(20, 32))
    with zipfile.ZipFile(path) as archive:
        start = archive.getinfo("diffraction.npy").header_offset
    content = bytearray(path.read_bytes())
    content[start + 60_000] ^= 0xFF
    path.write_bytes(content)
    assert read_headers(path)["diffraction"].shape == (20, 32, 32)
    with pytest.raises(DataError, match="damaged"):
        read_arrays(path)


@pytest.mark.parametrize(
    ("content", "words"), [(b"", "not an NPZ"), (b"hello", "not an NPZ"), (b"PK\x03\x04 and no more", "truncated")]
)
def test_what_is_no_archive_is_refused(tmp_path: Path, content: bytes, words: str) -> None:
    path = tmp_path / "scan.npz"
    path.write_bytes(content)
    for read in (load_scan, read_headers):
        with pytest.raises(DataError, match=words) as caught:
            read(path)
        assert str(path) in str(caught.value)


def test_a_missing_file_and_a_folder_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no such file"):
        load_scan(tmp_path / "scan.npz")
    with pytest.raises(DataError, match="folder"):
        load_scan(tmp_path)


def test_no_damage_escapes_as_another_error(tmp_path: Path) -> None:
    """Files cut short, and files with bytes changed, are read or refused with a sentence."""
    path = tmp_path / "scan.npz"
    save_scan(path, full_scan(n=2, size=4))
    content = path.read_bytes()
    rng = np.random.default_rng(0)
    for _ in range(300):
        damaged = bytearray(content[: rng.integers(5, len(content))] if rng.uniform() < 0.3 else content)
        for place in rng.integers(4, len(damaged), 3):
            damaged[place] = rng.integers(256)
        path.write_bytes(damaged)
        with contextlib.suppress(DataError):
            load_scan(path)
