"""The curvature and width of an unknown probe, read from patterns alone."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from ptycho_torch.config.engines import ENGINES
from ptycho_torch.core.observer import SilentObserver
from ptycho_torch.data.scan import Scan
from ptycho_torch.engines.initialization import make_gaussian_probe
from ptycho_torch.engines.pipeline import PipelineRun
from ptycho_torch.engines.probe_estimation import estimate_curvature, estimate_width
from ptycho_torch.engines.state import make_vacuum_state
from ptycho_torch.evaluation.metrics import compare_with_truth
from ptycho_torch.physics.batch import scale_probe_to_photons
from ptycho_torch.simulation.objects import OBJECTS
from ptycho_torch.simulation.probes import make_pixel_grid
from ptycho_torch.simulation.scan import simulate_measurement


def beam(size: int, sigma: float, curvature: float) -> NDArray[np.complex128]:
    """A Gaussian beam, lopsided: (1, N, N)."""
    y, x = make_pixel_grid(size)
    lopsided = 1 + 0.3 * np.tanh(y / sigma) + 0.2 * np.tanh(x / sigma)
    return (lopsided * np.exp((y**2 + x**2) * (0.5j * curvature - 0.5 / sigma**2)))[None]


def scan_of(probe: NDArray[np.complex128], photons: float = 1e5, seed: int = 0) -> Scan:
    """A probe moved over letters, in a field wider than high."""
    rng = np.random.default_rng(seed)
    size = probe.shape[-1]
    steps = np.stack(np.meshgrid(np.arange(12), np.arange(15), indexing="ij"), -1).reshape(-1, 2)
    positions = (steps + rng.uniform(-0.3, 0.3, steps.shape)) * size / 12 + size / 2 + 4
    shape = tuple(np.ceil(positions.max(0) + size / 2 + 5).astype(int))
    return simulate_measurement(OBJECTS["letters"](shape, rng), probe, positions, photons, rng)


@pytest.mark.parametrize("size", [48, 49, 130])
@pytest.mark.parametrize("magnification", [-1.2, -0.5, 0.4, 0.9])
def test_the_shadows_tell_curvature_and_its_sign(size: int, magnification: float) -> None:
    curvature = 2 * np.pi * magnification / size
    scan = scan_of(beam(size, size / 5, curvature))
    found = estimate_curvature(scan, np.random.default_rng(0))
    assert found == pytest.approx(curvature, rel=0.25)  # measured: 0.01 to 0.21, most where it is least curved
    assert estimate_width(scan, found) == pytest.approx(size / 5, rel=0.2)


def test_few_photons_suffice() -> None:
    curvature = 2 * np.pi * 0.8 / 48
    assert estimate_curvature(scan_of(beam(48, 9.0, curvature), 1e3), np.random.default_rng(0)) == pytest.approx(
        curvature, rel=0.1
    )


def test_a_beam_at_its_waist_has_none() -> None:
    scan = scan_of(beam(48, 4.0, 0.0))
    assert abs(estimate_curvature(scan, np.random.default_rng(0))) < 2 * np.pi * 0.05 / 48
    assert estimate_width(scan, 0.0) == pytest.approx(4.0, rel=0.3)


def test_masked_pixels_do_not_matter() -> None:
    scan = scan_of(beam(48, 9.0, 0.1))
    mask = np.random.default_rng(1).random((48, 48)) > 0.05
    rubbish = np.where(mask, scan.amplitudes, np.float32(1e3))
    found = [
        estimate_curvature(replace(scan, amplitudes=amplitudes, mask=mask), np.random.default_rng(0))
        for amplitudes in (scan.amplitudes, rubbish)
    ]
    assert found[0] == found[1] == pytest.approx(0.1, rel=0.1)


def test_positions_too_near_tell_nothing() -> None:
    scan = scan_of(beam(48, 9.0, 0.1)).select(np.array([0]))
    assert estimate_curvature(scan, np.random.default_rng(0)) == 0


@pytest.mark.parametrize("engine", ["pie", "lsqml"])
def test_an_object_is_found_by_patterns_alone(engine: str) -> None:
    """Nothing is known of the probe. After a shift, a ramp and a factor 0.045 and 0.047 were measured."""
    scan = scan_of(beam(48, 9.0, -0.1))
    start = make_gaussian_probe(scan, None, np.random.default_rng(0))
    lit = scale_probe_to_photons(replace(scan, probe=start), 1.0)
    estimate = make_vacuum_state(torch.from_numpy(scan.positions.copy()), lit, 2)
    chain = PipelineRun(scan, 1.0, [ENGINES[engine](epochs=30, update_probe=True)], estimate, 0)
    chain.run_stage(SilentObserver())
    assert scan.truth is not None
    found = compare_with_truth(
        chain.make_reconstruction(), scan.truth, remove_shift=True, remove_ramp=True
    ).to_metrics()
    assert found["nrmse_scanned_box"] < 0.1
