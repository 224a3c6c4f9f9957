"""Every engine enforces a support and a largest amplitude of the object."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from ptycho_torch.config.engines import ENGINES, ITERATIVE_ENGINES
from ptycho_torch.core.errors import DataError
from ptycho_torch.core.observer import SilentObserver
from ptycho_torch.data.reconstruction import Reconstruction
from ptycho_torch.data.scan import Scan
from ptycho_torch.engines.constraints import Constraint, read_support
from ptycho_torch.engines.difference_map import ProjectionEngine
from ptycho_torch.engines.pipeline_run import PipelineRun
from ptycho_torch.engines.state import ReconstructionState, make_vacuum_state
from ptycho_torch.physics.batch import scale_probe_to_photons
from ptycho_torch.simulation.scan import simulate_measurement

NAMES = sorted(ITERATIVE_ENGINES)


@pytest.fixture(scope="module")
def island(scan_factory: Callable[..., Scan]) -> tuple[Scan, NDArray[np.bool_]]:
    """A scan with few photons of a rectangular object, off center and surrounded by vacuum, and the support."""
    scan = scan_factory(n=36, size=24, seed=8)
    assert scan.truth is not None
    inside = np.zeros(scan.truth.shape, bool)
    inside[19:29, 15:34] = True
    obj = np.where(inside, scan.truth * 0.8, 1)
    measured = simulate_measurement(obj, scan.probe.astype(complex), scan.positions, 3e3, np.random.default_rng(0))
    return measured, inside


def save_support(path: Path, support: NDArray[Any], **further: Any) -> Path:
    np.savez(path, support=support, **further)
    return path


def make_run(scan: Scan, engine: str = "pie", **settings: Any) -> PipelineRun:
    start = make_vacuum_state(
        torch.from_numpy(scan.positions.copy()), scale_probe_to_photons(scan, scan.photons_per_unit or 1.0)
    )
    return PipelineRun(
        scan, scan.photons_per_unit or 1.0, [ENGINES[engine](**({"epochs": 12, "batch_size": 6} | settings))], start
    )


def reconstruct(scan: Scan, **settings: Any) -> Reconstruction:
    run = make_run(scan, **settings)
    assert run.run_stage(SilentObserver())
    return run.make_reconstruction()


def crop_to_canvas(array: NDArray[Any], result: Reconstruction) -> NDArray[Any]:
    """Return the part of ``array``, whose origin is (0, 0), on the canvas of ``result``."""
    top, left = result.origin_yx
    return array[top : top + result.object.shape[0], left : left + result.object.shape[1]]


def compute_error(result: Reconstruction, truth: NDArray[Any]) -> float:
    expected = crop_to_canvas(truth, result)
    rec = result.object[: expected.shape[0], : expected.shape[1]]
    weight = result.coverage[: expected.shape[0], : expected.shape[1]]
    weight = weight > 0.1 * weight.max()
    rec, expected = rec[weight], expected[weight]
    return float(np.linalg.norm(rec * (np.vdot(rec, expected) / np.vdot(rec, rec)) - expected))


@pytest.mark.parametrize("update_probe", [False, True])
@pytest.mark.parametrize("engine", NAMES)
def test_the_object_outside_a_support_is_one_value(
    engine: str, update_probe: bool, island: tuple[Scan, NDArray[np.bool_]], tmp_path: Path
) -> None:
    scan, inside = island
    assert scan.truth is not None
    file = save_support(tmp_path / "support.npz", inside)
    result = reconstruct(scan, engine=engine, support=file, update_probe=update_probe)
    mask = crop_to_canvas(inside, result)
    rec = result.object[: mask.shape[0], : mask.shape[1]]
    assert np.abs(rec[~mask] - rec[~mask].mean()).max() < 1e-5
    assert rec[mask].std() > 0.05
    if not update_probe:
        assert compute_error(result, scan.truth) < 0.8 * compute_error(reconstruct(scan, engine=engine), scan.truth)
        assert abs(rec[~mask].mean()) > np.abs(rec[mask]).mean()  # the value of the vacuum is fitted


@pytest.mark.parametrize("optimizer", ["sgd", "lbfgs"])
def test_every_optimizer_respects_a_support(
    optimizer: str, island: tuple[Scan, NDArray[np.bool_]], tmp_path: Path
) -> None:
    scan, inside = island
    file = save_support(tmp_path / "support.npz", inside)
    result = reconstruct(scan, engine="gradient", optimizer=optimizer, support=file, epochs=20)
    assert result.history["r"][-1] < result.history["r"][0] * 0.7
    mask = crop_to_canvas(inside, result)
    assert np.ptp(result.object[: mask.shape[0], : mask.shape[1]][~mask].real) < 1e-5


@pytest.mark.parametrize(
    ("engine", "momentum"), [("pie", "velocity"), ("lsqml", "velocity"), ("gradient", "object.exp_avg")]
)
def test_momentum_is_constrained_to_the_support(
    engine: str, momentum: str, island: tuple[Scan, NDArray[np.bool_]], tmp_path: Path
) -> None:
    scan, inside = island
    run = make_run(scan, engine=engine, support=save_support(tmp_path / "s.npz", inside), epochs=3)
    run.prepare_stage()
    assert run.runner is not None
    run.runner.run(SilentObserver())
    mask = crop_to_canvas(inside, run.make_reconstruction())
    values = run.runner.engine.state_dict()[momentum].numpy()[: mask.shape[0], : mask.shape[1]]
    assert np.abs(values[~mask] - values[~mask].mean()).max() < 1e-5 * np.abs(values).max()
    assert values[mask].std() > 1e-3 * np.abs(values).max()


@pytest.mark.parametrize("engine", ["dm", "raar"])
def test_stored_waves_follow_the_constraint(
    engine: str, island: tuple[Scan, NDArray[np.bool_]], tmp_path: Path
) -> None:
    scan, inside = island
    run = make_run(scan, engine=engine, support=save_support(tmp_path / "s.npz", inside), epochs=4)
    run.prepare_stage()
    assert run.runner is not None
    run.runner.run(SilentObserver())
    projections = run.runner.engine
    assert isinstance(projections, ProjectionEngine)
    before = run.make_reconstruction()
    with torch.no_grad():
        projections.solve_object()
    illuminated = before.coverage > 0.01 * before.coverage.max()
    assert (
        np.abs(run.make_reconstruction().object - before.object)[illuminated].max()
        < 0.05 * np.abs(before.object - 1)[illuminated].max()
    )


@pytest.mark.parametrize("engine", NAMES)
def test_no_amplitude_exceeds_the_maximum(engine: str, scan: Scan) -> None:
    free = reconstruct(scan, engine=engine)
    bound = float(np.median(np.abs(free.object)))
    limited = reconstruct(scan, engine=engine, max_amplitude=bound)
    assert np.abs(limited.object).max() <= bound * (1 + 1e-6)
    assert np.angle(limited.object).std() > 0.05


@pytest.mark.parametrize("engine", ["pie", "rpie", "dm", "gradient"])
def test_a_resumed_run_with_a_support_equals_an_uninterrupted_run(
    engine: str, island: tuple[Scan, NDArray[np.bool_]], tmp_path: Path
) -> None:
    scan, inside = island
    settings = {
        "engine": engine,
        "support": save_support(tmp_path / "s.npz", inside),
        "epochs": 5,
        "update_probe": True,
    }

    class Interrupt(SilentObserver):
        def __init__(self) -> None:
            self.epochs = 0

        def advance(self, steps: int = 1, **figures: float) -> None:
            self.epochs += 1
            if self.epochs == 3:
                raise KeyboardInterrupt

    uninterrupted, interrupted, resumed = (make_run(scan, **settings) for _ in range(3))
    uninterrupted.run_stage(SilentObserver())
    assert not interrupted.run_stage(Interrupt())
    interrupted.save(tmp_path / "state.safetensors", {})
    resumed.load(tmp_path / "state.safetensors", {})
    resumed.run_stage(SilentObserver())
    assert resumed.make_reconstruction().object.tobytes() == uninterrupted.make_reconstruction().object.tobytes()


@pytest.fixture
def state() -> ReconstructionState:
    """A state with a canvas of 14 × 16 pixels whose [0, 0] pixel is at negative object coordinates."""
    generator = torch.Generator().manual_seed(0)
    positions = torch.tensor([[0.0, 1.0], [3.0, 6.0]], dtype=torch.float64)
    state = make_vacuum_state(positions, torch.ones(1, 5, 5, dtype=torch.complex64), 3)
    state.object = torch.randn(state.canvas.shape, dtype=torch.complex64, generator=generator)
    return state


def test_a_support_is_idempotent_and_applies_to_momentum(state: ReconstructionState) -> None:
    support = (torch.rand(state.canvas.shape, generator=torch.Generator().manual_seed(1)) > 0.5).float()
    constraint = Constraint(support, None)
    before = state.object
    change = constraint.apply(state)
    once = state.object
    torch.testing.assert_close(change(before), once)
    constraint.apply(state)
    torch.testing.assert_close(state.object, once)
    torch.testing.assert_close(once[support > 0], before[support > 0])


def test_a_clipped_pixel_loses_its_momentum(state: ReconstructionState) -> None:
    before = state.object
    momentum = torch.ones_like(before)
    constrained = Constraint(None, 1.0).apply(state)(momentum)
    assert torch.equal(constrained == 0, before.abs() > 1)
    torch.testing.assert_close(state.object.angle(), before.angle())


def test_a_support_is_placed_at_its_origin(state: ReconstructionState, tmp_path: Path) -> None:
    top, left = state.canvas.origin
    file = save_support(tmp_path / "s.npz", np.full((2, 3), 0.5), origin_yx=np.array([top + 4, left + 1]))
    support = read_support(file, state)
    assert support.shape == state.canvas.shape
    assert torch.equal(support.nonzero().amin(0), torch.tensor([4, 1]))
    assert float(support.sum()) == 3.0
    covering = save_support(tmp_path / "b.npz", np.ones((100, 100), bool), origin_yx=np.array([top - 7, left - 50]))
    assert read_support(covering, state).min() == 1


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"mask": np.ones((4, 4))}, "found no support"),
        ({"support": np.ones((4, 4, 1))}, "two axes"),
        ({"support": np.full((4, 4), 2.0)}, "0 to 1"),
        ({"support": np.full((4, 4), np.nan)}, "0 to 1"),
        ({"support": np.ones((4, 4), complex)}, "complex"),
        ({"support": np.ones((4, 4)), "origin_yx": np.array([500, 0])}, "no pixel"),
        ({"support": np.ones((4, 4)), "origin_yx": np.array([0.5, 0])}, "whole numbers"),
    ],
)
def test_an_invalid_support_raises(
    arrays: dict[str, Any], message: str, state: ReconstructionState, tmp_path: Path
) -> None:
    np.savez(tmp_path / "s.npz", **arrays)
    with pytest.raises(DataError, match=message):
        read_support(tmp_path / "s.npz", state)
