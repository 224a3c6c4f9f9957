"""Nuisance parameters that engines refine: background, intensities; and the ambiguities of the probe."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Literal

import numpy as np
import pytest
import torch
from helpers import make_measurement_model, make_true_state

from ptycho_torch.config.engines import ENGINES, PIE, EngineOptions
from ptycho_torch.core.observer import SilentObserver
from ptycho_torch.data.reconstruction import Reconstruction
from ptycho_torch.data.scan import Scan
from ptycho_torch.engines.initialization import set_num_modes
from ptycho_torch.engines.measurement_model import MeasurementModel
from ptycho_torch.engines.nuisance import AmbiguityFix, remove_slow_variation
from ptycho_torch.engines.pipeline_run import PipelineRun
from ptycho_torch.engines.state import make_measurement, make_vacuum_state
from ptycho_torch.evaluation.fourier_error import compute_fourier_error
from ptycho_torch.io.reconstruction import load_reconstruction
from ptycho_torch.physics.batch import scale_probe_to_photons
from ptycho_torch.physics.forward import from_patches
from ptycho_torch.physics.noise import make_noise_model
from ptycho_torch.physics.probe import compute_center, compute_power


def add_fluctuation(scan: Scan, strength: float) -> tuple[Scan, np.ndarray]:
    """Return the scan with intensities that fluctuate by ``strength`` rms, and the factors."""
    factors = np.random.default_rng(7).normal(1, strength, len(scan))
    factors = remove_slow_variation(torch.from_numpy(factors), torch.from_numpy(scan.positions)).numpy()
    return replace(scan, amplitudes=(scan.amplitudes * np.sqrt(factors)[:, None, None]).astype(np.float32)), factors


def make_run(scan: Scan, *stages: EngineOptions) -> PipelineRun:
    """Return a run from vacuum and the probe of the scan."""
    start = make_vacuum_state(torch.from_numpy(scan.positions), scale_probe_to_photons(scan, 1.0))
    return PipelineRun(scan, 1.0, list(stages), start)


def reconstruct(scan: Scan, stage: EngineOptions) -> Reconstruction:
    run = make_run(scan, stage)
    run.run_stage(SilentObserver())
    return run.make_reconstruction()


def test_a_background_is_recovered_and_lowers_r(noiseless: Scan) -> None:
    added = np.float32(0.01 * np.square(noiseless.amplitudes).mean())
    scan = replace(noiseless, amplitudes=np.sqrt(np.square(noiseless.amplitudes) + added).astype(np.float32))
    without, refined = (
        reconstruct(scan, PIE(epochs=60, batch_size=6, update_background=update)) for update in (False, True)
    )
    r_without, r_refined = (
        compute_fourier_error(result, scan, photons_per_unit=1.0).r for result in (without, refined)
    )
    assert without.background is None
    assert r_refined < 0.5 * r_without
    assert refined.background is not None
    assert refined.background.min() >= 0
    assert np.median(refined.background) == pytest.approx(added, rel=0.3)


@pytest.mark.parametrize("loss", ["amplitude", "poisson"])
def test_the_error_of_an_update_includes_the_background(noiseless: Scan, loss: str) -> None:
    added = 0.05 * np.square(noiseless.amplitudes).mean()
    state = make_true_state(noiseless)
    state.background = torch.full_like(state.background, float(added))
    measurement = make_measurement(noiseless, 1.0, make_noise_model(loss), torch.device("cpu"))
    model, all_patterns = MeasurementModel(measurement, state, fixed_probe=True), torch.arange(len(noiseless))
    counts = np.square(noiseless.amplitudes, dtype=np.float64)
    expected = np.square(np.sqrt(counts + added) - np.sqrt(counts)).sum()
    assert model.compute_update(all_patterns).error == pytest.approx(expected, rel=1e-3)


@pytest.mark.parametrize("loss", ["amplitude", "poisson"])
@pytest.mark.parametrize("engine", ["pie", "lsqml", "rpie", "raar"])
def test_fluctuating_intensities_are_recovered(
    noiseless: Scan, engine: str, loss: Literal["amplitude", "poisson"], tmp_path: Path
) -> None:
    scan, factors = add_fluctuation(noiseless, 0.1)
    without, refined = (
        reconstruct(scan, ENGINES[engine](loss=loss, epochs=60, batch_size=6, update_intensity=update))
        for update in (False, True)
    )
    assert without.intensities is None
    refined.save(tmp_path / "refined.npz")
    intensities = load_reconstruction(tmp_path / "refined.npz").intensities
    assert intensities is not None
    assert intensities.mean() == pytest.approx(1, abs=1e-5)
    assert np.std(intensities / factors) < 0.3 * np.std(factors)
    r_without, r_refined = (
        compute_fourier_error(result, scan, photons_per_unit=1.0).r for result in (without, refined)
    )
    assert r_refined < 0.5 * r_without


def test_intensities_are_independent_of_incoherent_modes(scan_factory: Callable[..., Scan]) -> None:
    # A second mode is in every pattern alike; the intensity of a fluctuating source is not.
    steady = scan_factory(n=64, size=24, seed=2, modes=2, photons=1e6)
    scan, factors = add_fluctuation(steady, 0.1)
    stage = PIE(epochs=60, batch_size=8, update_probe=True, update_intensity=True)
    result = reconstruct(scan, stage)
    assert result.intensities is not None
    assert np.std(result.intensities / factors) < 0.3 * np.std(factors)
    powers, expected = (np.square(np.abs(modes)).sum((1, 2)) for modes in (result.probe, steady.probe))
    np.testing.assert_allclose(powers / powers.sum(), expected / expected.sum(), atol=0.03)


@pytest.mark.parametrize("engine", ["pie", "lsqml", "raar"])
def test_a_resumed_run_keeps_the_intensities(noiseless: Scan, engine: str, tmp_path: Path) -> None:
    scan, _ = add_fluctuation(noiseless, 0.1)
    stages = (
        ENGINES[engine](epochs=6, batch_size=6, update_intensity=True),
        PIE(epochs=2, batch_size=6),  # keeps the intensities of the first stage
    )
    uninterrupted, interrupted, resumed = (make_run(scan, *stages) for _ in range(3))

    class Interrupt(SilentObserver):
        def advance(self, steps: int = 1, **figures: float) -> None:
            assert interrupted.runner is not None
            if len(interrupted.runner.history.r) == 4:
                raise KeyboardInterrupt

    assert not interrupted.run_stage(Interrupt())
    interrupted.save(tmp_path / "state.safetensors", {})
    resumed.load(tmp_path / "state.safetensors", {})
    for run in (uninterrupted, resumed):
        assert run.run()
    first, second = uninterrupted.make_reconstruction(), resumed.make_reconstruction()
    assert first.intensities is not None
    assert second.intensities is not None
    assert first.intensities.tobytes() == second.intensities.tobytes()
    assert first.object.tobytes() == second.object.tobytes()


def test_a_steady_source_gives_equal_intensities(noiseless: Scan) -> None:
    result = reconstruct(noiseless, PIE(epochs=60, batch_size=6, update_intensity=True))
    assert result.intensities is not None
    assert np.std(result.intensities) < 0.01


def test_slow_variation_is_removed_and_fast_variation_is_kept() -> None:
    rng = np.random.default_rng(1)
    positions = torch.from_numpy(rng.uniform(0, 300, (200, 2)))
    fading = torch.exp(-positions[:, 0] / 500 + (positions[:, 1] / 400) ** 2)
    flicker = remove_slow_variation(torch.from_numpy(rng.normal(1, 0.02, 200)), positions)
    torch.testing.assert_close(remove_slow_variation(fading * flicker, positions), flicker)
    torch.testing.assert_close(remove_slow_variation(fading, positions), torch.ones_like(fading))


def test_the_ambiguity_fix_preserves_the_predicted_patterns(noiseless: Scan) -> None:
    state = make_true_state(noiseless, margin=6)
    state.probe = set_num_modes(state.probe, 2)
    model, all_patterns = make_measurement_model(noiseless, state), torch.arange(len(noiseless))
    ambiguity_fix = AmbiguityFix(state)
    state.probe = 1.7 * torch.roll(state.probe, (2, -1), (-2, -1))
    before = from_patches(model.patches(all_patterns), model.probes(all_patterns)).intensity
    ambiguity_fix.fix(state)
    assert float(compute_power(state.probe).sum()) == pytest.approx(float(ambiguity_fix.power), rel=1e-4)
    assert (compute_center(compute_power(state.probe)) - ambiguity_fix.center).abs().max() < 0.5
    after = from_patches(model.patches(all_patterns), model.probes(all_patterns)).intensity
    # The weak tail of the probe (1 % at the edge of the patch) wraps around to the other side.
    torch.testing.assert_close(after, before, rtol=0, atol=0.03 * float(before.max()))
