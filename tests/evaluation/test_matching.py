"""A result of a part of a scan against the whole scan, and a result of the whole against a part."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ptycho_torch.data.reconstruction import Reconstruction
from ptycho_torch.data.scan import Scan
from ptycho_torch.evaluation.matching import find_excluded, match_patterns
from ptycho_torch.io.foreign_result import STORED_POSITIONS
from ptycho_torch.io.scan import load_scan, save_scan

CHOSEN = np.array([3, 17, 18, 40, 88])


def make_result(case: Any, **metadata: Any) -> Reconstruction:
    intensities = np.arange(len(case.scan), dtype=np.float32)
    return replace(case.reconstruction, intensities=intensities, metadata=metadata)


def select(result: Reconstruction) -> Reconstruction:
    assert result.intensities is not None
    return replace(result, positions=result.positions[CHOSEN], intensities=result.intensities[CHOSEN])


def check(result: Reconstruction, scan: Scan) -> None:
    np.testing.assert_array_equal(result.positions, scan.positions)
    np.testing.assert_array_equal(result.intensities, CHOSEN.astype(np.float32))


def test_result_of_some_positions_matches_its_own_scan_by_its_indices(simulated_case: Any) -> None:
    part = select(make_result(simulated_case, indices=CHOSEN.tolist(), scan_digest=simulated_case.scan.digest()))
    check(*match_patterns(part, simulated_case.scan))


def test_result_of_a_cut_matches_the_whole_by_its_source_indices(simulated_case: Any) -> None:
    part = select(make_result(simulated_case, source_index=CHOSEN.tolist()))
    check(*match_patterns(part, simulated_case.scan))


@pytest.mark.parametrize("backwards", [False, True])
def test_result_of_the_whole_matches_a_cut_in_the_order_of_the_cut(simulated_case: Any, backwards: bool) -> None:
    chosen = CHOSEN[::-1] if backwards else CHOSEN
    cut = replace(simulated_case.scan, source_index=np.arange(len(simulated_case.scan))).select(chosen)
    result, scan = match_patterns(make_result(simulated_case), cut)
    np.testing.assert_array_equal(result.positions, scan.positions)
    np.testing.assert_array_equal(result.intensities, chosen.astype(np.float32))


def test_unrelated_results_and_scans_are_unchanged(simulated_case: Any) -> None:
    result, other = make_result(simulated_case), simulated_case.scan.select(CHOSEN)
    assert match_patterns(result, other) == (result, other)


def test_result_of_another_program_is_scored_at_its_own_positions(simulated_case: Any) -> None:
    """The origin of a file of another program is its own, so a constant shift is no error of the positions."""
    shift = np.array([3, -5])
    result = simulated_case.reconstruction
    moved = replace(
        result,
        origin_yx=result.origin_yx + shift,
        positions=result.positions + shift,
        metadata={"positions": STORED_POSITIONS},
    )
    assert moved.scores(simulated_case.scan)["r"] == pytest.approx(result.scores(simulated_case.scan)["r"], rel=1e-4)
    part = select(replace(moved, intensities=np.ones(len(moved.positions), np.float32)))
    part = replace(part, metadata={"positions": STORED_POSITIONS, "source_index": CHOSEN.tolist()})
    expected = result.scores(simulated_case.scan.select(CHOSEN))["r"]
    assert part.scores(simulated_case.scan)["r"] == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("numbered", [False, True])
def test_excluded_patterns_are_found_in_a_part_of_the_scan(simulated_case: Any, numbered: bool) -> None:
    metadata = {"excluded_patterns": [17, 88]} | (
        {"indices": list(range(len(simulated_case.scan)))} if numbered else {}
    )
    whole = replace(simulated_case.scan, source_index=np.arange(len(simulated_case.scan)))
    result, _ = match_patterns(make_result(simulated_case, **metadata), whole.select(CHOSEN))
    np.testing.assert_array_equal(np.flatnonzero(find_excluded(result)), [1, 4])


def test_frames_of_a_file_keep_their_numbers(simulated_case: Any, tmp_path: Path) -> None:
    save_scan(tmp_path / "scan.npz", simulated_case.scan)
    part = load_scan(tmp_path / "scan.npz", frames="3,17,18,40,88")
    result, scan = match_patterns(make_result(simulated_case), part)
    check(result, scan)
    assert load_scan(tmp_path / "scan.npz", frames=f"0:{len(simulated_case.scan)}").source_index is None
