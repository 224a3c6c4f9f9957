"""What least squares promise beside what every engine does."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from ptycho_torch.config.engines import LSQML
from ptycho_torch.core.observer import SilentObserver
from ptycho_torch.data.scan import Scan
from ptycho_torch.engines.lsqml import LsqmlEngine, compute_step_length, compute_step_lengths
from ptycho_torch.engines.runner import EngineRunner
from ptycho_torch.engines.state import Measurement, ReconstructionState, make_measurement, make_vacuum_state
from ptycho_torch.physics.batch import scale_probe_to_photons
from ptycho_torch.physics.forward import from_object
from ptycho_torch.physics.noise import make_noise_model


def problem_of(scan: Scan) -> tuple[Measurement, ReconstructionState]:
    measurement = make_measurement(scan, 1.0, make_noise_model("amplitude"), torch.device("cpu"))
    return measurement, make_vacuum_state(torch.from_numpy(scan.positions.copy()), scale_probe_to_photons(scan, 1.0))


def run_of(scan: Scan, epochs: int = 10, batch_size: int = 8, **options: Any) -> EngineRunner:
    engine = LsqmlEngine(*problem_of(scan), LSQML(epochs=epochs, batch_size=batch_size, **options))
    run = EngineRunner(engine, seed=0)
    assert run.run(SilentObserver())
    return run


def waves(seed: int) -> torch.Tensor:
    rng = np.random.default_rng(seed)
    return torch.from_numpy(rng.normal(size=(5, 2, 7, 7)) + 1j * rng.normal(size=(5, 2, 7, 7)))


def test_lengths_are_found_exactly_where_the_change_is_made_of_both_directions() -> None:
    first, second = waves(0), waves(1)
    second = second + 0.7 * first  # not orthogonal: what one explains must not be asked of the other
    along_first, along_second = compute_step_lengths(first, second, 0.8 * first + 0.3 * second, 0.0)
    assert float(along_first) == pytest.approx(0.8)
    assert float(along_second) == pytest.approx(0.3)
    assert float(compute_step_length(first, 0.8 * first, 0.0)) == pytest.approx(0.8)


def test_no_step_is_taken_where_there_is_no_direction_or_it_leads_away() -> None:
    nothing, wanted = torch.zeros_like(waves(0)), waves(1)
    assert float(compute_step_length(nothing, wanted, 0.01)) == 0
    assert float(compute_step_length(-wanted, wanted, 0.01)) == 0
    assert all(bool(length.isfinite()) for length in compute_step_lengths(nothing, nothing, wanted, 0.01))


@pytest.mark.parametrize("batches", ["compact", "random"])
@pytest.mark.parametrize("learned", [False, True])
@pytest.mark.parametrize("momentum", [None, 0.0, 0.9])
def test_it_does_not_diverge_where_patterns_hardly_overlap(
    momentum: float | None, learned: bool, batches: str, scan_factory: Callable[..., Scan]
) -> None:
    dense = scan_factory(n=100, size=24, seed=6)
    sparse = dense.select(np.flatnonzero((np.arange(100) // 10 % 3 == 0) & (np.arange(100) % 3 == 0)))
    run = run_of(sparse, epochs=30, batch_size=4, batches=batches, momentum=momentum, update_probe=learned)
    assert np.isfinite(run.history.r).all()
    assert run.history.r[-1] < 0.5 * run.history.r[0]
    assert max(run.history.r[1:]) < (2 if momentum else 1.1) * run.history.r[0]
    assert run.engine.state.object.abs().max() < 5


def test_a_noisy_but_good_start_gets_better_from_the_first_epoch_on(scan_factory: Callable[..., Scan]) -> None:
    scan = scan_factory(n=49, size=24, seed=2, photons=1e6)
    assert scan.truth is not None
    measurement, estimate = problem_of(scan)
    (top, left), (rows, columns) = estimate.canvas
    truth = torch.from_numpy(scan.truth[top : top + rows, left : left + columns])
    light = from_object(torch.from_numpy(scan.truth), estimate.probe, torch.from_numpy(scan.positions))
    truth = truth * (measurement.photons / float(light.intensity.sum())) ** 0.5
    noise = torch.from_numpy(np.random.default_rng(1).normal(size=(2, *truth.shape)).astype(np.float32))
    estimate.object = truth + 0.05 * torch.complex(noise[0], noise[1])
    engine = LsqmlEngine(measurement, estimate, LSQML(epochs=6, batch_size=8))
    lit = engine.model.make_illumination_map().sum_positions()
    lit = lit > 0.3 * lit.amax()
    distances = [float((estimate.object - truth)[lit].abs().square().mean())]

    class Watch(SilentObserver):
        def advance(self, steps: int = 1, **figures: float) -> None:
            distances.append(float((estimate.object - truth)[lit].abs().square().mean()))

    EngineRunner(engine, 0).run(Watch())
    assert all(later < distances[0] for later in distances[1:])
    assert distances[-1] < 0.3 * distances[0]


def test_momentum_waits_where_a_batch_brings_no_light(scan_factory: Callable[..., Scan]) -> None:
    measurement, estimate = problem_of(scan_factory(n=100, size=16, seed=5))
    engine = LsqmlEngine(measurement, estimate, LSQML(momentum=0.8, batch_size=4))
    engine.begin_epoch(0, 0.0)
    engine.step(torch.tensor([0, 1]), 0.0)
    before, velocity = estimate.object, engine.velocity
    engine.step(torch.tensor([98, 99]), 0.0)
    first_corner = (slice(0, 18), slice(0, 18))  # the windows of the first patterns; the last are 30 pixels away
    assert velocity[first_corner].abs().max() > 0
    torch.testing.assert_close(estimate.object[first_corner], before[first_corner], atol=1e-6, rtol=0)
    torch.testing.assert_close(engine.velocity[first_corner], velocity[first_corner], atol=1e-6, rtol=0)


def test_momentum_is_found_from_the_overlap(scan_factory: Callable[..., Scan]) -> None:
    dense = scan_factory(n=100, size=24, seed=6)
    found = []
    for scan in (dense, dense.select(np.arange(0, 100, 4)), dense.select(np.array([0, 99]))):
        found.append(LsqmlEngine(*problem_of(scan), LSQML(batch_size=4)).momentum)
    assert 0.9 >= found[0] > found[1] > found[2]
    assert found[2] < 0.1


def test_a_rough_probe_is_learned(scan_factory: Callable[..., Scan]) -> None:
    scan = scan_factory(n=64, size=24, seed=7, photons=1e5)
    rough = replace(scan, probe=(np.abs(scan.probe) + 0j).astype(np.complex64))
    fixed, learned = (run_of(rough, epochs=40, update_probe=update_probe) for update_probe in (False, True))
    assert learned.history.r[-1] < 0.1 * fixed.history.r[-1]
