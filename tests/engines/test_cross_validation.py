"""Pixels that no engine sees: they change nothing, they tell a fit from an over-fit, and a stage may end by them."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers import finish_pipeline
from numpy.typing import NDArray

from ptycho_torch.config.engines import ENGINES, ITERATIVE_ENGINES, EngineOptions
from ptycho_torch.core.errors import ConfigError
from ptycho_torch.core.observer import SilentObserver
from ptycho_torch.data.holdout import draw_holdout_pixels, mask_pixels
from ptycho_torch.data.scan import Scan
from ptycho_torch.engines.cross_validation import HoldoutPixels
from ptycho_torch.engines.pipeline import PipelineRun
from ptycho_torch.engines.state import make_vacuum_state
from ptycho_torch.evaluation.fourier_error import compute_fourier_error, predict_photons
from ptycho_torch.evaluation.metrics import compare_with_truth
from ptycho_torch.physics.batch import scale_probe_to_photons

NAMES = sorted(ITERATIVE_ENGINES)
CPU = torch.device("cpu")
OVERFITTING = {"engine": "gradient", "optimizer": "lbfgs"}
"""Quasi-Newton steps, which reach the noise in a dozen epochs."""


def stage(engine: str = "pie", **settings: Any) -> EngineOptions:
    return ENGINES[engine](**({"epochs": 5, "batch_size": 8} | settings))


def pixels_of(scan: Scan, share: float = 0.05) -> NDArray[np.bool_]:
    return draw_holdout_pixels(scan, share, np.random.default_rng(0))


def chain_of(scan: Scan, *stages: EngineOptions, held: NDArray[np.bool_] | None = None) -> PipelineRun:
    seen = scan if held is None else mask_pixels(scan, held)
    start = make_vacuum_state(torch.from_numpy(scan.positions.copy()), scale_probe_to_photons(seen, 1.0))
    return PipelineRun(scan, 1.0, list(stages), start, held_out=held)


def nrmse(chain: PipelineRun) -> float:
    assert chain.scan.truth is not None
    return compare_with_truth(chain.make_reconstruction(), chain.scan.truth).nrmse


class Errors(SilentObserver):
    """The true error after each epoch, and ctrl-C in a given one."""

    def __init__(self, chain: PipelineRun, interrupt: int | None = None) -> None:
        self.chain, self.interrupt = chain, interrupt
        self.errors: list[float] = []

    def advance(self, steps: int = 1, **figures: float) -> None:
        self.errors.append(nrmse(self.chain))
        if len(self.errors) == self.interrupt:
            raise KeyboardInterrupt


@pytest.fixture(scope="module")
def dim(scan_factory: Callable[..., Scan]) -> Scan:
    """49 patterns of 24 × 24 pixels with 1,000 photons each."""
    return scan_factory(n=49, size=24, seed=2, photons=1e3)


@pytest.mark.parametrize("engine", NAMES)
def test_held_out_pixels_have_no_influence(engine: str, scan: Scan) -> None:
    held = pixels_of(scan)
    chosen = stage(engine=engine, update_probe=True, update_positions=True, position_start=1, update_background=True)
    chains = [
        finish_pipeline(
            chain_of(replace(scan, amplitudes=np.where(held, np.float32(rubbish), scan.amplitudes)), chosen, held=held)
        )
        for rubbish in (0, 50)
    ]
    results = [chain.make_reconstruction() for chain in chains]
    for name in ("object", "probe", "positions", "background"):
        assert getattr(results[0], name).tobytes() == getattr(results[1], name).tobytes(), name
    first, second = (result.history for result in results)
    assert first["r"] == second["r"]
    assert first["held_out_floor"] == second["held_out_floor"]
    assert max(first["held_out_deviance"]) < min(second["held_out_deviance"])


@pytest.mark.parametrize("bright", [False, True])
def test_at_the_truth_the_deviance_is_that_of_counting(scan_factory: Callable[..., Scan], bright: bool) -> None:
    scan = scan_factory(n=42, size=23, seed=5, photons=1e7 if bright else 3e3, modes=2)
    chain = chain_of(scan)
    (top, left), (rows, columns) = chain.state.canvas
    assert scan.truth is not None
    chain.state.object = torch.from_numpy(scan.truth[top : top + rows, left : left + columns].copy())
    modelled = predict_photons(chain.make_reconstruction(), scan.positions).sum(dtype=torch.float64)
    chain.state.probe = chain.state.probe * float(np.square(scan.amplitudes).sum() / modelled) ** 0.5
    held = pixels_of(scan, 0.5)
    judge = HoldoutPixels(scan, held & (scan.amplitudes > 30) if bright else held, 1.0, CPU)
    found = judge.score(chain.state)
    # Half of the square of a normal number has a variance of ½.
    assert found.deviance == pytest.approx(found.noise_floor, abs=4 * (0.5 / len(judge)) ** 0.5)
    assert found.noise_floor == pytest.approx(0.5, abs=1e-3) if bright else 0.05 < found.noise_floor < 0.4


def test_an_overfit_shows_and_the_stop_finds_about_the_best_epoch(dim: Scan) -> None:
    held = pixels_of(dim)
    whole = chain_of(dim, stage(**OVERFITTING, epochs=30), held=held)
    errors = Errors(whole)
    deviance = finish_pipeline(whole, errors).history["held_out_deviance"]
    lowest = int(np.argmin(deviance))
    assert 0 < lowest < 20
    assert deviance[0] > deviance[lowest] < 0.97 * deviance[-1]
    assert whole.history["r"][-1] == min(whole.history["r"])  # what the engine sees still looks better
    stopped = finish_pipeline(chain_of(dim, stage(**OVERFITTING, epochs=30, patience=4), held=held))
    assert len(stopped.history["r"]) == lowest + 1 + 4
    assert stopped.history["held_out_deviance"] == deviance[: lowest + 5]
    assert nrmse(stopped) == errors.errors[lowest]
    assert nrmse(stopped) < 1.1 * min(errors.errors)
    assert nrmse(stopped) < 0.8 * nrmse(whole)


@pytest.mark.parametrize("engine", NAMES)
def test_with_patience_the_best_epoch_is_what_is_left(engine: str, dim: Scan) -> None:
    held = pixels_of(dim)
    chain = finish_pipeline(chain_of(dim, stage(engine=engine, epochs=8, update_probe=True, patience=2), held=held))
    deviance = chain.history["held_out_deviance"]
    assert chain.compute_holdout_scores()["held_out_deviance"] == min(deviance)
    assert len(deviance) in (8, int(np.argmin(deviance)) + 3)


@pytest.mark.parametrize("interrupt", [2, 4])
@pytest.mark.parametrize("engine", NAMES)
def test_a_run_that_stops_goes_on_exactly_from_its_checkpoint(
    engine: str, interrupt: int, dim: Scan, tmp_path: Path
) -> None:
    chosen = stage(engine=engine, epochs=10, patience=3, **({"optimizer": "lbfgs"} if engine == "gradient" else {}))
    held = pixels_of(dim)
    whole, begun, resumed = (chain_of(dim, chosen, stage(patience=1), held=held) for _ in range(3))
    finish_pipeline(whole)
    assert not begun.run_stage(Errors(begun, interrupt))
    begun.save(tmp_path / "state.safetensors", {})
    resumed.load(tmp_path / "state.safetensors", {})
    finish_pipeline(resumed)
    assert resumed.make_reconstruction().object.tobytes() == whole.make_reconstruction().object.tobytes()
    assert resumed.make_reconstruction().history == whole.make_reconstruction().history


def test_a_checkpoint_of_the_very_last_epoch_does_not_go_on(dim: Scan, tmp_path: Path) -> None:
    held = pixels_of(dim)
    chosen = stage(**OVERFITTING, epochs=30, patience=2)
    whole, resumed = (chain_of(dim, chosen, held=held) for _ in range(2))
    assert whole.run_stage(SilentObserver(), lambda: whole.save(tmp_path / "state.safetensors", {}))
    resumed.load(tmp_path / "state.safetensors", {})
    finish_pipeline(resumed)
    assert resumed.make_reconstruction().history == whole.make_reconstruction().history
    assert resumed.make_reconstruction().object.tobytes() == whole.make_reconstruction().object.tobytes()


def test_a_chain_is_judged_by_the_same_pixels_throughout(dim: Scan) -> None:
    stages = stage(epochs=4), stage(engine="lsqml", epochs=3), stage(**OVERFITTING, epochs=2)
    history = finish_pipeline(chain_of(dim, *stages, held=pixels_of(dim))).make_reconstruction().history
    assert history["stage"] == [1] * 4 + [2] * 3 + [3] * 2
    assert {len(figures) for figures in history.values()} == {9}
    assert history["held_out_deviance"][4] < history["held_out_deviance"][0]


@pytest.mark.parametrize(("patterns", "tolerance"), [(25, 1e-6), (100, 0.03)])
def test_the_history_holds_the_floor(scan_factory: Callable[..., Scan], patterns: int, tolerance: float) -> None:
    scan = scan_factory(n=patterns, size=23, seed=1)
    scan = replace(scan, mask=np.random.default_rng(0).uniform(size=scan.amplitudes.shape) > 0.1)
    result = finish_pipeline(chain_of(scan, stage(epochs=12), stage(epochs=2, update_probe=True))).make_reconstruction()
    exact = compute_fourier_error(result, scan, photons_per_unit=1.0).r_floor
    assert result.history["r_floor"][-1] == pytest.approx(exact, rel=tolerance)
    assert len(set(result.history["r_floor"])) == 2
    assert len(result.history["r_floor"]) == 14
    assert "held_out_deviance" not in result.history


@pytest.mark.parametrize("checked", [False, True])
def test_patience_without_held_out_pixels_is_refused(dim: Scan, checked: bool) -> None:
    chain = chain_of(dim, stage(patience=2))
    with pytest.raises(ConfigError, match="`holdout`"):
        chain.check() if checked else chain.run_stage(SilentObserver())
