"""What is known of the object beforehand holds for every engine: a support, and a largest amplitude."""

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
from ptycho_torch.engines.pipeline import PipelineRun
from ptycho_torch.engines.state import ReconstructionState, make_vacuum_state
from ptycho_torch.physics.batch import scale_probe_to_photons
from ptycho_torch.simulation.scan import simulate_measurement

NAMES = sorted(ITERATIVE_ENGINES)


@pytest.fixture(scope="module")
def island(scan_factory: Callable[..., Scan]) -> tuple[Scan, NDArray[np.bool_]]:
    """A scan of an object within an oblong, off the middle, with vacuum about it; few photons."""
    scan = scan_factory(n=36, size=24, seed=8)
    assert scan.truth is not None
    inside = np.zeros(scan.truth.shape, bool)
    inside[19:29, 15:34] = True
    obj = np.where(inside, scan.truth * 0.8, 1)
    made = simulate_measurement(obj, scan.probe.astype(complex), scan.positions, 3e3, np.random.default_rng(0))
    return made, inside


def write(path: Path, support: NDArray[Any], **further: Any) -> Path:
    np.savez(path, support=support, **further)
    return path


def chain_of(scan: Scan, engine: str = "pie", **settings: Any) -> PipelineRun:
    start = make_vacuum_state(
        torch.from_numpy(scan.positions.copy()), scale_probe_to_photons(scan, scan.photons_per_unit or 1.0)
    )
    return PipelineRun(
        scan, scan.photons_per_unit or 1.0, [ENGINES[engine](**({"epochs": 12, "batch_size": 6} | settings))], start
    )


def reconstructed(scan: Scan, **settings: Any) -> Reconstruction:
    chain = chain_of(scan, **settings)
    assert chain.run_stage(SilentObserver())
    return chain.make_reconstruction()


def on_canvas(array: NDArray[Any], result: Reconstruction) -> NDArray[Any]:
    """``array`` at origin (0, 0) where the result has it."""
    top, left = result.origin_yx
    return array[top : top + result.object.shape[0], left : left + result.object.shape[1]]


def error(result: Reconstruction, truth: NDArray[Any]) -> float:
    true = on_canvas(truth, result)
    rec = result.object[: true.shape[0], : true.shape[1]]
    weight = result.coverage[: true.shape[0], : true.shape[1]]
    weight = weight > 0.1 * weight.max()
    rec, true = rec[weight], true[weight]
    return float(np.linalg.norm(rec * (np.vdot(rec, true) / np.vdot(rec, rec)) - true))


@pytest.mark.parametrize("learned", [False, True])
@pytest.mark.parametrize("engine", NAMES)
def test_outside_a_support_is_one_vacuum(
    engine: str, learned: bool, island: tuple[Scan, NDArray[np.bool_]], tmp_path: Path
) -> None:
    scan, inside = island
    assert scan.truth is not None
    file = write(tmp_path / "support.npz", inside)
    result = reconstructed(scan, engine=engine, support=file, update_probe=learned)
    mask = on_canvas(inside, result)
    rec = result.object[: mask.shape[0], : mask.shape[1]]
    assert np.abs(rec[~mask] - rec[~mask].mean()).max() < 1e-5
    assert rec[mask].std() > 0.05
    if not learned:
        assert error(result, scan.truth) < 0.8 * error(reconstructed(scan, engine=engine), scan.truth)
        assert abs(rec[~mask].mean()) > np.abs(rec[mask]).mean()  # the vacuum's level is found, not given


@pytest.mark.parametrize("optimizer", ["sgd", "lbfgs"])
def test_every_optimiser_is_held(optimizer: str, island: tuple[Scan, NDArray[np.bool_]], tmp_path: Path) -> None:
    scan, inside = island
    file = write(tmp_path / "support.npz", inside)
    result = reconstructed(scan, engine="gradient", optimizer=optimizer, support=file, epochs=20)
    assert result.history["r"][-1] < result.history["r"][0] * 0.7
    mask = on_canvas(inside, result)
    assert np.ptp(result.object[: mask.shape[0], : mask.shape[1]][~mask].real) < 1e-5


@pytest.mark.parametrize(
    ("engine", "momentum"), [("pie", "velocity"), ("lsqml", "velocity"), ("gradient", "object.exp_avg")]
)
def test_a_momentum_does_not_leave_the_support(
    engine: str, momentum: str, island: tuple[Scan, NDArray[np.bool_]], tmp_path: Path
) -> None:
    scan, inside = island
    chain = chain_of(scan, engine=engine, support=write(tmp_path / "s.npz", inside), epochs=3)
    chain.prepare_stage()
    assert chain.runner is not None
    chain.runner.run(SilentObserver())
    mask = on_canvas(inside, chain.make_reconstruction())
    found = chain.runner.engine.state_dict()[momentum].numpy()[: mask.shape[0], : mask.shape[1]]
    assert np.abs(found[~mask] - found[~mask].mean()).max() < 1e-5 * np.abs(found).max()
    assert found[mask].std() > 1e-3 * np.abs(found).max()


@pytest.mark.parametrize("engine", ["dm", "raar"])
def test_the_waves_take_part(engine: str, island: tuple[Scan, NDArray[np.bool_]], tmp_path: Path) -> None:
    scan, inside = island
    chain = chain_of(scan, engine=engine, support=write(tmp_path / "s.npz", inside), epochs=4)
    chain.prepare_stage()
    assert chain.runner is not None
    chain.runner.run(SilentObserver())
    projections = chain.runner.engine
    assert isinstance(projections, ProjectionEngine)
    before = chain.make_reconstruction()
    with torch.no_grad():
        projections.solve_object()
    lit = before.coverage > 0.01 * before.coverage.max()
    assert (
        np.abs(chain.make_reconstruction().object - before.object)[lit].max()
        < 0.05 * np.abs(before.object - 1)[lit].max()
    )


@pytest.mark.parametrize("engine", NAMES)
def test_no_amplitude_is_beyond_the_largest(engine: str, scan: Scan) -> None:
    free = reconstructed(scan, engine=engine)
    bound = float(np.median(np.abs(free.object)))
    held = reconstructed(scan, engine=engine, max_amplitude=bound)
    assert np.abs(held.object).max() <= bound * (1 + 1e-6)
    assert np.angle(held.object).std() > 0.05


@pytest.mark.parametrize("engine", ["pie", "rpie", "dm", "gradient"])
def test_a_run_under_a_support_goes_on_exactly(
    engine: str, island: tuple[Scan, NDArray[np.bool_]], tmp_path: Path
) -> None:
    scan, inside = island
    settings = {"engine": engine, "support": write(tmp_path / "s.npz", inside), "epochs": 5, "update_probe": True}

    class Interrupt(SilentObserver):
        def __init__(self) -> None:
            self.epochs = 0

        def advance(self, steps: int = 1, **figures: float) -> None:
            self.epochs += 1
            if self.epochs == 3:
                raise KeyboardInterrupt

    whole, begun, resumed = (chain_of(scan, **settings) for _ in range(3))
    whole.run_stage(SilentObserver())
    assert not begun.run_stage(Interrupt())
    begun.save(tmp_path / "state.safetensors", {})
    resumed.load(tmp_path / "state.safetensors", {})
    resumed.run_stage(SilentObserver())
    assert resumed.make_reconstruction().object.tobytes() == whole.make_reconstruction().object.tobytes()


@pytest.fixture
def estimate() -> ReconstructionState:
    """A canvas of 12 × 14 pixels with its [0, 0] pixel at (-5, -4)."""
    generator = torch.Generator().manual_seed(0)
    positions = torch.tensor([[0.0, 1.0], [3.0, 6.0]], dtype=torch.float64)
    found = make_vacuum_state(positions, torch.ones(1, 5, 5, dtype=torch.complex64), 3)
    found.object = torch.randn(found.canvas.shape, dtype=torch.complex64, generator=generator)
    return found


def test_holding_twice_is_holding_once_and_a_momentum_follows(estimate: ReconstructionState) -> None:
    support = (torch.rand(estimate.canvas.shape, generator=torch.Generator().manual_seed(1)) > 0.5).float()
    constraint = Constraint(support, None)
    before = estimate.object
    change = constraint.apply(estimate)
    once = estimate.object
    torch.testing.assert_close(change(before), once)
    constraint.apply(estimate)
    torch.testing.assert_close(estimate.object, once)
    torch.testing.assert_close(once[support > 0], before[support > 0])


def test_a_clipped_pixel_has_no_momentum(estimate: ReconstructionState) -> None:
    before = estimate.object
    momentum = torch.ones_like(before)
    kept = Constraint(None, 1.0).apply(estimate)(momentum)
    assert torch.equal(kept == 0, before.abs() > 1)
    torch.testing.assert_close(estimate.object.angle(), before.angle())


def test_a_support_lies_where_its_origin_says(estimate: ReconstructionState, tmp_path: Path) -> None:
    top, left = estimate.canvas.origin
    file = write(tmp_path / "s.npz", np.full((2, 3), 0.5), origin_yx=np.array([top + 4, left + 1]))
    found = read_support(file, estimate)
    assert found.shape == estimate.canvas.shape
    assert torch.equal(found.nonzero().amin(0), torch.tensor([4, 1]))
    assert float(found.sum()) == 3.0
    beyond = write(tmp_path / "b.npz", np.ones((100, 100), bool), origin_yx=np.array([top - 7, left - 50]))
    assert read_support(beyond, estimate).min() == 1


@pytest.mark.parametrize(
    ("arrays", "said"),
    [
        ({"mask": np.ones((4, 4))}, "found none"),
        ({"support": np.ones((4, 4, 1))}, "two axes"),
        ({"support": np.full((4, 4), 2.0)}, "0 to 1"),
        ({"support": np.full((4, 4), np.nan)}, "0 to 1"),
        ({"support": np.ones((4, 4), complex)}, "complex"),
        ({"support": np.ones((4, 4)), "origin_yx": np.array([500, 0])}, "no pixel"),
        ({"support": np.ones((4, 4)), "origin_yx": np.array([0.5, 0])}, "whole numbers"),
    ],
)
def test_what_is_no_support_is_refused(
    arrays: dict[str, Any], said: str, estimate: ReconstructionState, tmp_path: Path
) -> None:
    np.savez(tmp_path / "s.npz", **arrays)
    with pytest.raises(DataError, match=said):
        read_support(tmp_path / "s.npz", estimate)
