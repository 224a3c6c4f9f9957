"""Properties that every iterative engine has: convergence, reproducibility, masks, units and checkpoints."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers import finish_pipeline, scale_probe_to_truth
from numpy.typing import NDArray

from ptycho_torch.config.engines import ENGINES, ITERATIVE_ENGINES, PIE, EngineOptions
from ptycho_torch.core.observer import SilentObserver
from ptycho_torch.data.reconstruction import Reconstruction
from ptycho_torch.data.scan import Scan
from ptycho_torch.engines.pipeline import Pipeline
from ptycho_torch.engines.pipeline_run import PipelineRun
from ptycho_torch.engines.state import make_vacuum_state
from ptycho_torch.evaluation.fourier_error import compute_fourier_error
from ptycho_torch.evaluation.metrics import compare_with_truth
from ptycho_torch.physics.batch import scale_probe_to_photons
from ptycho_torch.physics.noise import NOISE_MODELS

NAMES = sorted(ITERATIVE_ENGINES)
EPOCHS = 12


def make_run(
    scan: Scan, *stages: EngineOptions, obj: NDArray[Any] | None = None, photons_per_unit: float = 1.0
) -> PipelineRun:
    """Return a run from an object of ones, or from ``obj`` with the origin (0, 0), with the power of the true probe."""
    probe = (
        torch.from_numpy(scan.probe) * photons_per_unit**0.5
        if scan.photons_per_unit
        else scale_probe_to_photons(scan, 1.0)
    )
    state = make_vacuum_state(torch.from_numpy(scan.positions.copy()), probe)
    if obj is not None:
        (top, left), (rows, columns) = state.canvas
        state.object = torch.from_numpy(obj[top : top + rows, left : left + columns].astype(np.complex64))
    return PipelineRun(scan, photons_per_unit, list(stages), state)


def reconstruct(scan: Scan, *stages: EngineOptions, **settings: Any) -> Reconstruction:
    result: Reconstruction = finish_pipeline(make_run(scan, *stages, **settings)).make_reconstruction()
    return result


def make_options(engine: str, **settings: Any) -> EngineOptions:
    return ENGINES[engine](**({"epochs": EPOCHS, "batch_size": 8} | settings))


def compute_nrmse(result: Reconstruction, scan: Scan) -> float:
    assert scan.truth is not None
    return float(compare_with_truth(result, scan.truth).to_metrics()["nrmse"])


@pytest.fixture(scope="module")
def bright_scan(scan_factory: Callable[..., Scan]) -> Scan:
    """Return 49 patterns of 24 × 24 pixels with a probe of the power of the simulation."""
    return scale_to_truth(scan_factory(n=49, size=24, seed=2, photons=1e5))


def scale_to_truth(scan: Scan) -> Scan:
    return replace(scan, probe=scale_probe_to_truth(scan).numpy())


@pytest.mark.parametrize("loss", sorted(NOISE_MODELS))
@pytest.mark.parametrize("engine", NAMES)
def test_the_error_falls_to_the_noise_floor_and_toward_the_truth(engine: str, loss: str, bright_scan: Scan) -> None:
    result = reconstruct(bright_scan, make_options(engine, loss=loss, epochs=40))
    error = compute_fourier_error(result, bright_scan, photons_per_unit=1.0)
    assert result.history["r"][-1] < result.history["r"][0] / 10
    assert error.r < 3 * error.r_floor
    assert compute_nrmse(result, bright_scan) < 0.5 * compute_nrmse(
        reconstruct(bright_scan, make_options(engine, epochs=0)), bright_scan
    )


@pytest.mark.parametrize("engine", NAMES)
def test_the_noiseless_truth_is_a_fixed_point(engine: str, scan_factory: Callable[..., Scan]) -> None:
    scan = scale_to_truth(scan_factory(n=25, size=24, seed=3, photons=0))
    before = make_run(scan, obj=scan.truth).make_reconstruction()
    after = reconstruct(scan, make_options(engine), obj=scan.truth)
    difference = np.abs(after.object - before.object)[before.coverage > 0.1 * before.coverage.max()]
    assert difference.max() < 2e-3


@pytest.mark.parametrize("engine", NAMES)
def test_a_good_initial_object_does_not_become_worse(engine: str, bright_scan: Scan) -> None:
    start = reconstruct(bright_scan, make_options("pie", epochs=40))
    (top, left), obj = start.origin_yx, start.object
    canvas = np.ones_like(bright_scan.truth)
    rows, columns = np.minimum(obj.shape, np.array(canvas.shape) - start.origin_yx)
    canvas[top : top + rows, left : left + columns] = obj[:rows, :columns]
    continued = reconstruct(bright_scan, make_options(engine), obj=canvas)
    before, after = (
        compute_fourier_error(result, bright_scan, photons_per_unit=1.0).r for result in (start, continued)
    )
    assert max(continued.history["r"]) < 2 * before + 1e-3
    assert after < 1.1 * before


@pytest.mark.parametrize("update_probe", [False, True])
@pytest.mark.parametrize("engine", NAMES)
def test_the_same_seed_gives_the_same_bytes(engine: str, update_probe: bool, scan: Scan) -> None:
    options = make_options(engine, epochs=4, update_probe=update_probe)
    first, second = (reconstruct(scan, options) for _ in range(2))
    assert first.object.tobytes() == second.object.tobytes()
    assert first.probe.tobytes() == second.probe.tobytes()
    assert first.history == second.history


@pytest.mark.parametrize("engine", NAMES)
def test_an_odd_patch_size_and_two_modes(engine: str, scan_factory: Callable[..., Scan]) -> None:
    scan = scale_to_truth(scan_factory(n=42, size=23, seed=4, modes=2, photons=1e5))
    result = reconstruct(scan, make_options(engine, epochs=40))
    assert result.probe.shape == (2, 23, 23)
    assert result.object.shape[0] != result.object.shape[1]
    assert compute_nrmse(result, scan) < 0.5 * compute_nrmse(reconstruct(scan, make_options(engine, epochs=0)), scan)


@pytest.mark.parametrize("per_pattern", [False, True])
@pytest.mark.parametrize("engine", NAMES)
def test_masked_pixels_have_no_effect(engine: str, per_pattern: bool, scan: Scan) -> None:
    shape = scan.amplitudes.shape if per_pattern else scan.amplitudes.shape[1:]
    mask = np.random.default_rng(0).uniform(size=shape) > 0.1
    results = [
        reconstruct(
            replace(scan, mask=mask, amplitudes=np.where(mask, scan.amplitudes, np.float32(masked_value))),
            make_options(engine, epochs=4, update_probe=True),
        )
        for masked_value in (0, 1e3, np.nan)
    ]
    assert len({result.object.tobytes() for result in results}) == 1
    assert np.isfinite(results[0].object).all()


@pytest.mark.parametrize("engine", NAMES)
def test_the_unit_of_the_amplitudes_has_no_effect(engine: str, scan: Scan) -> None:
    second_scan = replace(scan, amplitudes=scan.amplitudes / 4, photons_per_unit=None)
    first_scan = replace(scan, photons_per_unit=None)
    first = reconstruct(first_scan, make_options(engine, epochs=4))
    probe = scale_probe_to_photons(second_scan, 16.0)
    run = PipelineRun(
        second_scan, 16.0, [make_options(engine, epochs=4)], make_vacuum_state(torch.from_numpy(scan.positions), probe)
    )
    run.run_stage(SilentObserver())
    np.testing.assert_allclose(run.make_reconstruction().object, first.object, atol=2e-4)


@pytest.mark.parametrize("engine", NAMES)
def test_every_engine_returns_the_same_canvas_without_a_shift(engine: str, bright_scan: Scan) -> None:
    result = reconstruct(bright_scan, make_options(engine, epochs=40))
    reference = reconstruct(bright_scan, make_options("pie", epochs=40))
    np.testing.assert_array_equal(result.origin_yx, reference.origin_yx)
    assert result.object.shape == reference.object.shape
    assert bright_scan.truth is not None
    comparison = compare_with_truth(result, bright_scan.truth, remove_shift=True)
    assert np.abs(comparison.to_metrics()["removed_shift_pixels"]).max() < 0.05


@pytest.mark.parametrize("update_probe", [False, True])
@pytest.mark.parametrize("engine", NAMES)
def test_a_run_resumes_exactly_from_its_checkpoint(engine: str, update_probe: bool, scan: Scan, tmp_path: Any) -> None:
    options = make_options(engine, epochs=6, update_probe=update_probe, update_positions=update_probe, position_start=1)

    class Interrupt(SilentObserver):
        def __init__(self) -> None:
            self.epochs = 0

        def advance(self, steps: int = 1, **figures: float) -> None:
            self.epochs += 1
            if self.epochs == 4:
                raise KeyboardInterrupt

    whole, interrupted, resumed = (make_run(scan, options) for _ in range(3))
    whole.run_stage(SilentObserver())
    assert not interrupted.run_stage(Interrupt())
    interrupted.save(tmp_path / "state.safetensors", {})
    resumed.load(tmp_path / "state.safetensors", {})
    assert len(resumed.make_reconstruction().history["r"]) == 3
    resumed.run_stage(SilentObserver())
    for name in ("object", "probe", "positions"):
        assert (
            getattr(resumed.make_reconstruction(), name).tobytes()
            == getattr(whole.make_reconstruction(), name).tobytes()
        ), name
    assert resumed.make_reconstruction().history == whole.make_reconstruction().history


def test_a_complete_run_extends_to_more_epochs(noiseless: Scan, tmp_path: Path) -> None:
    short, longer = (PIE(epochs=epochs, batch_size=6) for epochs in (4, 12))
    first = Pipeline(short).start(noiseless, device="cpu")
    assert first.run()
    first.save(tmp_path / "state.safetensors", {})
    second = Pipeline(longer).start(noiseless, device="cpu")
    second.load(tmp_path / "state.safetensors", {})
    assert second.run()
    before, after = first.make_reconstruction(), second.make_reconstruction()
    assert after.history["epoch"] == [float(epoch) for epoch in range(1, 13)]
    assert after.history["r"][:4] == before.history["r"]
    assert after.history["r"][-1] < before.history["r"][-1]


@pytest.mark.parametrize("engine", ["pie", "lsqml", "rpie", "dm"])
@pytest.mark.parametrize("epochs", [1, 5])
def test_a_continuation_makes_no_image_worse(noiseless: Scan, engine: str, epochs: int) -> None:
    start = PIE(epochs=40, batch_size=6).run(noiseless, device="cpu")
    options = ENGINES[engine](epochs=epochs)  # type: ignore[call-arg]
    result = options.run(noiseless, initial=start, device="cpu")
    assert noiseless.truth is not None
    errors = [compare_with_truth(each, noiseless.truth).nrmse for each in (start, result)]
    assert errors[1] < 1.1 * errors[0]
