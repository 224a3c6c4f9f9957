"""Choice of the patterns of a subset: size, spread, coverage and repeatability."""

from typing import Any, Literal

import numpy as np
import pytest
from numpy.typing import NDArray

from ptycho_torch.core.errors import ConfigError
from ptycho_torch.data.grouping import find_nearest_groups
from ptycho_torch.data.scan import Scan
from ptycho_torch.data.subset import compute_field_coverage, make_subset, select_positions, strip_folders

STRATEGIES: list[Literal["even", "compact", "seeded"]] = ["even", "compact", "seeded"]


def raster(rows: int, columns: int, jitter: float = 0.3) -> NDArray[np.float64]:
    """Make positions 3 px apart, row by row."""
    grid = np.stack(np.divmod(np.arange(rows * columns), columns), 1) * 3.0
    return grid + np.random.default_rng(0).uniform(-jitter, jitter, grid.shape) + 20


def select(positions: NDArray[np.float64], size: int, strategy: Any, seed: int = 0) -> NDArray[np.intp]:
    return select_positions(positions, size, strategy, np.random.default_rng(seed))


def compute_group_reach(positions: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the distance from each position to the farthest position of its group at gridsize 2."""
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
def test_selection_has_the_requested_size_without_repeats(strategy: str, rows: int, columns: int, size: int) -> None:
    positions = raster(rows, columns)
    indices = select(positions, size, strategy)
    assert len(indices) == size
    assert (np.diff(indices) > 0).all()
    np.testing.assert_array_equal(indices, select(positions, size, strategy))


@pytest.mark.parametrize("jitter", [0.0, 0.3])
@pytest.mark.parametrize(("rows", "columns", "size"), SIZES)
def test_even_strategy_spreads_groups_over_the_field(rows: int, columns: int, size: int, jitter: float) -> None:
    positions = raster(rows, columns, jitter)
    selected = positions[select(positions, size, "even")]
    coverage = compute_field_coverage(selected, positions, 5.0)
    assert min(coverage["y"], coverage["x"]) > 0.5
    # The four positions are neighbors in the source, so no group extends much farther than groups of the source:
    # across a square of 2 × 2, or around a corner of the field.
    assert compute_group_reach(selected).max() <= 2 * compute_group_reach(positions).max()


def test_even_strategy_leaves_no_large_gap() -> None:
    positions = raster(33, 33)
    gap = {strategy: 0.0 for strategy in STRATEGIES}
    for strategy in gap:
        selected = positions[select(positions, 64, strategy)]
        gap[strategy] = float(np.linalg.norm(positions[:, None] - selected[None], axis=2).min(1).max())
    assert gap["even"] < 25  # in a field of 96 × 96 pixels; 16 centers in a square grid would leave 17
    assert gap["compact"] > 40


def test_first_patterns_of_a_raster_cover_only_a_stripe() -> None:
    positions = raster(33, 33)
    assert compute_field_coverage(positions[:64], positions, 5.0)["y"] < 0.1


def test_compact_strategy_selects_a_window_without_holes() -> None:
    positions = raster(33, 33)
    indices = select(positions, 64, "compact")
    selected = positions[indices]
    low, high = selected.min(0), selected.max(0)
    inside = ((positions > low) & (positions < high)).all(1)
    assert np.isin(np.flatnonzero(inside), indices).all()
    assert compute_field_coverage(selected, positions, 5.0)["x"] < 0.3


def test_seeded_strategy_follows_the_seed() -> None:
    positions = raster(10, 10)
    assert select(positions, 20, "seeded", 1).tolist() == select(positions, 20, "seeded", 1).tolist()
    assert select(positions, 20, "seeded", 1).tolist() != select(positions, 20, "seeded", 2).tolist()


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_duplicate_positions_are_selected_once_each(strategy: str) -> None:
    positions = np.repeat(raster(3, 3), 2, axis=0)
    assert len(set(select(positions, 10, strategy).tolist())) == 10
    assert select(np.ones((12, 2)), 9, strategy).size == 9


@pytest.mark.parametrize(("size", "message"), [(7, "at least 8"), (10, "at most 9")])
def test_too_few_and_too_many_patterns_raise(size: int, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        select(raster(3, 3), size, "even")


def test_coverage_is_the_share_of_each_range() -> None:
    field = np.array([[0.0, 0], [10, 20], [5, 5], [4, 5]])
    assert compute_field_coverage(field[2:], field, 1.0) == {"y": 0.1, "x": 0.0, "positions": 0.5}
    assert compute_field_coverage(field[:1], field[:1], 1.0) == {"y": 1.0, "x": 1.0, "positions": 1.0}


def test_subset_of_a_subset_indexes_the_first_source(scan: Scan) -> None:
    first = make_subset(scan, 1.0, subset_size=20)
    second = make_subset(first, 1.0, subset_size=9, strategy="seeded", seed=4)
    np.testing.assert_array_equal(second.positions, scan.positions[second.source_index])


@pytest.mark.parametrize(
    ("text", "expected"),
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
def test_strip_folders_removes_folders_of_absolute_paths_only(text: str, expected: str) -> None:
    assert strip_folders({"a": [text]}) == {"a": [expected]}
