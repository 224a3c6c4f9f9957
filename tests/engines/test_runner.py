"""What every iterative engine must do, whatever its method: one list, and a new engine is a new name in it."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from helpers import finish_pipeline, scale_probe_to_truth
from numpy.typing import NDArray

from ptycho_torch.config.engines import ENGINES, ITERATIVE_ENGINES, EngineOptions
from ptycho_torch.core.observer import SilentObserver
from ptycho_torch.data.reconstruction import Reconstruction
from ptycho_torch.data.scan import Scan
from ptycho_torch.engines.pipeline import PipelineRun
from ptycho_torch.engines.state import make_vacuum_state
from ptycho_torch.evaluation.fourier_error import compute_fourier_error
from ptycho_torch.evaluation.metrics import compare_with_truth
from ptycho_torch.physics.batch import scale_probe_to_photons
from ptycho_torch.physics.noise import NOISE_MODELS

NAMES = sorted(ITERATIVE_ENGINES)
EPOCHS = 12


def chain_of(
    scan: Scan, *stages: EngineOptions, obj: NDArray[Any] | None = None, photons_per_unit: float = 1.0
) -> PipelineRun:
    """A chain from ones, with the probe's power as it was simulated; ``obj`` (origin (0, 0)) to start from another."""
    probe = (
        torch.from_numpy(scan.probe) * photons_per_unit**0.5
        if scan.photons_per_unit
        else scale_probe_to_photons(scan, 1.0)
    )
    estimate = make_vacuum_state(torch.from_numpy(scan.positions.copy()), probe)
    if obj is not None:
        (top, left), (rows, columns) = estimate.canvas
        estimate.object = torch.from_numpy(obj[top : top + rows, left : left + columns].astype(np.complex64))
    return PipelineRun(scan, photons_per_unit, list(stages), estimate)


def reconstructed(scan: Scan, *stages: EngineOptions, **settings: Any) -> Reconstruction:
    result: Reconstruction = finish_pipeline(chain_of(scan, *stages, **settings)).make_reconstruction()
    return result


def stage(engine: str, **settings: Any) -> EngineOptions:
    return ENGINES[engine](**({"epochs": EPOCHS, "batch_size": 8} | settings))


def nrmse(result: Reconstruction, scan: Scan) -> float:
    assert scan.truth is not None
    return float(compare_with_truth(result, scan.truth).to_metrics()["nrmse"])


@pytest.fixture(scope="module")
def bright(scan_factory: Callable[..., Scan]) -> Scan:
    """49 patterns of 24 × 24 pixels, whose probe has the power that its photons say."""
    return scale_to_truth(scan_factory(n=49, size=24, seed=2, photons=1e5))


def scale_to_truth(scan: Scan) -> Scan:
    return replace(scan, probe=scale_probe_to_truth(scan).numpy())


@pytest.mark.parametrize("loss", sorted(NOISE_MODELS))
@pytest.mark.parametrize("engine", NAMES)
def test_the_error_falls_towards_the_floor_and_the_truth(engine: str, loss: str, bright: Scan) -> None:
    result = reconstructed(bright, stage(engine, loss=loss, epochs=40))
    found = compute_fourier_error(result, bright, photons_per_unit=1.0)
    assert result.history["r"][-1] < result.history["r"][0] / 10
    assert found.r < 3 * found.r_floor
    assert nrmse(result, bright) < 0.5 * nrmse(reconstructed(bright, stage(engine, epochs=0)), bright)


@pytest.mark.parametrize("engine", NAMES)
def test_a_perfect_noiseless_start_stays_put(engine: str, scan_factory: Callable[..., Scan]) -> None:
    scan = scale_to_truth(scan_factory(n=25, size=24, seed=3, photons=0))
    before = chain_of(scan, obj=scan.truth).make_reconstruction()
    after = reconstructed(scan, stage(engine), obj=scan.truth)
    difference = np.abs(after.object - before.object)[before.coverage > 0.1 * before.coverage.max()]
    assert difference.max() < 2e-3


@pytest.mark.parametrize("engine", NAMES)
def test_a_good_start_is_never_made_worse(engine: str, bright: Scan) -> None:
    start = reconstructed(bright, stage("pie", epochs=40))
    (top, left), rec = start.origin_yx, start.object
    canvas = np.ones_like(bright.truth)
    rows, columns = np.minimum(rec.shape, np.array(canvas.shape) - start.origin_yx)
    canvas[top : top + rows, left : left + columns] = rec[:rows, :columns]
    further = reconstructed(bright, stage(engine), obj=canvas)
    before, after = (compute_fourier_error(result, bright, photons_per_unit=1.0).r for result in (start, further))
    assert max(further.history["r"]) < 2 * before + 1e-3
    assert after < 1.1 * before


@pytest.mark.parametrize("learned", [False, True])
@pytest.mark.parametrize("engine", NAMES)
def test_seeded_runs_repeat_to_the_byte(engine: str, learned: bool, scan: Scan) -> None:
    chosen = stage(engine, epochs=4, update_probe=learned)
    first, second = (reconstructed(scan, chosen) for _ in range(2))
    assert first.object.tobytes() == second.object.tobytes()
    assert first.probe.tobytes() == second.probe.tobytes()
    assert first.history == second.history


@pytest.mark.parametrize("engine", NAMES)
def test_an_odd_window_and_two_modes(engine: str, scan_factory: Callable[..., Scan]) -> None:
    scan = scale_to_truth(scan_factory(n=42, size=23, seed=4, modes=2, photons=1e5))
    result = reconstructed(scan, stage(engine, epochs=40))
    assert result.probe.shape == (2, 23, 23)
    assert result.object.shape[0] != result.object.shape[1]
    assert nrmse(result, scan) < 0.5 * nrmse(reconstructed(scan, stage(engine, epochs=0)), scan)


@pytest.mark.parametrize("per_pattern", [False, True])
@pytest.mark.parametrize("engine", NAMES)
def test_masked_pixels_have_no_influence(engine: str, per_pattern: bool, scan: Scan) -> None:
    shape = scan.amplitudes.shape if per_pattern else scan.amplitudes.shape[1:]
    mask = np.random.default_rng(0).uniform(size=shape) > 0.1
    results = [
        reconstructed(
            replace(scan, mask=mask, amplitudes=np.where(mask, scan.amplitudes, np.float32(rubbish))),
            stage(engine, epochs=4, update_probe=True),
        )
        for rubbish in (0, 1e3, np.nan)
    ]
    assert len({result.object.tobytes() for result in results}) == 1
    assert np.isfinite(results[0].object).all()


@pytest.mark.parametrize("engine", NAMES)
def test_the_unit_of_the_amplitudes_does_not_matter(engine: str, scan: Scan) -> None:
    other = replace(scan, amplitudes=scan.amplitudes / 4, photons_per_unit=None)
    plain = replace(scan, photons_per_unit=None)
    first = reconstructed(plain, stage(engine, epochs=4))
    probe = scale_probe_to_photons(other, 16.0)
    chain = PipelineRun(
        other, 16.0, [stage(engine, epochs=4)], make_vacuum_state(torch.from_numpy(scan.positions), probe)
    )
    chain.run_stage(SilentObserver())
    np.testing.assert_allclose(chain.make_reconstruction().object, first.object, atol=2e-4)


@pytest.mark.parametrize("engine", NAMES)
def test_every_engine_makes_its_result_on_the_same_frame(engine: str, bright: Scan) -> None:
    result = reconstructed(bright, stage(engine, epochs=40))
    reference = reconstructed(bright, stage("pie", epochs=40))
    np.testing.assert_array_equal(result.origin_yx, reference.origin_yx)
    assert result.object.shape == reference.object.shape
    assert bright.truth is not None
    comparison = compare_with_truth(result, bright.truth, remove_shift=True)
    assert np.abs(comparison.to_metrics()["removed_shift_pixels"]).max() < 0.05


@pytest.mark.parametrize("learned", [False, True])
@pytest.mark.parametrize("engine", NAMES)
def test_a_run_goes_on_exactly_from_its_checkpoint(engine: str, learned: bool, scan: Scan, tmp_path: Any) -> None:
    chosen = stage(engine, epochs=6, update_probe=learned, update_positions=learned, position_start=1)

    class Interrupt(SilentObserver):
        def __init__(self) -> None:
            self.epochs = 0

        def advance(self, steps: int = 1, **figures: float) -> None:
            self.epochs += 1
            if self.epochs == 4:
                raise KeyboardInterrupt

    whole, begun, resumed = (chain_of(scan, chosen) for _ in range(3))
    whole.run_stage(SilentObserver())
    assert not begun.run_stage(Interrupt())
    begun.save(tmp_path / "state.safetensors", {})
    resumed.load(tmp_path / "state.safetensors", {})
    assert len(resumed.make_reconstruction().history["r"]) == 3
    resumed.run_stage(SilentObserver())
    for name in ("object", "probe", "positions"):
        assert (
            getattr(resumed.make_reconstruction(), name).tobytes()
            == getattr(whole.make_reconstruction(), name).tobytes()
        ), name
    assert resumed.make_reconstruction().history == whole.make_reconstruction().history
