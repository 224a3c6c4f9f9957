"""Half scans: disjoint, alike, and reconstructed without knowing of each other."""

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch
from helpers import finish_pipeline
from scipy.spatial import cKDTree

from ptycho_torch.config.engines import LSQML, PIE, EngineOptions
from ptycho_torch.core.errors import DataError
from ptycho_torch.data.holdout import draw_holdout_pixels
from ptycho_torch.data.reconstruction import Reconstruction
from ptycho_torch.data.scan import Scan
from ptycho_torch.engines.half_scan import make_half_pipelines, split_half_indices
from ptycho_torch.engines.pipeline import PipelineRun
from ptycho_torch.engines.state import make_vacuum_state
from ptycho_torch.evaluation.half_split import correlate_half_scans
from ptycho_torch.physics.batch import scale_probe_to_photons


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def chain_of(scan: Scan, *stages: EngineOptions) -> PipelineRun:
    start = make_vacuum_state(torch.from_numpy(scan.positions.copy()), scale_probe_to_photons(scan, 1.0))
    return PipelineRun(scan, 1.0, list(stages), start, held_out=draw_holdout_pixels(scan, 0.05, rng()))


def finished(chain: PipelineRun) -> Reconstruction:
    result: Reconstruction = finish_pipeline(chain).make_reconstruction()
    return result


@pytest.mark.parametrize("n", [2, 81, 99])
def test_halves_are_disjoint_of_one_size_and_drawn_by_the_seed(scan_factory: Callable[..., Scan], n: int) -> None:
    positions = scan_factory(n=n).positions
    first, second = split_half_indices(positions, rng())
    np.testing.assert_array_equal(np.sort(np.concatenate([first, second])), np.arange(n))
    assert 0 <= len(first) - len(second) <= 1
    again = split_half_indices(positions, rng())
    assert (first == again[0]).all()
    if n > 2:
        other, _ = split_half_indices(positions, rng(1))
        assert len(other) != len(first) or (other != first).any()


@pytest.mark.parametrize("seed", range(8))
def test_each_half_covers_the_field(scan_factory: Callable[..., Scan], seed: int) -> None:
    positions = scan_factory(n=196).positions  # about 4 pixels apart; halves drawn freely have holes of up to 9
    for half in split_half_indices(positions, rng(seed)):
        distances, _ = cKDTree(positions[half]).query(positions)
        assert distances.max() < 7.5


def test_halves_start_alike_and_leave_the_whole_alone(scan: Scan) -> None:
    stages = PIE(epochs=3, batch_size=8, update_probe=True), LSQML(epochs=2, patience=1)
    alone, chain = chain_of(scan, *stages), chain_of(scan, *stages)
    halves = make_half_pipelines(chain, rng())
    start = chain.state.probe
    assert all(half.state.probe is start for half in halves)
    assert all(half.held_out is not None and half.held_out.shape == half.scan.amplitudes.shape for half in halves)
    results = [finished(half) for half in halves]
    assert chain.state.probe is start
    assert chain.history["r"] == []
    assert finished(chain).object.tobytes() == finished(alone).object.tobytes()
    assert sum(len(result.positions) for result in results) == len(scan)
    for result in results:
        assert result.object.shape == chain.make_reconstruction().object.shape
        assert result.history["stage"][-1] == 2


def test_the_patterns_of_one_half_do_not_reach_the_other(scan: Scan) -> None:
    indices = split_half_indices(scan.positions, rng())
    spoilt = scan.amplitudes.copy()
    spoilt[indices[0]] = 3
    stage = PIE(epochs=2, batch_size=8)
    probe = scale_probe_to_photons(scan, 1.0)
    found = []
    for amplitudes in (scan.amplitudes, spoilt):
        start = make_vacuum_state(torch.from_numpy(scan.positions.copy()), probe)
        _, second = make_half_pipelines(PipelineRun(replace(scan, amplitudes=amplitudes), 1.0, [stage], start), rng())
        found.append(finished(second).object.tobytes())
    assert found[0] == found[1]


def test_counting_noise_ends_the_agreement(scan_factory: Callable[..., Scan]) -> None:
    crossings = []
    for photons in (1e2, 1e4, 1e7):
        chain = chain_of(scan_factory(n=64, photons=photons), PIE(epochs=10, batch_size=12))
        first, second = make_half_pipelines(chain, rng())
        found = correlate_half_scans(finished(first), finished(second))
        crossings.append(0.5 if found.frc.crossing is None else found.frc.crossing)
    assert crossings[0] < crossings[1] < crossings[2]


def test_one_position_cannot_be_halved(scan: Scan) -> None:
    with pytest.raises(DataError, match="expected at least 2"):
        make_half_pipelines(chain_of(scan.select(np.array([0]))), rng())
