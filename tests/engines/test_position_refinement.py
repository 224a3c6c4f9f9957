"""Refinement of the scan positions by the engines: both estimators, affine maps, and the bound."""

from collections.abc import Callable
from typing import Literal

import numpy as np
import pytest
import torch
from helpers import make_measurement_model, make_true_state

from ptycho_torch.config.engines import ENGINES
from ptycho_torch.core.observer import SilentObserver
from ptycho_torch.data.scan import Scan
from ptycho_torch.engines.measurement_model import ExitWaveUpdate
from ptycho_torch.engines.pipeline_run import PipelineRun
from ptycho_torch.engines.position_refinement import PositionRefiner
from ptycho_torch.engines.state import ReconstructionState, make_vacuum_state
from ptycho_torch.physics.batch import scale_probe_to_photons
from ptycho_torch.simulation.scan import simulate_measurement

METHODS = ["gradient", "correlation"]


def refine_positions(
    scan: Scan, state: ReconstructionState, photons_per_unit: float = 1.0, engine: str = "pie", **settings: object
) -> np.ndarray:
    """Return the positions after one stage with ``settings``."""
    stage = ENGINES[engine](update_positions=True, **settings)  # type: ignore[arg-type]
    run = PipelineRun(scan, photons_per_unit, [stage], state)
    run.run_stage(SilentObserver())
    return run.make_reconstruction().positions


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("shift", [(0.1, 0.0), (0.0, -0.1), (0.07, 0.05)])
def test_displacement_estimates_point_toward_the_true_position(
    noiseless: Scan, shift: tuple[float, float], method: str
) -> None:
    state = make_true_state(noiseless)
    state.positions = state.positions + torch.tensor(shift, dtype=torch.float64)
    model, all_patterns = make_measurement_model(noiseless, state), torch.arange(len(noiseless))
    refiner = PositionRefiner(model, 5.0, method)
    estimate = refiner.estimate(model.compute_update(all_patterns), all_patterns)[0].mean(0)
    # An exit-wave change has no phase information at the detector: the length of the estimate is only approximate.
    expected = -torch.tensor(shift)
    ratio = float(estimate @ expected / (expected @ expected))
    assert 0.15 < ratio < 1.2
    assert float((estimate - ratio * expected).norm()) < 0.2 * float(expected.norm())


@pytest.mark.parametrize("shift", [(2.0, -1.0), (-0.5, 1.25), (0.0, 0.0)])
def test_correlation_recovers_the_displacement_of_a_shifted_exit_wave(
    noiseless: Scan, shift: tuple[float, float]
) -> None:
    state = make_true_state(noiseless, margin=6)
    model, all_patterns = make_measurement_model(noiseless, state), torch.arange(len(noiseless))
    here = model.compute_update(all_patterns)
    state.positions = state.positions + torch.tensor(shift, dtype=torch.float64)
    model.refresh()
    # Only the patch moves; the probe keeps its sub-pixel shift.
    moved = model.patches(all_patterns)
    whole = model.corners - make_measurement_model(noiseless, make_true_state(noiseless, margin=6)).corners
    change = here.probes * moved[:, None] - here.probes * here.patches[:, None]
    update = ExitWaveUpdate(here.patches, here.probes, change, None, 0.0)
    estimate, curvature = PositionRefiner(model, 5.0, "correlation").estimate(update, all_patterns)
    assert (estimate - whole).abs().amax(1).median() < 0.1
    assert (torch.linalg.eigvalsh(curvature) >= 0).all()


@pytest.mark.parametrize("method", METHODS)
def test_a_flat_object_moves_no_position(noiseless: Scan, method: str) -> None:
    vacuum = make_vacuum_state(torch.from_numpy(noiseless.positions.copy()), torch.from_numpy(noiseless.probe))
    model, all_patterns = make_measurement_model(noiseless, vacuum), torch.arange(len(noiseless))
    estimate, _ = PositionRefiner(model, 5.0, method).estimate(model.compute_update(all_patterns), all_patterns)
    assert estimate.abs().max() < 1e-2


def test_jittered_positions_are_recovered(noiseless: Scan) -> None:
    jitter = np.random.default_rng(3).normal(0, 0.7, noiseless.positions.shape)
    jitter -= jitter.mean(0)
    start = make_vacuum_state(torch.from_numpy(noiseless.positions + jitter), torch.from_numpy(noiseless.probe), 5)
    positions = refine_positions(
        noiseless, start, engine="pie", epochs=60, batch_size=6, position_start=2, position_bound=3.0
    )
    error = positions - noiseless.positions
    error -= error.mean(0)
    assert np.sqrt(np.square(error).mean()) < 0.3 * np.sqrt(np.square(jitter).mean())
    np.testing.assert_allclose(positions.mean(0), (noiseless.positions + jitter).mean(0), atol=1e-9)


def add_speckle(scan: Scan) -> Scan:
    """Return a scan with the same positions and probe of an object with detail everywhere."""
    assert scan.truth is not None
    rng = np.random.default_rng(0)
    y, x = (np.fft.fftfreq(n)[:, None] for n in scan.truth.shape)
    smooth = np.exp(-((y**2 + (x**2).T) / (2 * 0.1**2)))
    detail = np.fft.ifft2(np.fft.fft2(rng.normal(size=(2, *scan.truth.shape))) * smooth).real
    obj = (0.8 + 0.3 * detail[0] / detail[0].std() / 3) * np.exp(0.7j * detail[1] / detail[1].std())
    return simulate_measurement(obj, scan.probe.astype(complex), scan.positions, 1e6, np.random.default_rng(1))


def rotate_and_scale(positions: np.ndarray, scale: float, degrees: float) -> np.ndarray:
    angle = np.deg2rad(degrees)
    matrix = scale * np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    center = positions.mean(0)
    return (positions - center) @ matrix.T + center


@pytest.mark.parametrize("method", METHODS)
def test_an_affine_model_recovers_scale_and_rotation(
    scan_factory: Callable[..., Scan], method: Literal["gradient", "correlation"]
) -> None:
    scan = add_speckle(scan_factory(n=100, size=24, seed=5))
    start, scale = rotate_and_scale(scan.positions, 1.02, 1.0), scan.photons_per_unit or 1.0
    positions = refine_positions(
        scan,
        make_vacuum_state(torch.from_numpy(start), scale_probe_to_photons(scan, scale), 8),
        scale,
        engine="rpie",
        epochs=80,
        batch_size=10,
        position_method=method,
        position_model="affine",
    )
    before, after = start - scan.positions, positions - scan.positions - (positions - scan.positions).mean(0)
    assert np.square(after).mean() < 0.35**2 * np.square(before).mean()
    terms = np.c_[start, np.ones(len(start))]
    residual = positions - terms @ np.linalg.lstsq(terms, positions, rcond=None)[0]
    assert np.abs(residual).max() < 1e-9  # exactly one affine map
    np.testing.assert_allclose(positions.mean(0), start.mean(0), atol=1e-9)


def test_correlation_recovers_position_errors_of_two_pixels(scan_factory: Callable[..., Scan]) -> None:
    scan = add_speckle(scan_factory(n=100, size=24, seed=5))
    jitter = np.random.default_rng(3).normal(0, 1.5, scan.positions.shape)  # 2.1 pixels in the plane
    scale = scan.photons_per_unit or 1.0
    positions = refine_positions(
        scan,
        make_vacuum_state(torch.from_numpy(scan.positions + jitter), scale_probe_to_photons(scan, scale), 12),
        scale,
        engine="rpie",
        epochs=60,
        batch_size=10,
        position_method="correlation",
        position_bound=8,
    )
    error = positions - scan.positions
    error -= error.mean(0)
    assert np.median(np.abs(error)) < 0.25 * np.median(np.abs(jitter))


@pytest.mark.parametrize("engine", ["pie", "gradient"])
def test_the_bound_limits_the_displacement_per_axis(noiseless: Scan, engine: str) -> None:
    jitter = np.random.default_rng(3).normal(0, 1.5, noiseless.positions.shape)
    start = make_vacuum_state(torch.from_numpy(noiseless.positions + jitter), torch.from_numpy(noiseless.probe), 3)
    positions = refine_positions(
        noiseless, start, engine=engine, epochs=12, batch_size=6, position_start=1, position_bound=0.25
    )
    displacements = np.abs(positions - noiseless.positions - jitter)
    assert 0.1 < displacements.max() <= 0.25 + 1e-9
    assert np.hypot(*displacements.T).max() > 0.3  # the bound is not one on the length
