"""The search for the orientation of the detector against the positions, their rotation and their scale."""

import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from ptycho_torch.core.errors import DataError
from ptycho_torch.data.extent import compute_median_step, compute_probe_diameter
from ptycho_torch.data.orientation import ORIENTATIONS, Orientation
from ptycho_torch.data.orientation_search import OrientationSearch, apply_orientation, make_rotation
from ptycho_torch.data.scan import Scan
from ptycho_torch.engines.orientation import find_orientation, invert
from ptycho_torch.engines.orientation_placement import OrientationSearcher, Placement
from ptycho_torch.engines.orientation_simplest import MIN_OVERLAP, measure_largest_overlap
from ptycho_torch.engines.orientation_trial import OrientationTrials
from ptycho_torch.engines.orientation_window import resample_detector, select_window
from ptycho_torch.io.scan import load_scan
from ptycho_torch.simulation.objects import OBJECTS
from ptycho_torch.simulation.probes import PROBES
from ptycho_torch.simulation.scan import simulate_measurement

ROTATIONS_DEG = (0.0, 12.0, -30.0)


def simulate_asymmetric(
    size: int = 25, *, obj: str = "letters", probe: str = "zernike", photons: float = 1e5, seed: int = 0
) -> Scan:
    """Simulate a scan that is wider than high, of an asymmetric object with an asymmetric probe."""
    rng = np.random.default_rng(seed)
    steps = np.stack(np.meshgrid(np.arange(5), np.arange(8), indexing="ij"), -1).reshape(-1, 2)
    positions = (steps + rng.uniform(-0.3, 0.3, steps.shape)) * size / 9 + size / 2 + 4
    shape = tuple(np.ceil(positions.max(0) + size / 2 + 5).astype(int))
    return simulate_measurement(OBJECTS[obj](shape, rng), PROBES[probe](size)[None], positions, photons, rng)


def simulate_sparse(seed: int) -> Scan:
    """Simulate 7 × 9 jittered patterns of 32 × 32 pixels in which neighbors overlap by about 25 % of the probe."""
    rng = np.random.default_rng(seed)
    probe = PROBES["zernike"](32)[None]
    steps = np.stack(np.meshgrid(np.arange(7), np.arange(9), indexing="ij"), -1).reshape(-1, 2)
    positions = (steps + rng.uniform(-0.12, 0.12, steps.shape)) * compute_probe_diameter(probe)
    positions *= 0.72 * compute_probe_diameter(probe) / compute_median_step(positions)
    positions += 20 - positions.min(0)
    shape = tuple(np.ceil(positions.max(0) + 20).astype(int))
    return simulate_measurement(OBJECTS["letters"](shape, rng), probe, positions, 1e5, rng)


def misplace(scan: Scan, right: Orientation, rotation_deg: float = 0.0, position_scale: float = 1.0) -> Scan:
    """Return ``scan`` so that this orientation, rotation and scale restore it."""
    positions = scan.positions @ make_rotation(-rotation_deg).T / position_scale
    return replace(
        scan,
        amplitudes=np.ascontiguousarray(right.inverse.apply(scan.amplitudes)),
        positions=positions - positions.min(0) + scan.size,
        truth=None,
    )


def assert_right_or_undecided(
    result: OrientationSearch, right: Orientation, rotation_deg: float, position_scale: float = 1.0
) -> None:
    if not result.decided:
        return
    expected = (right,) if result.inversion_decided else (right, invert(right))
    assert result.orientation in expected, result
    assert result.rotation_deg == pytest.approx(rotation_deg, abs=3), result
    assert result.position_scale == pytest.approx(position_scale, rel=0.1), result


def compute_relative_distances(positions: NDArray[np.float64]) -> NDArray[np.float64]:
    return positions - positions.mean(0)


def test_orientation_and_rotation_are_found_and_restored() -> None:
    scan, right = simulate_asymmetric(25), Orientation(True, False, True)
    result = find_orientation(misplace(scan, right, -30.0))
    assert result.decided
    assert result.inversion_decided
    assert_right_or_undecided(result, right, -30.0)
    restored = apply_orientation(misplace(scan, right, -30.0), result)
    np.testing.assert_array_equal(restored.amplitudes, scan.amplitudes)
    np.testing.assert_allclose(
        compute_relative_distances(restored.positions), compute_relative_distances(scan.positions), atol=1.5
    )
    assert restored.metadata["orientation"]["settings"] == result.settings


@pytest.mark.slow
def test_without_a_probe_the_inversion_stays_open_and_halved_positions_are_found() -> None:
    scan, right = simulate_asymmetric(40), Orientation(False, True)
    result = find_orientation(replace(misplace(scan, right, position_scale=2.0), probe=None))
    assert result.decided
    assert not result.inversion_decided
    assert result.position_scale == pytest.approx(2, rel=0.15)
    assert result.orientation in (right, invert(right))
    assert result.scores[0].score == result.scores[1].score
    assert "the scan has no probe" in result.verdict


def test_overlap_without_a_probe_does_not_depend_on_a_rotation_of_the_positions() -> None:
    scan = replace(simulate_asymmetric(40, photons=1e6), probe=None)
    overlaps = [
        measure_largest_overlap(OrientationTrials(misplace(scan, Orientation(True, False, True), rotation_deg), 0))
        for rotation_deg in (0.0, 22.5, -30.0)
    ]
    assert min(overlaps) > MIN_OVERLAP
    assert overlaps == pytest.approx([overlaps[0]] * 3, abs=0.1)


@pytest.mark.slow
def test_shuffled_positions_are_undecided() -> None:
    scan = simulate_asymmetric(24)
    shuffled = np.random.default_rng(0).permutation(scan.positions)
    result = find_orientation(replace(scan, positions=shuffled))
    assert not result.decided
    with pytest.raises(DataError, match=r"undecided.*set `flip_y`"):
        apply_orientation(scan, result)


@pytest.mark.slow
@pytest.mark.parametrize("size", [32, 33])
@pytest.mark.parametrize("rotation_deg", ROTATIONS_DEG)
@pytest.mark.parametrize("right", ORIENTATIONS, ids=str)
def test_a_decided_orientation_is_right(right: Orientation, rotation_deg: float, size: int) -> None:
    scan = misplace(simulate_asymmetric(size), right, rotation_deg)
    assert_right_or_undecided(find_orientation(scan), right, rotation_deg)


@pytest.mark.slow
@pytest.mark.parametrize("position_scale", [0.5, 1.3, 2.0])
@pytest.mark.parametrize(("probe", "has_probe"), [("zernike", True), ("zernike", False), ("disk", False)])
def test_a_scale_of_the_positions_is_found(position_scale: float, probe: str, has_probe: bool) -> None:
    right = Orientation(True)
    scan = misplace(simulate_asymmetric(33, probe=probe), right, 0.0, position_scale)
    result = find_orientation(scan if has_probe else replace(scan, probe=None))
    assert_right_or_undecided(result, right, 0.0, position_scale)


@pytest.mark.slow
@pytest.mark.skipif("PTYCHO_TORCH_DATA" not in os.environ, reason="needs the data folder PTYCHO_TORCH_DATA")
@pytest.mark.parametrize("right", [Orientation(), Orientation(True, False, True)], ids=str)
def test_the_orientation_of_the_measured_siemens_star_is_right_or_undecided(right: Orientation) -> None:
    path = Path(os.environ["PTYCHO_TORCH_DATA"]) / "siemens_star" / "siemens-star-small.npz.bz2"
    scan = load_scan(path, measurement="counts", origin="corner")
    assert_right_or_undecided(find_orientation(misplace(scan, right)), right, 0.0)


@pytest.mark.parametrize(
    "right",
    [pytest.param(each, id=str(each), marks=[pytest.mark.slow] if each.code % 2 else []) for each in ORIENTATIONS],
)
def test_sparse_patterns_with_the_true_probe_are_never_placed_wrong(right: Orientation) -> None:
    result = find_orientation(misplace(simulate_sparse(0), right))
    assert_right_or_undecided(result, right, 0.0)
    assert len(result.scores) == 8
    assert {each.rotation_deg for each in result.scores} == {0.0}


def test_sparse_patterns_without_a_probe_are_undecided() -> None:
    result = find_orientation(replace(simulate_sparse(0), probe=None))
    assert not result.decided
    assert "rotation and scale are searched from 50% on" in result.verdict


def test_the_progress_of_a_search_ends_at_its_total() -> None:
    class Counter:
        def __init__(self) -> None:
            self.counts: list[list[int]] = []

        def start(self, task: str, total: int) -> None:
            self.counts.append([0, total])

        def advance(self, steps: int = 1, **figures: float) -> None:
            self.counts[-1][0] += steps

        def finish(self) -> None:
            assert self.counts[-1][0] == self.counts[-1][1]

    counter = Counter()
    trials = OrientationTrials(select_window(simulate_sparse(0)), 0)
    searcher = OrientationSearcher(trials, counter)
    for expected in (1, 5):
        with searcher.observe("trials", expected):
            for angle in (0.0, 30.0):
                searcher.run(Placement(expected == 1, angle, 1.0), "estimated", 1)
    assert counter.counts == [[1, 1], [5, 5]]


@pytest.mark.parametrize("scale", [0.5, 2.0])
def test_the_estimated_probe_depends_only_on_the_mapped_positions(scale: float) -> None:
    window = select_window(simulate_asymmetric(40))
    expected = OrientationTrials(window, 0).make_probe(np.eye(2))
    scaled = OrientationTrials(replace(window, positions=window.positions / scale), 0)
    np.testing.assert_allclose(scaled.make_probe(scale * np.eye(2)), expected, atol=1e-5)
    assert compute_probe_diameter(expected) > 10  # with curvature; without it, a focus of 4.3 pixels


def test_a_trial_leaves_out_no_pattern(caplog: pytest.LogCaptureFixture) -> None:
    window = select_window(simulate_asymmetric(24))
    amplitudes = window.amplitudes.copy()
    amplitudes[7] = np.sqrt(np.random.default_rng(0).poisson(1e5 / 24**2, amplitudes[7].shape))
    trials = OrientationTrials(replace(window, amplitudes=amplitudes), 0)
    trial = trials.run(np.eye(2), window.require_probe(), 20)
    assert trial.scores.argmax() == 7
    assert "left out" not in caplog.text


def test_a_scan_of_few_patterns_is_refused() -> None:
    scan = simulate_asymmetric(24)
    with pytest.raises(DataError, match="7 patterns; expected at least 8"):
        find_orientation(scan.select(np.arange(7)))


@pytest.mark.parametrize("angle_deg", [0.0, 37.0, 44.0, 46.0, 90.0, 120.0, 179.0])
@pytest.mark.parametrize("mirrored", [False, True])
def test_a_placement_is_an_orientation_of_patterns_and_a_rotation(angle_deg: float, mirrored: bool) -> None:
    placement = Placement(mirrored, angle_deg, 1.5)
    mirror = np.diag([-1.0 if mirrored else 1.0, 1.0])
    linear_map = 1.5 * make_rotation(angle_deg) @ mirror
    assert abs(placement.rotation_deg) <= 45
    sign = np.sign((placement.matrix * linear_map).sum())  # the inversion is equivalent
    np.testing.assert_allclose(placement.matrix, sign * linear_map, atol=1e-12)
    np.testing.assert_allclose(
        placement.orientation.matrix @ placement.matrix, 1.5 * make_rotation(placement.rotation_deg), atol=1e-12
    )


@pytest.mark.parametrize(("size", "side"), [(61, 19), (64, 19), (64, 20)])
def test_binned_patterns_keep_zero_frequency_and_the_probe(size: int, side: int) -> None:
    y, x = np.mgrid[:size, :size] - size // 2
    probe = np.exp(-((y - 1) ** 2 + x**2) / 2 / 2.5**2 + 0.1j * (y + x**2 / 4))[None].astype(np.complex64)
    amplitudes = np.abs(np.fft.fftshift(np.fft.fft2(np.fft.ifftshift(probe, (1, 2)))))[0]
    scan = Scan(
        amplitudes=np.stack([amplitudes] * 2).astype(np.float32), positions=np.array([[0.0, 0], [3, 6]]), probe=probe
    )
    binned = resample_detector(scan, side, 3)
    assert binned.probe is not None
    expected = np.abs(np.fft.fftshift(np.fft.fft2(np.fft.ifftshift(binned.probe, (1, 2)))))[0]
    expected *= np.linalg.norm(binned.amplitudes[0]) / np.linalg.norm(expected)
    np.testing.assert_allclose(binned.amplitudes[0], expected, atol=0.05 * expected.max())
    np.testing.assert_allclose(binned.positions, scan.positions * 3 * side / size)


def test_the_window_leaves_out_patterns_of_extraordinary_counts() -> None:
    scan = simulate_asymmetric(24)
    amplitudes = scan.amplitudes.copy()
    amplitudes[[3, 20]] *= 10
    amplitudes[30] *= 0.1
    window = select_window(replace(scan, amplitudes=amplitudes))
    totals = np.square(window.amplitudes).sum((1, 2))
    assert len(window) == 37
    assert totals.max() < 5 * np.median(totals) < 25 * totals.min()
