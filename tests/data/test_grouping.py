"""Groups of neighbors, compact batches, and the held-out region."""

import numpy as np
import pytest
from numpy.typing import NDArray

from ptycho_torch.core.errors import ConfigError
from ptycho_torch.data.grouping import draw_groups, find_nearest_groups, hold_out_region, make_compact_batches

Points = NDArray[np.float64]


def points(n: int, seed: int = 0) -> Points:
    return np.random.default_rng(seed).uniform(0, 50, (n, 2))


@pytest.mark.parametrize("gridsize", [1, 2, 3])
def test_groups_hold_the_nearest_neighbors(gridsize: int) -> None:
    positions = points(40)
    centers = np.array([3, 0, 39, 17])
    groups = find_nearest_groups(positions, gridsize, centers)
    distances = np.linalg.norm(positions[:, None] - positions, axis=-1)
    for group, center in zip(groups, centers, strict=True):
        np.testing.assert_array_equal(group, np.argsort(distances[center])[: gridsize**2])


@pytest.mark.parametrize("copies", [2, 3, 9])
def test_groups_with_duplicate_positions_have_distinct_members(copies: int) -> None:
    positions = np.repeat(points(5), copies, axis=0)
    groups = find_nearest_groups(positions, 2, np.arange(len(positions)))
    np.testing.assert_array_equal(groups[:, 0], np.arange(len(positions)))
    assert all(len(set(group)) == 4 for group in groups.tolist())


def test_group_may_contain_the_whole_field() -> None:
    groups = find_nearest_groups(points(4), 2, np.arange(4))
    np.testing.assert_array_equal(np.sort(groups, 1), np.tile(np.arange(4), (4, 1)))
    np.testing.assert_array_equal(groups[:, 0], np.arange(4))


def test_group_larger_than_the_field_raises() -> None:
    with pytest.raises(
        ConfigError, match="`gridsize` is 3, which needs groups of 9 positions; expected groups of at most 8"
    ):
        find_nearest_groups(points(8), 3, np.arange(8))


@pytest.mark.parametrize("n", [1, 5, 12, 97, 200])
@pytest.mark.parametrize("batch_size", [1, 4, 7, 500])
@pytest.mark.parametrize("spread", [1, 8])
def test_batches_contain_each_position_once(n: int, batch_size: int, spread: int) -> None:
    batches = make_compact_batches(points(n), batch_size, spread, np.random.default_rng(0))
    np.testing.assert_array_equal(np.sort(np.concatenate(batches)), np.arange(n))
    sizes = sorted(len(batch) for batch in batches)
    assert len(batches) == -(-n // batch_size)
    assert sizes[-1] <= batch_size
    assert set(sizes[1:]) <= {batch_size}, "only one batch may be smaller"


def test_batches_follow_the_seed() -> None:
    drawn = [make_compact_batches(points(60), 5, 2, np.random.default_rng(seed)) for seed in (1, 1, 2)]
    assert [batch.tolist() for batch in drawn[0]] == [batch.tolist() for batch in drawn[1]]
    assert [batch.tolist() for batch in drawn[0]] != [batch.tolist() for batch in drawn[2]]


def _extent(positions: Points, batches: list[NDArray[np.intp]]) -> float:
    return float(np.mean([np.ptp(positions[batch], axis=0).mean() for batch in batches]))


def test_batches_are_compact() -> None:
    positions, rng = points(640), np.random.default_rng(0)
    at_random = np.array_split(rng.permutation(640), 40)
    compact = _extent(positions, make_compact_batches(positions, 16, 1, rng))
    spread = _extent(positions, make_compact_batches(positions, 16, 8, rng))
    assert compact < 0.4 * _extent(positions, at_random)
    assert compact < spread < 0.8 * _extent(positions, at_random)


def test_batches_of_equal_positions() -> None:
    batches = make_compact_batches(np.ones((20, 2)), 6, 2, np.random.default_rng(0))
    assert sorted(len(batch) for batch in batches) == [2, 6, 6, 6]


@pytest.mark.parametrize("gridsize", [1, 2])
def test_draw_groups_returns_all_or_the_requested_number(gridsize: int) -> None:
    positions, allowed = points(30), np.arange(0, 30, 2)
    every = draw_groups(positions, gridsize, allowed, None, np.random.default_rng(0))
    np.testing.assert_array_equal(every[:, 0], allowed)
    subset = draw_groups(positions, gridsize, allowed, 7, np.random.default_rng(0))
    assert subset.shape == (7, gridsize**2)
    assert len(set(subset[:, 0].tolist())) == 7
    assert np.isin(subset, allowed).all()
    np.testing.assert_array_equal(subset, every[np.isin(every[:, 0], subset[:, 0])])


def test_draw_groups_follows_the_seed() -> None:
    drawn = [draw_groups(points(90), 1, np.arange(90), 20, np.random.default_rng(s)).tolist() for s in (5, 5, 6)]
    assert drawn[0] == drawn[1] != drawn[2]


def test_more_groups_than_positions_raises() -> None:
    with pytest.raises(ConfigError, match="`n_images` is 11; expected at most 10"):
        draw_groups(points(10), 1, np.arange(10), 11, np.random.default_rng(0))
    with pytest.raises(ConfigError, match="outside the held-out region"):
        draw_groups(points(10), 1, np.arange(8), 9, np.random.default_rng(0))


@pytest.mark.parametrize("n", [2, 10, 100, 1087])
def test_held_out_region_matches_its_description(n: int) -> None:
    positions = points(n)
    split = hold_out_region(positions)
    np.testing.assert_array_equal(np.sort(np.concatenate([split.training, split.validation])), np.arange(n))
    assert 1 <= len(split.validation) <= 0.05 * n + 2
    axis = "yx".index(split.region[0])
    assert positions[split.validation, axis].min() > positions[split.training, axis].max()
    bound = float(split.region.split()[2])
    assert bound == pytest.approx(positions[split.validation, axis].min(), abs=0.005)
    assert f"({len(split.validation)} of {n} positions)" in split.region


@pytest.mark.parametrize("rows", [1, 2, 3])
@pytest.mark.parametrize("along", [0, 1])
def test_line_scan_and_few_rows_hold_out_the_end_of_the_longest_axis(rows: int, along: int) -> None:
    positions = np.empty((60, 2))
    positions[:, along], positions[:, 1 - along] = np.divmod(np.arange(60), rows)
    split = hold_out_region(positions)
    assert 0.04 * 60 <= len(split.validation) <= 0.1 * 60
    assert positions[split.validation, along].min() > positions[split.training, along].max()
    assert split.region.startswith("yx"[along])


def test_long_last_row_is_held_out_in_part() -> None:
    positions = np.stack([np.repeat([0.0, 90.0], 30), np.tile(np.arange(30.0), 2)], 1)
    split = hold_out_region(positions)
    np.testing.assert_array_equal(split.validation, [57, 58, 59])
    assert "end of the row along x" in split.region


@pytest.mark.parametrize(("n", "at_least"), [(1, 1), (9, 9)])
def test_scan_without_a_remaining_position_is_refused(n: int, at_least: int) -> None:
    with pytest.raises(ConfigError, match="`test_data_file`"):
        hold_out_region(points(n), at_least=at_least)
