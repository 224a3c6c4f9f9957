"""Properties of LSQ-ML that other engines do not have."""

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


def make_problem(scan: Scan) -> tuple[Measurement, ReconstructionState]:
    measurement = make_measurement(scan, 1.0, make_noise_model("amplitude"), torch.device("cpu"))
    return measurement, make_vacuum_state(torch.from_numpy(scan.positions.copy()), scale_probe_to_photons(scan, 1.0))


def run_engine(scan: Scan, epochs: int = 10, batch_size: int = 8, **options: Any) -> EngineRunner:
    engine = LsqmlEngine(*make_problem(scan), LSQML(epochs=epochs, batch_size=batch_size, **options))
    run = EngineRunner(engine, seed=0)
    assert run.run(SilentObserver())
    return run


def waves(seed: int) -> torch.Tensor:
    rng = np.random.default_rng(seed)
    return torch.from_numpy(rng.normal(size=(5, 2, 7, 7)) + 1j * rng.normal(size=(5, 2, 7, 7)))


def test_step_lengths_are_exact_if_the_target_is_a_combination_of_both_directions() -> None:
    first, second = waves(0), waves(1)
    second = second + 0.7 * first  # not orthogonal: both lengths must be solved for together
    along_first, along_second = compute_step_lengths(first, second, 0.8 * first + 0.3 * second, 0.0)
    assert float(along_first) == pytest.approx(0.8)
    assert float(along_second) == pytest.approx(0.3)
    assert float(compute_step_length(first, 0.8 * first, 0.0)) == pytest.approx(0.8)


def test_the_step_length_is_zero_for_a_zero_or_opposite_direction() -> None:
    zero, target = torch.zeros_like(waves(0)), waves(1)
    assert float(compute_step_length(zero, target, 0.01)) == 0
    assert float(compute_step_length(-target, target, 0.01)) == 0
    assert all(bool(length.isfinite()) for length in compute_step_lengths(zero, zero, target, 0.01))


@pytest.mark.parametrize("batches", ["compact", "random"])
@pytest.mark.parametrize("update_probe", [False, True])
@pytest.mark.parametrize("momentum", [None, 0.0, 0.9])
def test_a_scan_with_little_overlap_does_not_diverge(
    momentum: float | None, update_probe: bool, batches: str, scan_factory: Callable[..., Scan]
) -> None:
    dense = scan_factory(n=100, size=24, seed=6)
    sparse = dense.select(np.flatnonzero((np.arange(100) // 10 % 3 == 0) & (np.arange(100) % 3 == 0)))
    run = run_engine(sparse, epochs=30, batch_size=4, batches=batches, momentum=momentum, update_probe=update_probe)
    assert np.isfinite(run.history.r).all()
    assert run.history.r[-1] < 0.5 * run.history.r[0]
    assert max(run.history.r[1:]) < (2 if momentum else 1.1) * run.history.r[0]
    assert run.engine.state.object.abs().max() < 5


def test_a_noisy_start_improves_from_the_first_epoch(scan_factory: Callable[..., Scan]) -> None:
    scan = scan_factory(n=49, size=24, seed=2, photons=1e6)
    assert scan.truth is not None
    measurement, state = make_problem(scan)
    (top, left), (rows, columns) = state.canvas
    truth = torch.from_numpy(scan.truth[top : top + rows, left : left + columns])
    fields = from_object(torch.from_numpy(scan.truth), state.probe, torch.from_numpy(scan.positions))
    truth = truth * (measurement.photons / float(fields.intensity.sum())) ** 0.5
    noise = torch.from_numpy(np.random.default_rng(1).normal(size=(2, *truth.shape)).astype(np.float32))
    state.object = truth + 0.05 * torch.complex(noise[0], noise[1])
    engine = LsqmlEngine(measurement, state, LSQML(epochs=6, batch_size=8))
    illuminated = engine.model.make_illumination_map().sum_positions()
    illuminated = illuminated > 0.3 * illuminated.amax()
    distances = [float((state.object - truth)[illuminated].abs().square().mean())]

    class Watch(SilentObserver):
        def advance(self, steps: int = 1, **figures: float) -> None:
            distances.append(float((state.object - truth)[illuminated].abs().square().mean()))

    EngineRunner(engine, 0).run(Watch())
    assert all(later < distances[0] for later in distances[1:])
    assert distances[-1] < 0.3 * distances[0]


def test_momentum_is_not_applied_where_a_batch_has_no_illumination(scan_factory: Callable[..., Scan]) -> None:
    measurement, state = make_problem(scan_factory(n=100, size=16, seed=5))
    engine = LsqmlEngine(measurement, state, LSQML(momentum=0.8, batch_size=4))
    engine.begin_epoch(0, 0.0)
    engine.step(torch.tensor([0, 1]), 0.0)
    before, velocity = state.object, engine.velocity
    engine.step(torch.tensor([98, 99]), 0.0)
    first_corner = (slice(0, 18), slice(0, 18))  # patches of the first patterns; the last patterns are 30 pixels away
    assert velocity[first_corner].abs().max() > 0
    torch.testing.assert_close(state.object[first_corner], before[first_corner], atol=1e-6, rtol=0)
    torch.testing.assert_close(engine.velocity[first_corner], velocity[first_corner], atol=1e-6, rtol=0)


def test_momentum_is_derived_from_the_overlap(scan_factory: Callable[..., Scan]) -> None:
    dense = scan_factory(n=100, size=24, seed=6)
    momenta = []
    for scan in (dense, dense.select(np.arange(0, 100, 4)), dense.select(np.array([0, 99]))):
        momenta.append(LsqmlEngine(*make_problem(scan), LSQML(batch_size=4)).momentum)
    assert 0.9 >= momenta[0] > momenta[1] > momenta[2]
    assert momenta[2] < 0.1


def test_a_rough_probe_is_recovered(scan_factory: Callable[..., Scan]) -> None:
    scan = scan_factory(n=64, size=24, seed=7, photons=1e5)
    rough = replace(scan, probe=(np.abs(scan.probe) + 0j).astype(np.complex64))
    fixed, update_probe = (run_engine(rough, epochs=40, update_probe=update_probe) for update_probe in (False, True))
    assert update_probe.history.r[-1] < 0.1 * fixed.history.r[-1]
