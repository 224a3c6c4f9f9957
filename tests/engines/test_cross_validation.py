"""Held-out pixels: they have no effect on a fit, reveal overfitting, and end a stage early."""

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
from ptycho_torch.engines.pipeline_run import PipelineRun
from ptycho_torch.engines.state import make_vacuum_state
from ptycho_torch.evaluation.fourier_error import compute_fourier_error, predict_photons
from ptycho_torch.evaluation.metrics import compare_with_truth
from ptycho_torch.physics.batch import scale_probe_to_photons

NAMES = sorted(ITERATIVE_ENGINES)
CPU = torch.device("cpu")
OVERFITTING = {"engine": "gradient", "optimizer": "lbfgs"}
"""Options of quasi-Newton steps, which fit the noise after a dozen epochs."""


def make_options(engine: str = "pie", **settings: Any) -> EngineOptions:
    return ENGINES[engine](**({"epochs": 5, "batch_size": 8} | settings))


def draw_pixels(scan: Scan, fraction: float = 0.05) -> NDArray[np.bool_]:
    return draw_holdout_pixels(scan, fraction, np.random.default_rng(0))


def make_run(scan: Scan, *stages: EngineOptions, held_out: NDArray[np.bool_] | None = None) -> PipelineRun:
    """Return a run that starts from an object of ones."""
    visible = scan if held_out is None else mask_pixels(scan, held_out)
    start = make_vacuum_state(torch.from_numpy(scan.positions.copy()), scale_probe_to_photons(visible, 1.0))
    return PipelineRun(scan, 1.0, list(stages), start, held_out=held_out)


def compute_nrmse(run: PipelineRun) -> float:
    assert run.scan.truth is not None
    return compare_with_truth(run.make_reconstruction(), run.scan.truth).nrmse


class ErrorRecorder(SilentObserver):
    """Record the true error after each epoch, and raise KeyboardInterrupt after epoch ``interrupt``."""

    def __init__(self, run: PipelineRun, interrupt: int | None = None) -> None:
        self.run, self.interrupt = run, interrupt
        self.errors: list[float] = []

    def advance(self, steps: int = 1, **figures: float) -> None:
        self.errors.append(compute_nrmse(self.run))
        if len(self.errors) == self.interrupt:
            raise KeyboardInterrupt


@pytest.fixture(scope="module")
def low_dose_scan(scan_factory: Callable[..., Scan]) -> Scan:
    """Return 49 patterns of 24 × 24 pixels with 1,000 photons per pattern."""
    return scan_factory(n=49, size=24, seed=2, photons=1e3)


@pytest.mark.parametrize("engine", NAMES)
def test_held_out_pixels_have_no_effect_on_the_fit(engine: str, scan: Scan) -> None:
    held_out = draw_pixels(scan)
    options = make_options(
        engine=engine, update_probe=True, update_positions=True, position_start=1, update_background=True
    )
    runs = [
        finish_pipeline(
            make_run(
                replace(scan, amplitudes=np.where(held_out, np.float32(masked_value), scan.amplitudes)),
                options,
                held_out=held_out,
            )
        )
        for masked_value in (0, 50)
    ]
    results = [run.make_reconstruction() for run in runs]
    for name in ("object", "probe", "positions", "background"):
        assert getattr(results[0], name).tobytes() == getattr(results[1], name).tobytes(), name
    first, second = (result.history for result in results)
    assert first["r"] == second["r"]
    assert first["held_out_floor"] == second["held_out_floor"]
    assert max(first["held_out_deviance"]) < min(second["held_out_deviance"])


@pytest.mark.parametrize("bright", [False, True])
def test_the_deviance_at_the_truth_is_the_noise_floor(scan_factory: Callable[..., Scan], bright: bool) -> None:
    scan = scan_factory(n=42, size=23, seed=5, photons=1e7 if bright else 3e3, modes=2)
    run = make_run(scan)
    (top, left), (rows, columns) = run.state.canvas
    assert scan.truth is not None
    run.state.object = torch.from_numpy(scan.truth[top : top + rows, left : left + columns].copy())
    modeled = predict_photons(run.make_reconstruction(), scan.positions).sum(dtype=torch.float64)
    run.state.probe = run.state.probe * float(np.square(scan.amplitudes).sum() / modeled) ** 0.5
    held_out = draw_pixels(scan, 0.5)
    pixels = HoldoutPixels(scan, held_out & (scan.amplitudes > 30) if bright else held_out, 1.0, CPU)
    score = pixels.score(run.state)
    # Half of the square of a standard normal variable has a variance of ½.
    assert score.deviance == pytest.approx(score.noise_floor, abs=4 * (0.5 / len(pixels)) ** 0.5)
    assert score.noise_floor == pytest.approx(0.5, abs=1e-3) if bright else 0.05 < score.noise_floor < 0.4


def test_held_out_pixels_reveal_overfitting_and_patience_ends_near_the_best_epoch(low_dose_scan: Scan) -> None:
    held_out = draw_pixels(low_dose_scan)
    whole = make_run(low_dose_scan, make_options(**OVERFITTING, epochs=30), held_out=held_out)
    recorder = ErrorRecorder(whole)
    deviance = finish_pipeline(whole, recorder).history["held_out_deviance"]
    lowest = int(np.argmin(deviance))
    assert 0 < lowest < 20
    assert deviance[0] > deviance[lowest] < 0.97 * deviance[-1]
    assert whole.history["r"][-1] == min(whole.history["r"])  # R of the fitted pixels still falls
    ended_early = finish_pipeline(
        make_run(low_dose_scan, make_options(**OVERFITTING, epochs=30, patience=4), held_out=held_out)
    )
    assert len(ended_early.history["r"]) == lowest + 1 + 4
    assert ended_early.history["held_out_deviance"] == deviance[: lowest + 5]
    assert compute_nrmse(ended_early) == recorder.errors[lowest]
    assert compute_nrmse(ended_early) < 1.1 * min(recorder.errors)
    assert compute_nrmse(ended_early) < 0.8 * compute_nrmse(whole)


@pytest.mark.parametrize("engine", NAMES)
def test_patience_restores_the_best_epoch(engine: str, low_dose_scan: Scan) -> None:
    held_out = draw_pixels(low_dose_scan)
    run = finish_pipeline(
        make_run(low_dose_scan, make_options(engine=engine, epochs=8, update_probe=True, patience=2), held_out=held_out)
    )
    deviance = run.history["held_out_deviance"]
    assert run.compute_holdout_scores()["held_out_deviance"] == min(deviance)
    assert len(deviance) in (8, int(np.argmin(deviance)) + 3)


@pytest.mark.parametrize("interrupt", [2, 4])
@pytest.mark.parametrize("engine", NAMES)
def test_a_run_with_patience_resumes_exactly_from_its_checkpoint(
    engine: str, interrupt: int, low_dose_scan: Scan, tmp_path: Path
) -> None:
    options = make_options(
        engine=engine, epochs=10, patience=3, **({"optimizer": "lbfgs"} if engine == "gradient" else {})
    )
    held_out = draw_pixels(low_dose_scan)
    whole, interrupted, resumed = (
        make_run(low_dose_scan, options, make_options(patience=1), held_out=held_out) for _ in range(3)
    )
    finish_pipeline(whole)
    assert not interrupted.run_stage(ErrorRecorder(interrupted, interrupt))
    interrupted.save(tmp_path / "state.safetensors", {})
    resumed.load(tmp_path / "state.safetensors", {})
    finish_pipeline(resumed)
    assert resumed.make_reconstruction().object.tobytes() == whole.make_reconstruction().object.tobytes()
    assert resumed.make_reconstruction().history == whole.make_reconstruction().history


def test_a_checkpoint_of_the_last_epoch_runs_no_further_epoch(low_dose_scan: Scan, tmp_path: Path) -> None:
    held_out = draw_pixels(low_dose_scan)
    options = make_options(**OVERFITTING, epochs=30, patience=2)
    whole, resumed = (make_run(low_dose_scan, options, held_out=held_out) for _ in range(2))
    assert whole.run_stage(SilentObserver(), lambda: whole.save(tmp_path / "state.safetensors", {}))
    resumed.load(tmp_path / "state.safetensors", {})
    finish_pipeline(resumed)
    assert resumed.make_reconstruction().history == whole.make_reconstruction().history
    assert resumed.make_reconstruction().object.tobytes() == whole.make_reconstruction().object.tobytes()


def test_all_stages_are_scored_on_the_same_pixels(low_dose_scan: Scan) -> None:
    stages = make_options(epochs=4), make_options(engine="lsqml", epochs=3), make_options(**OVERFITTING, epochs=2)
    history = (
        finish_pipeline(make_run(low_dose_scan, *stages, held_out=draw_pixels(low_dose_scan)))
        .make_reconstruction()
        .history
    )
    assert history["stage"] == [1] * 4 + [2] * 3 + [3] * 2
    assert {len(figures) for figures in history.values()} == {9}
    assert history["held_out_deviance"][4] < history["held_out_deviance"][0]


@pytest.mark.parametrize(("patterns", "tolerance"), [(25, 1e-6), (100, 0.03)])
def test_the_history_contains_the_noise_floor(
    scan_factory: Callable[..., Scan], patterns: int, tolerance: float
) -> None:
    scan = scan_factory(n=patterns, size=23, seed=1)
    scan = replace(scan, mask=np.random.default_rng(0).uniform(size=scan.amplitudes.shape) > 0.1)
    result = finish_pipeline(
        make_run(scan, make_options(epochs=12), make_options(epochs=2, update_probe=True))
    ).make_reconstruction()
    exact = compute_fourier_error(result, scan, photons_per_unit=1.0).r_floor
    assert result.history["r_floor"][-1] == pytest.approx(exact, rel=tolerance)
    assert len(set(result.history["r_floor"])) == 2
    assert len(result.history["r_floor"]) == 14
    assert "held_out_deviance" not in result.history


@pytest.mark.parametrize("checked", [False, True])
def test_patience_without_held_out_pixels_raises(low_dose_scan: Scan, checked: bool) -> None:
    run = make_run(low_dose_scan, make_options(patience=2))
    with pytest.raises(ConfigError, match="`holdout`"):
        run.check() if checked else run.run_stage(SilentObserver())
