"""Which positions a fixture keeps, and that everything in it still belongs together."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from ptycho_torch.config.data import SubsetConfig
from ptycho_torch.core.errors import ConfigError, DataError
from ptycho_torch.data.grouping import find_nearest_groups
from ptycho_torch.data.scan import Scan
from ptycho_torch.io.npz import load_scan, read_arrays, save_scan
from ptycho_torch.io.subset import compute_field_coverage, make_subset, select_positions, strip_folders, write_subset
from ptycho_torch.physics.forward import from_object

STRATEGIES: list[Literal["even", "compact", "seeded"]] = ["even", "compact", "seeded"]


def raster(rows: int, columns: int, jitter: float = 0.3) -> NDArray[np.float64]:
    """Positions a step of 3 px apart, row by row."""
    grid = np.stack(np.divmod(np.arange(rows * columns), columns), 1) * 3.0
    return grid + np.random.default_rng(0).uniform(-jitter, jitter, grid.shape) + 20


def chosen(positions: NDArray[np.float64], size: int, strategy: Any, seed: int = 0) -> NDArray[np.intp]:
    return select_positions(positions, size, strategy, np.random.default_rng(seed))


def group_reach(positions: NDArray[np.float64]) -> NDArray[np.float64]:
    """Distance from each position to the farthest of its group at gridsize 2."""
    groups = positions[find_nearest_groups(positions, 2, np.arange(len(positions)))]
    return np.linalg.norm(groups - groups[:, :1], axis=2).max(1)


SIZES = [
    (33, 33, 64),
    (33, 33, 16),
    (33, 33, 9),
    (33, 33, 35),
    (8, 8, 16),
    (8, 8, 32),
    (8, 8, 61),
    (3, 3, 8),
    (1, 40, 8),
]


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize(("rows", "columns", "size"), SIZES)
def test_as_many_as_asked_each_once_in_file_order(strategy: str, rows: int, columns: int, size: int) -> None:
    positions = raster(rows, columns)
    indices = chosen(positions, size, strategy)
    assert len(indices) == size
    assert (np.diff(indices) > 0).all()
    np.testing.assert_array_equal(indices, chosen(positions, size, strategy))


@pytest.mark.parametrize("jitter", [0.0, 0.3])
@pytest.mark.parametrize(("rows", "columns", "size"), SIZES)
def test_even_spreads_groups_over_the_field(rows: int, columns: int, size: int, jitter: float) -> None:
    positions = raster(rows, columns, jitter)
    kept = positions[chosen(positions, size, "even")]
    covered = compute_field_coverage(kept, positions, 5.0)
    assert min(covered["y"], covered["x"]) > 0.5
    # The four are neighbours in the source, so no group reaches much farther than groups there: across a square of
    # 2 × 2, or round a corner of the field.
    assert group_reach(kept).max() <= 2 * group_reach(positions).max()


def test_even_leaves_no_large_gap() -> None:
    positions = raster(33, 33)
    gap = {strategy: 0.0 for strategy in STRATEGIES}
    for strategy in gap:
        kept = positions[chosen(positions, 64, strategy)]
        gap[strategy] = float(np.linalg.norm(positions[:, None] - kept[None], axis=2).min(1).max())
    assert gap["even"] < 25  # of a field of 96 × 96 pixels: 16 seeds in a square grid would leave 17
    assert gap["compact"] > 40


def test_the_first_patterns_of_a_raster_would_be_a_stripe() -> None:
    positions = raster(33, 33)
    assert compute_field_coverage(positions[:64], positions, 5.0)["y"] < 0.1


def test_compact_is_a_window_without_a_hole() -> None:
    positions = raster(33, 33)
    indices = chosen(positions, 64, "compact")
    kept = positions[indices]
    low, high = kept.min(0), kept.max(0)
    inside = ((positions > low) & (positions < high)).all(1)
    assert np.isin(np.flatnonzero(inside), indices).all()
    assert compute_field_coverage(kept, positions, 5.0)["x"] < 0.3


def test_seeded_follows_its_seed() -> None:
    positions = raster(10, 10)
    assert chosen(positions, 20, "seeded", 1).tolist() == chosen(positions, 20, "seeded", 1).tolist()
    assert chosen(positions, 20, "seeded", 1).tolist() != chosen(positions, 20, "seeded", 2).tolist()


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_positions_that_stand_twice_are_no_trouble(strategy: str) -> None:
    positions = np.repeat(raster(3, 3), 2, axis=0)
    assert len(set(chosen(positions, 10, strategy).tolist())) == 10
    assert chosen(np.ones((12, 2)), 9, strategy).size == 9


@pytest.mark.parametrize(("size", "said"), [(7, "at least 8"), (10, "9 patterns")])
def test_too_few_and_too_many_are_refused(size: int, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        chosen(raster(3, 3), size, "even")


def test_coverage_is_the_share_of_each_range() -> None:
    field = np.array([[0.0, 0], [10, 20], [5, 5], [4, 5]])
    assert compute_field_coverage(field[2:], field, 1.0) == {"y": 0.1, "x": 0.0, "positions": 0.5}
    assert compute_field_coverage(field[:1], field[:1], 1.0) == {"y": 1.0, "x": 1.0, "positions": 1.0}


def with_everything(scan: Scan) -> Scan:
    """The scan with every optional array, each naming its pattern."""
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


def make_config(folder: Path, **settings: Any) -> SubsetConfig:
    paths: dict[str, Any] = {"source": folder / "source.npz", "output": folder / "fixture.npz"}
    return SubsetConfig(**(paths | settings))


def cut(folder: Path, scan: Scan, layout: Literal["canonical", "legacy"] = "canonical", **settings: Any) -> Scan:
    save_scan(folder / "source.npz", scan, layout)
    write_subset(make_config(folder, **settings))
    return load_scan(folder / "fixture.npz")


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_everything_of_a_pattern_is_cut_by_the_same_indices(tmp_path: Path, scan: Scan, strategy: str) -> None:
    whole = with_everything(scan)
    fixture = cut(tmp_path, whole, strategy=strategy, subset_size=9)
    index = fixture.source_index
    assert index is not None
    assert len(index) == 9
    for name in ("amplitudes", "positions", "mask", "scan_index", "nominal_positions", "labels"):
        np.testing.assert_array_equal(getattr(fixture, name), getattr(whole, name)[index], err_msg=name)
    np.testing.assert_array_equal(fixture.truth, whole.truth)
    np.testing.assert_array_equal(fixture.probe, whole.probe)


def test_a_cut_of_a_cut_names_the_first_source(tmp_path: Path, scan: Scan) -> None:
    first = make_subset(scan, make_config(tmp_path, subset_size=20), 1.0)
    second = make_subset(first, make_config(tmp_path, subset_size=9, strategy="seeded", seed=4), 1.0)
    np.testing.assert_array_equal(second.positions, scan.positions[second.source_index])


@pytest.mark.parametrize("layout", ["canonical", "legacy"])
def test_the_fixture_is_canonical_with_coordinates_to_the_bit(
    tmp_path: Path, scan_factory: Callable[..., Scan], layout: Literal["canonical", "legacy"]
) -> None:
    scan = scan_factory(n=30, size=24)
    cut(tmp_path, scan, layout, subset_size=24)
    arrays = read_arrays(tmp_path / "fixture.npz")
    assert (arrays["diffraction"].shape, arrays["diffraction"].dtype) == ((24, 24, 24), np.float32)  # a cube
    assert {arrays[key].dtype for key in ("probeGuess", "objectGuess")} == {np.dtype(np.complex64)}
    index = arrays["source_index"]
    for key, column in (("ycoords", 0), ("xcoords", 1)):
        assert arrays[key].dtype == np.float64
        np.testing.assert_array_equal(arrays[key], scan.positions[index, column])
    metadata = json.loads(str(arrays["metadata"]))
    assert (metadata["axis_order"], metadata["measurement"]) == ("nhw", "amplitude")


def pairing_error(scan: Scan, positions: NDArray[np.float64]) -> float:
    """R of the patterns against the forward model at ``positions``, with one factor for the power of the probe."""
    obj, probe = (torch.from_numpy(array).to(torch.complex128) for array in (scan.truth, scan.probe))
    model = np.sqrt(np.fft.fftshift(from_object(obj, probe, torch.from_numpy(positions)).intensity.numpy(), (1, 2)))
    measured = scan.amplitudes.astype(np.float64)
    model *= (model * measured).sum() / np.square(model).sum()
    return float(np.square(model - measured).sum() / np.square(measured).sum())


@pytest.mark.parametrize("layout", ["canonical", "legacy"])
def test_patterns_belong_to_their_coordinates(
    tmp_path: Path, scan_factory: Callable[..., Scan], layout: Literal["canonical", "legacy"]
) -> None:
    fixture = cut(tmp_path, scan_factory(n=64, photons=0), layout, subset_size=16)
    assert pairing_error(fixture, fixture.positions) < 1e-10
    for wrong in (np.roll(fixture.positions, 1, 0), fixture.positions[:, ::-1].copy()):
        assert pairing_error(fixture, wrong) > 1e-3
    swapped = fixture.positions.copy()
    swapped[[2, 3]] = swapped[[3, 2]]  # a single pair of neighbours exchanged
    assert pairing_error(fixture, swapped) > 1e-5


@pytest.mark.parametrize(
    ("layout", "origin"), [("canonical", "metadata"), ("legacy", "lattice")], ids=["metadata", "lattice"]
)
def test_a_known_photon_scale_goes_with_the_fixture(
    tmp_path: Path, scan: Scan, layout: Literal["canonical", "legacy"], origin: str
) -> None:
    fixture = cut(tmp_path, scan, layout, subset_size=8)
    record = json.loads((tmp_path / "fixture.json").read_text())
    counts = np.square(scan.amplitudes[fixture.source_index].astype(np.float64)).sum((1, 2)).mean()
    assert record["photons"]["origin"] == origin
    assert record["photons"]["per_pattern"] == pytest.approx(counts, rel=1e-5)
    assert record["photons"]["per_unit"] == fixture.photons_per_unit


def test_an_assumed_photon_scale_is_not_written(tmp_path: Path, scan_factory: Callable[..., Scan]) -> None:
    noiseless = replace(scan_factory(photons=0), photons_per_unit=None)
    assert cut(tmp_path, noiseless, subset_size=8).photons_per_unit is None
    record = json.loads((tmp_path / "fixture.json").read_text())
    assert record["photons"] == {"origin": "assumed", "per_unit": None, "per_pattern": None}
    given = cut(tmp_path, noiseless, subset_size=8, photons_per_unit=2.5)
    assert given.photons_per_unit == 2.5


def test_no_folder_of_the_source_goes_into_the_fixture(tmp_path: Path, scan: Scan) -> None:
    told = {"file": str(tmp_path / "raw.h5"), "note": [f"made by python {tmp_path}/run.py --at 3 m/s", {"k": 1.5}]}
    fixture = cut(tmp_path, replace(scan, metadata=told), subset_size=8)
    assert fixture.metadata["file"] == "raw.h5"
    assert fixture.metadata["note"] == ["made by python run.py --at 3 m/s", {"k": 1.5}]
    for name in ("fixture.npz", "fixture.json"):
        assert str(tmp_path) not in str(fixture.metadata) + (tmp_path / name).read_bytes().decode("latin1")


@pytest.mark.parametrize(
    ("text", "left"),
    [
        ("/data/a/scan.npz", "scan.npz"),
        ("/data/Jane Doe/scan.npz", "scan.npz"),
        ("C:\\data\\scan.npz", "scan.npz"),
        ("from ~/scans/x.npz", "from x.npz"),
        ("see file:///home/a/x.npz", "see x.npz"),
        ("https://host.org/a/b", "https://host.org/a/b"),
        ("a/b, 1/2 and 5 m/s", "a/b, 1/2 and 5 m/s"),
        ("sub/folder/x.npz", "sub/folder/x.npz"),
    ],
)
def test_only_folders_of_absolute_paths_are_left_out(text: str, left: str) -> None:
    assert strip_folders({"a": [text]}) == {"a": [left]}


@pytest.mark.parametrize("broken", ["sidecar is a folder", "folder is a file"])
def test_if_one_file_cannot_be_written_nothing_changes(tmp_path: Path, scan: Scan, broken: str) -> None:
    save_scan(tmp_path / "source.npz", scan)
    (tmp_path / "fixture.npz").write_bytes(b"earlier")
    (tmp_path / "file").write_bytes(b"")
    record = tmp_path / ("file/x/record.json" if broken == "folder is a file" else "there")
    if broken == "sidecar is a folder":
        (record / "full").mkdir(parents=True)
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(DataError):
        write_subset(make_config(tmp_path, subset_size=8, metadata_out=record))
    with pytest.raises(DataError):
        write_subset(make_config(tmp_path, subset_size=8, output=tmp_path / "new/deep/o.npz", metadata_out=record))
    assert sorted(tmp_path.rglob("*")) == before
    assert (tmp_path / "fixture.npz").read_bytes() == b"earlier"


def test_an_earlier_fixture_comes_back_if_the_record_fails_last(tmp_path: Path, scan: Scan) -> None:
    save_scan(tmp_path / "source.npz", scan)
    (tmp_path / "fixture.json" / "full").mkdir(parents=True)  # where the record is to be renamed to, after the fixture
    for earlier in (None, b"earlier"):
        if earlier:
            (tmp_path / "fixture.npz").write_bytes(earlier)
        before = sorted(tmp_path.rglob("*"))
        with pytest.raises(DataError, match=r"fixture\.json"):
            write_subset(make_config(tmp_path, subset_size=8))
        assert sorted(tmp_path.rglob("*")) == before
        assert not earlier or (tmp_path / "fixture.npz").read_bytes() == earlier
