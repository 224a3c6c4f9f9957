"""Properties of difference map and RAAR that other engines do not have."""

from collections.abc import Callable

import numpy as np
import pytest
import torch

from ptycho_torch.config.engines import ProjectionOptions
from ptycho_torch.core.observer import SilentObserver
from ptycho_torch.data.scan import Scan
from ptycho_torch.engines.difference_map import DifferenceMapEngine, ProjectionEngine, RaarEngine
from ptycho_torch.engines.runner import EngineRunner
from ptycho_torch.engines.state import make_measurement, make_vacuum_state
from ptycho_torch.physics.batch import scale_probe_to_photons
from ptycho_torch.physics.forward import from_object
from ptycho_torch.physics.noise import make_noise_model

KINDS = [(DifferenceMapEngine, 0.8), (RaarEngine, 0.9)]


def make_engine(
    scan: Scan, kind: type[ProjectionEngine], relaxation: float, batch: int = 8, update_probe: bool = False
) -> ProjectionEngine:
    measurement = make_measurement(scan, 1.0, make_noise_model("amplitude"), torch.device("cpu"))
    state = make_vacuum_state(torch.from_numpy(scan.positions.copy()), scale_probe_to_photons(scan, 1.0))
    return kind(
        measurement,
        state,
        ProjectionOptions(relaxation=relaxation, update_probe=update_probe, epochs=30, batch_size=batch),
    )


def run_epoch(engine: ProjectionEngine, progress: float) -> None:
    engine.begin_epoch(0, progress)
    for part in torch.arange(len(engine.measurement)).split(8):
        engine.step(part, progress)


def compute_nearest_object(engine: ProjectionEngine, start: torch.Tensor) -> torch.Tensor:
    """Return the nearest object to the waves of ``engine``, regularized toward ``start``."""
    model, all_patterns = engine.model, torch.arange(len(engine.measurement))
    waves, probes = torch.fft.ifft2(engine.state_dict()["waves"], norm="ortho"), model.probes(all_patterns)
    illumination = model.place(probes.abs().square().sum(1), all_patterns)
    floor = engine.options.divisor_floor * illumination.amax()
    return (model.place((probes.conj() * waves).sum(1), all_patterns) + floor * start) / (illumination + floor)


@pytest.mark.parametrize("modes", [1, 2])
@pytest.mark.parametrize(("kind", "relaxation"), KINDS)
def test_the_object_is_the_nearest_object_to_the_waves_after_every_epoch(
    kind: type[ProjectionEngine], relaxation: float, modes: int, scan_factory: Callable[..., Scan]
) -> None:
    engine = make_engine(scan_factory(n=30, size=17, modes=modes), kind, relaxation)
    start = engine.state.object
    for progress in (0.0, 0.5, 0.95):
        run_epoch(engine, progress)
        torch.testing.assert_close(engine.state.object, compute_nearest_object(engine, start), atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize(("kind", "relaxation"), KINDS)
def test_the_object_is_the_nearest_object_for_an_updated_probe_too(
    kind: type[ProjectionEngine], relaxation: float, scan_factory: Callable[..., Scan]
) -> None:
    engine = make_engine(scan_factory(n=30, size=17, modes=2), kind, relaxation, update_probe=True)
    engine.state.probe = engine.state.probe.abs() + 0j  # far from the true probe
    engine.reset()
    for epoch, progress in enumerate((0.0, 0.5, 0.92, 0.95)):
        run_epoch(engine, progress)
        engine.end_epoch(epoch, progress + 0.01)
        nearest = compute_nearest_object(engine, engine.state.object)
        illumination = engine.model.make_illumination_map().sum_positions()
        illuminated = illumination > 0.1 * illumination.amax()
        torch.testing.assert_close(engine.state.object[illuminated], nearest[illuminated], atol=2e-3, rtol=2e-3)


@pytest.mark.parametrize("progress", [0.0, 0.5, 0.95])
@pytest.mark.parametrize(("kind", "relaxation"), KINDS)
def test_the_truth_is_a_fixed_point_of_every_phase(
    kind: type[ProjectionEngine], relaxation: float, progress: float, scan_factory: Callable[..., Scan]
) -> None:
    scan = scan_factory(n=25, size=24, seed=3, photons=0)
    assert scan.truth is not None
    engine = make_engine(scan, kind, relaxation)
    state = engine.state
    illumination = from_object(torch.from_numpy(scan.truth), state.probe, torch.from_numpy(scan.positions)).intensity
    (top, left), (rows, columns) = state.canvas
    scale = (engine.measurement.photons / float(illumination.sum())) ** 0.5
    truth = scale * torch.from_numpy(scan.truth[top : top + rows, left : left + columns])
    state.object = truth
    engine.reset()  # recompute the waves from the object
    for _ in range(3):
        run_epoch(engine, progress)
    assert float((state.object - truth).norm() / truth.norm()) < 1e-4


@pytest.mark.parametrize(("kind", "relaxation"), KINDS)
def test_an_iteration_follows_the_published_equation(
    kind: type[ProjectionEngine], relaxation: float, scan: Scan
) -> None:
    engine = make_engine(scan, kind, relaxation)
    waves, overlap, corrected = (torch.randn(3, 1, 5, 5, dtype=torch.complex64) for _ in range(3))
    step = corrected - overlap
    expected = {
        DifferenceMapEngine: waves + relaxation * step,
        RaarEngine: relaxation * (waves + step) + (1 - relaxation) * overlap,
    }[kind]
    torch.testing.assert_close(engine.compute_next_waves(waves, overlap, corrected, 0.0), expected)


@pytest.mark.parametrize("update_probe", [False, True])
@pytest.mark.parametrize(("kind", "relaxation"), KINDS)
def test_returned_tensors_are_never_modified(
    kind: type[ProjectionEngine], relaxation: float, update_probe: bool, scan: Scan
) -> None:
    engine = make_engine(scan, kind, relaxation, update_probe=update_probe)
    returned = engine.state.tensors() | engine.state_dict()
    copies = {name: tensor.clone() for name, tensor in returned.items()}
    run_epoch(engine, 0.0)
    engine.end_epoch(0, 0.1)
    run_epoch(engine, 0.95)
    engine.end_epoch(1, 1.0)
    for name, tensor in returned.items():
        torch.testing.assert_close(tensor, copies[name], atol=0, rtol=0)


@pytest.mark.parametrize("update_probe", [False, True])
@pytest.mark.parametrize(("kind", "relaxation"), KINDS)
def test_a_scan_with_little_overlap_stays_finite(
    kind: type[ProjectionEngine], relaxation: float, update_probe: bool, scan_factory: Callable[..., Scan]
) -> None:
    dense = scan_factory(n=100, size=24, seed=6)
    sparse = dense.select(np.flatnonzero((np.arange(100) // 10 % 3 == 0) & (np.arange(100) % 3 == 0)))
    engine = make_engine(sparse, kind, relaxation, 4, update_probe)
    run = EngineRunner(engine, seed=0)
    assert run.run(SilentObserver())
    assert np.isfinite(run.history.r).all()
    assert run.history.r[-1] < 0.5 * run.history.r[0]
    illumination = engine.model.make_illumination_map().sum_positions()
    assert torch.view_as_real(engine.state.object).isfinite().all()
    assert engine.state.object[illumination > 0.05 * illumination.amax()].abs().max() < 5
