"""Scan files in NPZ format: layouts, axis order, counts, damage, and deterministic bytes."""

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

from ptycho_torch.core.errors import ContractError, DataError, PtychoError
from ptycho_torch.data.scan import Scan
from ptycho_torch.io.npz import read_arrays, read_headers
from ptycho_torch.io.scan import load_scan, save_scan

Arrays = dict[str, np.ndarray[Any, Any]]
Make = Callable[..., Arrays]
Write = Callable[..., Path]


def make_full_scan(n: int = 5, size: int = 7, modes: int = 2) -> Scan:
    """Make a scan with every optional array."""
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


def test_alias_and_trailing_singletons_are_read(canonical_arrays: Make, write_npz: Write) -> None:
    arrays = canonical_arrays()
    expected = arrays["diffraction"]
    alias = {key: array for key, array in arrays.items() if key != "diffraction"} | {"diff3d": expected}
    both = arrays | {"diff3d": expected.copy()}
    trailing = arrays | {"diffraction": expected[..., None], "probeGuess": arrays["probeGuess"][..., None]}
    for name, variant in (("alias", alias), ("both", both), ("trailing", trailing)):
        scan = load_scan(write_npz(variant, f"{name}.npz"))
        np.testing.assert_array_equal(scan.amplitudes, expected)
        assert scan.probe.shape == (1, 8, 8)


def test_incoherent_modes_keep_their_order(canonical_arrays: Make, write_npz: Write) -> None:
    modes = np.stack([canonical_arrays(seed=seed)["probeGuess"] for seed in range(3)])
    np.testing.assert_array_equal(load_scan(write_npz(canonical_arrays() | {"probeGuess": modes})).probe, modes)


def test_canonical_cube_is_read_and_legacy_cube_needs_the_axis_order(
    canonical_arrays: Make, legacy_arrays: Make, write_npz: Write
) -> None:
    expected = canonical_arrays(8, 8)["diffraction"]
    np.testing.assert_array_equal(load_scan(write_npz(canonical_arrays(8, 8))).amplitudes, expected)
    path = write_npz(legacy_arrays(8, 8), "legacy.npz")
    with pytest.raises(ContractError, match="set `axis_order`") as caught:
        load_scan(path)
    assert caught.value.rule == "R5"
    np.testing.assert_array_equal(load_scan(path, axis_order="hwn").amplitudes, expected)
    path = write_npz(legacy_arrays(8, 8) | {"metadata": np.array('{"axis_order": "hwn"}')}, "declared.npz")
    np.testing.assert_array_equal(load_scan(path).amplitudes, expected)


def test_mask_and_labels_with_legacy_diffraction_have_either_axis_order(legacy_arrays: Make, write_npz: Write) -> None:
    rng = np.random.default_rng(0)
    mask, labels = rng.uniform(size=(5, 8, 8)) > 0.3, rng.normal(size=(5, 8, 8)) + 1j
    for axes in ((0, 1, 2), (1, 2, 0)):
        scan = load_scan(write_npz(legacy_arrays() | {"mask": mask.transpose(axes), "Y": labels.transpose(axes)}))
        np.testing.assert_array_equal(scan.mask, mask)
        np.testing.assert_array_equal(scan.labels, labels.astype(np.complex64))


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.int32, np.int64, np.float32, np.float64])
def test_counts_become_amplitudes_without_integer_overflow(
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


def test_integer_amplitudes_and_shifted_patterns_warn(
    canonical_arrays: Make, write_npz: Write, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING)
    arrays = canonical_arrays()
    load_scan(write_npz(arrays))
    assert not caplog.records
    load_scan(write_npz(arrays | {"diffraction": np.rint(np.square(arrays["diffraction"]))}))
    load_scan(write_npz(arrays | {"diffraction": np.fft.ifftshift(arrays["diffraction"], axes=(1, 2))}))
    assert [("`measurement`" in r.message, "`origin` corner" in r.message) for r in caplog.records] == [
        (True, False),
        (False, True),
    ]


def test_round_trip_is_exact(tmp_path: Path) -> None:
    scan = make_full_scan()
    save_scan(tmp_path / "scan.npz", scan)
    loaded = load_scan(tmp_path / "scan.npz")
    for field in fields(Scan):
        if field.name not in ("metadata", "source"):
            np.testing.assert_array_equal(getattr(loaded, field.name), getattr(scan, field.name), err_msg=field.name)
    assert loaded.source == tmp_path / "scan.npz"
    assert loaded.metadata | scan.metadata == loaded.metadata
    metadata = json.loads(str(read_arrays(tmp_path / "scan.npz")["metadata"]))
    declared = {"schema": "ptycho_torch scan", "version": 1, "axis_order": "nhw", "measurement": "amplitude"}
    assert metadata == scan.metadata | declared | {"photons_per_unit": 123.25}


def test_written_cube_is_read_without_axis_order(tmp_path: Path) -> None:
    scan = make_full_scan(n=7, size=7)
    save_scan(tmp_path / "scan.npz", scan)
    np.testing.assert_array_equal(load_scan(tmp_path / "scan.npz").amplitudes, scan.amplitudes)


@pytest.mark.parametrize("layout", ["canonical", "legacy"])
def test_equal_scans_give_equal_bytes(tmp_path: Path, layout: Any) -> None:
    for name in ("a.npz", "b.npz"):
        save_scan(tmp_path / name, make_full_scan(), layout)
    assert (tmp_path / "a.npz").read_bytes() == (tmp_path / "b.npz").read_bytes()


def test_legacy_layout_matches_the_published_files(tmp_path: Path) -> None:
    scan = make_full_scan(modes=1)
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
    loaded = load_scan(tmp_path / "scan.npz")
    ratio = loaded.amplitudes / scan.amplitudes
    np.testing.assert_allclose(ratio, ratio.mean(), rtol=1e-6)


def test_invalid_scan_is_not_written_and_existing_file_remains(tmp_path: Path) -> None:
    path = tmp_path / "scan.npz"
    path.write_bytes(b"old")
    scan = make_full_scan()
    assert scan.mask is not None
    scan.amplitudes[tuple(np.argwhere(scan.mask)[0])] = np.nan
    with pytest.raises(ContractError):
        save_scan(path, scan)
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_headers_give_shapes_and_dtypes(legacy_arrays: Make, write_npz: Write) -> None:
    arrays = legacy_arrays()
    headers = read_headers(write_npz(arrays))
    assert {key: (header.shape, header.dtype) for key, header in headers.items()} == {
        key: (array.shape, array.dtype) for key, array in arrays.items()
    }


def test_headers_are_read_from_a_file_with_damaged_values(canonical_arrays: Make, write_npz: Write) -> None:
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
    ("content", "message"),
    [(b"", "empty"), (b"hello", "not an NPZ|format is unknown"), (b"PK\x03\x04 and no more", "truncated")],
)
def test_other_files_raise(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "scan.npz"
    path.write_bytes(content)
    for read in (load_scan, read_headers):
        with pytest.raises(DataError, match=message) as caught:
            read(path)
        assert str(path) in str(caught.value)


def test_missing_file_and_folder_raise(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no such file"):
        load_scan(tmp_path / "scan.npz")
    with pytest.raises(DataError, match="folder"):
        load_scan(tmp_path)


def test_damaged_files_raise_data_error_only(tmp_path: Path) -> None:
    """Truncated files and files with changed bytes are read, or raise DataError."""
    path = tmp_path / "scan.npz"
    save_scan(path, make_full_scan(n=2, size=4))
    content = path.read_bytes()
    rng = np.random.default_rng(0)
    for _ in range(300):
        damaged = bytearray(content[: rng.integers(5, len(content))] if rng.uniform() < 0.3 else content)
        for place in rng.integers(4, len(damaged), 3):
            damaged[place] = rng.integers(256)
        path.write_bytes(damaged)
        with contextlib.suppress(PtychoError):
            load_scan(path)


def test_a_canonical_file_is_opened_once_for_its_format_and_once_for_its_arrays(
    canonical_arrays: Make, write_npz: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, opened = write_npz(canonical_arrays()), []
    plain = zipfile.ZipFile

    def count(file: Any) -> zipfile.ZipFile:
        opened.append(file.name)
        return plain(file)

    monkeypatch.setattr("ptycho_torch.io.npz.zipfile.ZipFile", count)
    load_scan(path)
    assert opened == [str(path)] * 2
