"""Curvature and width of an unknown probe, estimated from patterns and positions."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from ptycho_torch.config.engines import ENGINES
from ptycho_torch.core.observer import SilentObserver
from ptycho_torch.data.scan import Scan
from ptycho_torch.engines.pipeline_run import PipelineRun
from ptycho_torch.engines.state import make_vacuum_state
from ptycho_torch.evaluation.metrics import compare_with_truth
from ptycho_torch.models.probe_estimation import estimate_curvature, estimate_width, make_gaussian_probe
from ptycho_torch.physics.batch import scale_probe_to_photons
from ptycho_torch.simulation.objects import OBJECTS
from ptycho_torch.simulation.probes import make_pixel_grid
from ptycho_torch.simulation.scan import simulate_measurement


def make_beam(size: int, sigma: float, curvature: float) -> NDArray[np.complex128]:
    """Return an asymmetric Gaussian make_beam, (1, N, N)."""
    y, x = make_pixel_grid(size)
    asymmetric = 1 + 0.3 * np.tanh(y / sigma) + 0.2 * np.tanh(x / sigma)
    return (asymmetric * np.exp((y**2 + x**2) * (0.5j * curvature - 0.5 / sigma**2)))[None]


def simulate_letters(probe: NDArray[np.complex128], photons: float = 1e5, seed: int = 0) -> Scan:
    """Simulate a scan of letters on a field that is wider than high."""
    rng = np.random.default_rng(seed)
    size = probe.shape[-1]
    steps = np.stack(np.meshgrid(np.arange(12), np.arange(15), indexing="ij"), -1).reshape(-1, 2)
    positions = (steps + rng.uniform(-0.3, 0.3, steps.shape)) * size / 12 + size / 2 + 4
    shape = tuple(np.ceil(positions.max(0) + size / 2 + 5).astype(int))
    return simulate_measurement(OBJECTS["letters"](shape, rng), probe, positions, photons, rng)


@pytest.mark.parametrize("size", [48, 49, 130])
@pytest.mark.parametrize("magnification", [-1.2, -0.5, 0.4, 0.9])
def test_shadows_determine_the_curvature_and_its_sign(size: int, magnification: float) -> None:
    curvature = 2 * np.pi * magnification / size
    scan = simulate_letters(make_beam(size, size / 5, curvature))
    result = estimate_curvature(scan, np.random.default_rng(0))
    assert result == pytest.approx(curvature, rel=0.25)  # measured: 0.01 to 0.21, largest for small curvatures
    assert estimate_width(scan, result) == pytest.approx(size / 5, rel=0.2)


def test_a_thousand_photons_per_pattern_suffice() -> None:
    curvature = 2 * np.pi * 0.8 / 48
    assert estimate_curvature(
        simulate_letters(make_beam(48, 9.0, curvature), 1e3), np.random.default_rng(0)
    ) == pytest.approx(curvature, rel=0.1)


def test_a_beam_at_its_waist_has_no_curvature() -> None:
    scan = simulate_letters(make_beam(48, 4.0, 0.0))
    assert abs(estimate_curvature(scan, np.random.default_rng(0))) < 2 * np.pi * 0.05 / 48
    assert estimate_width(scan, 0.0) == pytest.approx(4.0, rel=0.3)


def test_masked_pixels_have_no_effect() -> None:
    scan = simulate_letters(make_beam(48, 9.0, 0.1))
    mask = np.random.default_rng(1).random((48, 48)) > 0.05
    corrupted = np.where(mask, scan.amplitudes, np.float32(1e3))
    result = [
        estimate_curvature(replace(scan, amplitudes=amplitudes, mask=mask), np.random.default_rng(0))
        for amplitudes in (scan.amplitudes, corrupted)
    ]
    assert result[0] == result[1] == pytest.approx(0.1, rel=0.1)


def test_a_single_position_gives_no_curvature() -> None:
    scan = simulate_letters(make_beam(48, 9.0, 0.1)).select(np.array([0]))
    assert estimate_curvature(scan, np.random.default_rng(0)) == 0


@pytest.mark.parametrize("engine", ["pie", "lsqml"])
def test_an_object_is_recovered_without_a_known_probe(engine: str) -> None:
    """Measured NRMSE after removal of shift, ramp and factor: 0.045 and 0.047."""
    scan = simulate_letters(make_beam(48, 9.0, -0.1))
    start = make_gaussian_probe(scan, None, np.random.default_rng(0))
    scaled_probe = scale_probe_to_photons(replace(scan, probe=start), 1.0)
    estimate = make_vacuum_state(torch.from_numpy(scan.positions.copy()), scaled_probe, 2)
    run = PipelineRun(scan, 1.0, [ENGINES[engine](epochs=30, update_probe=True)], estimate, 0)
    run.run_stage(SilentObserver())
    assert scan.truth is not None
    result = compare_with_truth(run.make_reconstruction(), scan.truth, remove_shift=True, remove_ramp=True).to_metrics()
    assert result["nrmse_scanned_box"] < 0.1
