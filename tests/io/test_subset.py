"""Files of a subset: all arrays of a pattern stay together, and failures change nothing."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from ptycho_torch.core.errors import DataError
from ptycho_torch.data.scan import Scan
from ptycho_torch.io.npz import read_arrays
from ptycho_torch.io.scan import load_scan, save_scan
from ptycho_torch.io.subset import write_subset
from ptycho_torch.physics.forward import from_object

STRATEGIES = ["even", "compact", "seeded"]


def add_optional_arrays(scan: Scan) -> Scan:
    """Return the scan with every optional array, each identifying its pattern."""
    n, size = len(scan), scan.size
    mask = np.ones((n, size, size), bool)
    mask[np.arange(n), 0, np.arange(n) % size] = False
    return replace(
        scan,
        mask=mask,
        scan_index=np.arange(n) // 7,
        nominal_positions=np.rint(scan.positions),
        labels=np.full((n, size, size), 1j, np.complex64) * np.arange(n, dtype=np.float32)[:, None, None],
    )


def write(folder: Path, output: Path | None = None, **settings: Any) -> None:
    write_subset(folder / "source.npz", output or folder / "fixture.npz", **settings)


def write_and_load(
    folder: Path, scan: Scan, layout: Literal["canonical", "legacy"] = "canonical", **settings: Any
) -> Scan:
    save_scan(folder / "source.npz", scan, layout)
    write(folder, **settings)
    return load_scan(folder / "fixture.npz")


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_all_arrays_of_a_pattern_have_the_same_indices(tmp_path: Path, scan: Scan, strategy: str) -> None:
    whole = add_optional_arrays(scan)
    fixture = write_and_load(tmp_path, whole, strategy=strategy, subset_size=9)
    index = fixture.source_index
    assert index is not None
    assert len(index) == 9
    for name in ("amplitudes", "positions", "mask", "scan_index", "nominal_positions", "labels"):
        np.testing.assert_array_equal(getattr(fixture, name), getattr(whole, name)[index], err_msg=name)
    np.testing.assert_array_equal(fixture.truth, whole.truth)
    np.testing.assert_array_equal(fixture.probe, whole.probe)


@pytest.mark.parametrize("layout", ["canonical", "legacy"])
def test_subset_file_is_canonical_with_exact_coordinates(
    tmp_path: Path, scan_factory: Callable[..., Scan], layout: Literal["canonical", "legacy"]
) -> None:
    scan = scan_factory(n=30, size=24)
    write_and_load(tmp_path, scan, layout, subset_size=24)
    arrays = read_arrays(tmp_path / "fixture.npz")
    assert (arrays["diffraction"].shape, arrays["diffraction"].dtype) == ((24, 24, 24), np.float32)  # a cube
    assert {arrays[key].dtype for key in ("probeGuess", "objectGuess")} == {np.dtype(np.complex64)}
    index = arrays["source_index"]
    for key, column in (("ycoords", 0), ("xcoords", 1)):
        assert arrays[key].dtype == np.float64
        np.testing.assert_array_equal(arrays[key], scan.positions[index, column])
    metadata = json.loads(str(arrays["metadata"]))
    assert (metadata["axis_order"], metadata["measurement"]) == ("nhw", "amplitude")


def compute_r(scan: Scan, positions: NDArray[np.float64]) -> float:
    """Return R of the patterns against the forward model at ``positions``, with one fitted factor for the probe."""
    obj, probe = (torch.from_numpy(array).to(torch.complex128) for array in (scan.truth, scan.probe))
    model = np.sqrt(np.fft.fftshift(from_object(obj, probe, torch.from_numpy(positions)).intensity.numpy(), (1, 2)))
    measured = scan.amplitudes.astype(np.float64)
    model *= (model * measured).sum() / np.square(model).sum()
    return float(np.square(model - measured).sum() / np.square(measured).sum())


@pytest.mark.parametrize("layout", ["canonical", "legacy"])
def test_patterns_match_their_coordinates(
    tmp_path: Path, scan_factory: Callable[..., Scan], layout: Literal["canonical", "legacy"]
) -> None:
    fixture = write_and_load(tmp_path, scan_factory(n=64, photons=0), layout, subset_size=16)
    assert compute_r(fixture, fixture.positions) < 1e-10
    for wrong in (np.roll(fixture.positions, 1, 0), fixture.positions[:, ::-1].copy()):
        assert compute_r(fixture, wrong) > 1e-3
    swapped = fixture.positions.copy()
    swapped[[2, 3]] = swapped[[3, 2]]  # one pair of neighbors exchanged
    assert compute_r(fixture, swapped) > 1e-5


@pytest.mark.parametrize(
    ("layout", "origin"), [("canonical", "metadata"), ("legacy", "lattice")], ids=["metadata", "lattice"]
)
def test_known_photon_scale_is_written(
    tmp_path: Path, scan: Scan, layout: Literal["canonical", "legacy"], origin: str
) -> None:
    fixture = write_and_load(tmp_path, scan, layout, subset_size=8)
    record = json.loads((tmp_path / "fixture.json").read_text())
    counts = np.square(scan.amplitudes[fixture.source_index].astype(np.float64)).sum((1, 2)).mean()
    assert record["photons"]["origin"] == origin
    assert record["photons"]["per_pattern"] == pytest.approx(counts, rel=1e-5)
    assert record["photons"]["per_unit"] == fixture.photons_per_unit


def test_assumed_photon_scale_is_not_written(tmp_path: Path, scan_factory: Callable[..., Scan]) -> None:
    noiseless = replace(scan_factory(photons=0), photons_per_unit=None)
    assert write_and_load(tmp_path, noiseless, subset_size=8).photons_per_unit is None
    record = json.loads((tmp_path / "fixture.json").read_text())
    assert record["photons"] == {"origin": "assumed", "per_unit": None, "per_pattern": None}
    given = write_and_load(tmp_path, noiseless, subset_size=8, photons_per_unit=2.5)
    assert given.photons_per_unit == 2.5


def test_no_folder_of_the_source_is_written(tmp_path: Path, scan: Scan) -> None:
    metadata = {"file": str(tmp_path / "raw.h5"), "note": [f"made by python {tmp_path}/run.py --at 3 m/s", {"k": 1.5}]}
    fixture = write_and_load(tmp_path, replace(scan, metadata=metadata), subset_size=8)
    assert fixture.metadata["file"] == "raw.h5"
    assert fixture.metadata["note"] == ["made by python run.py --at 3 m/s", {"k": 1.5}]
    for name in ("fixture.npz", "fixture.json"):
        assert str(tmp_path) not in str(fixture.metadata) + (tmp_path / name).read_bytes().decode("latin1")


@pytest.mark.parametrize("broken", ["sidecar is a folder", "folder is a file"])
def test_failure_to_write_one_file_changes_nothing(tmp_path: Path, scan: Scan, broken: str) -> None:
    save_scan(tmp_path / "source.npz", scan)
    (tmp_path / "fixture.npz").write_bytes(b"earlier")
    (tmp_path / "file").write_bytes(b"")
    record = tmp_path / ("file/x/record.json" if broken == "folder is a file" else "there")
    if broken == "sidecar is a folder":
        (record / "full").mkdir(parents=True)
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(DataError):
        write(tmp_path, subset_size=8, metadata_out=record)
    with pytest.raises(DataError):
        write(tmp_path, subset_size=8, output=tmp_path / "new/deep/o.npz", metadata_out=record)
    assert sorted(tmp_path.rglob("*")) == before
    assert (tmp_path / "fixture.npz").read_bytes() == b"earlier"


def test_existing_output_is_restored_if_the_record_fails(tmp_path: Path, scan: Scan) -> None:
    save_scan(tmp_path / "source.npz", scan)
    (tmp_path / "fixture.json" / "full").mkdir(parents=True)  # the record cannot be renamed, after the fixture was
    for earlier in (None, b"earlier"):
        if earlier:
            (tmp_path / "fixture.npz").write_bytes(earlier)
        before = sorted(tmp_path.rglob("*"))
        with pytest.raises(DataError, match=r"fixture\.json"):
            write(tmp_path, subset_size=8)
        assert sorted(tmp_path.rglob("*")) == before
        assert not earlier or (tmp_path / "fixture.npz").read_bytes() == earlier
