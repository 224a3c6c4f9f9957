"""What difference map and RAAR promise beside what every engine does."""

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


def engine_of(
    scan: Scan, kind: type[ProjectionEngine], relaxation: float, batch: int = 8, learn: bool = False
) -> ProjectionEngine:
    measurement = make_measurement(scan, 1.0, make_noise_model("amplitude"), torch.device("cpu"))
    estimate = make_vacuum_state(torch.from_numpy(scan.positions.copy()), scale_probe_to_photons(scan, 1.0))
    return kind(
        measurement,
        estimate,
        ProjectionOptions(relaxation=relaxation, update_probe=learn, epochs=30, batch_size=batch),
    )


def one_epoch(engine: ProjectionEngine, progress: float) -> None:
    engine.begin_epoch(0, progress)
    for part in torch.arange(len(engine.measurement)).split(8):
        engine.step(part, progress)


def overlap_of(engine: ProjectionEngine, start: torch.Tensor) -> torch.Tensor:
    """The object nearest to the waves of ``engine``, pulled by its floor towards ``start``."""
    optics, everything = engine.model, torch.arange(len(engine.measurement))
    waves, probes = torch.fft.ifft2(engine.state_dict()["waves"], norm="ortho"), optics.probes(everything)
    light = optics.place(probes.abs().square().sum(1), everything)
    floor = engine.options.divisor_floor * light.amax()
    return (optics.place((probes.conj() * waves).sum(1), everything) + floor * start) / (light + floor)


@pytest.mark.parametrize("modes", [1, 2])
@pytest.mark.parametrize(("kind", "relaxation"), KINDS)
def test_the_object_is_always_the_nearest_to_all_waves(
    kind: type[ProjectionEngine], relaxation: float, modes: int, scan_factory: Callable[..., Scan]
) -> None:
    engine = engine_of(scan_factory(n=30, size=17, modes=modes), kind, relaxation)
    start = engine.state.object
    for progress in (0.0, 0.5, 0.95):
        one_epoch(engine, progress)
        torch.testing.assert_close(engine.state.object, overlap_of(engine, start), atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize(("kind", "relaxation"), KINDS)
def test_waves_object_and_a_learned_probe_agree_after_every_epoch(
    kind: type[ProjectionEngine], relaxation: float, scan_factory: Callable[..., Scan]
) -> None:
    engine = engine_of(scan_factory(n=30, size=17, modes=2), kind, relaxation, learn=True)
    engine.state.probe = engine.state.probe.abs() + 0j  # rough, so that it has much to learn
    engine.reset()
    for epoch, progress in enumerate((0.0, 0.5, 0.92, 0.95)):
        one_epoch(engine, progress)
        engine.end_epoch(epoch, progress + 0.01)
        found = overlap_of(engine, engine.state.object)
        light = engine.model.make_illumination_map().sum_positions()
        lit = light > 0.1 * light.amax()
        torch.testing.assert_close(engine.state.object[lit], found[lit], atol=2e-3, rtol=2e-3)


@pytest.mark.parametrize("progress", [0.0, 0.5, 0.95])
@pytest.mark.parametrize(("kind", "relaxation"), KINDS)
def test_the_truth_is_a_fixed_point_of_every_phase(
    kind: type[ProjectionEngine], relaxation: float, progress: float, scan_factory: Callable[..., Scan]
) -> None:
    scan = scan_factory(n=25, size=24, seed=3, photons=0)
    assert scan.truth is not None
    engine = engine_of(scan, kind, relaxation)
    estimate = engine.state
    light = from_object(torch.from_numpy(scan.truth), estimate.probe, torch.from_numpy(scan.positions)).intensity
    (top, left), (rows, columns) = estimate.canvas
    scale = (engine.measurement.photons / float(light.sum())) ** 0.5
    truth = scale * torch.from_numpy(scan.truth[top : top + rows, left : left + columns])
    estimate.object = truth
    engine.reset()  # the waves follow the object
    for _ in range(3):
        one_epoch(engine, progress)
    assert float((estimate.object - truth).norm() / truth.norm()) < 1e-4


@pytest.mark.parametrize(("kind", "relaxation"), KINDS)
def test_first_steps_are_those_of_the_papers(kind: type[ProjectionEngine], relaxation: float, scan: Scan) -> None:
    engine = engine_of(scan, kind, relaxation)
    waves, overlap, corrected = (torch.randn(3, 1, 5, 5, dtype=torch.complex64) for _ in range(3))
    step = corrected - overlap
    expected = {
        DifferenceMapEngine: waves + relaxation * step,
        RaarEngine: relaxation * (waves + step) + (1 - relaxation) * overlap,
    }[kind]
    torch.testing.assert_close(engine.compute_next_waves(waves, overlap, corrected, 0.0), expected)


@pytest.mark.parametrize("learn", [False, True])
@pytest.mark.parametrize(("kind", "relaxation"), KINDS)
def test_what_the_loop_keeps_is_never_written_into(
    kind: type[ProjectionEngine], relaxation: float, learn: bool, scan: Scan
) -> None:
    engine = engine_of(scan, kind, relaxation, learn=learn)
    kept = engine.state.tensors() | engine.state_dict()
    copies = {name: tensor.clone() for name, tensor in kept.items()}
    one_epoch(engine, 0.0)
    engine.end_epoch(0, 0.1)
    one_epoch(engine, 0.95)
    engine.end_epoch(1, 1.0)
    for name, tensor in kept.items():
        torch.testing.assert_close(tensor, copies[name], atol=0, rtol=0)


@pytest.mark.parametrize("learn", [False, True])
@pytest.mark.parametrize(("kind", "relaxation"), KINDS)
def test_it_stays_finite_where_patterns_hardly_overlap(
    kind: type[ProjectionEngine], relaxation: float, learn: bool, scan_factory: Callable[..., Scan]
) -> None:
    dense = scan_factory(n=100, size=24, seed=6)
    sparse = dense.select(np.flatnonzero((np.arange(100) // 10 % 3 == 0) & (np.arange(100) % 3 == 0)))
    engine = engine_of(sparse, kind, relaxation, 4, learn)
    run = EngineRunner(engine, seed=0)
    assert run.run(SilentObserver())
    assert np.isfinite(run.history.r).all()
    assert run.history.r[-1] < 0.5 * run.history.r[0]
    light = engine.model.make_illumination_map().sum_positions()
    assert torch.view_as_real(engine.state.object).isfinite().all()
    assert engine.state.object[light > 0.05 * light.amax()].abs().max() < 5
