"""Refinement of the positions against the object of a network: convergence to the true positions, and the bound."""

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from ptycho_torch.data.scan import Scan
from ptycho_torch.evaluation.fourier_error import compute_fourier_error
from ptycho_torch.models.model import PtychoModel
from ptycho_torch.models.registry import NetworkConfig
from ptycho_torch.physics.batch import make_batch, scale_probe_to_photons
from ptycho_torch.physics.patches import Canvas, split_positions
from ptycho_torch.prediction.position_refinement import GaussNewtonPositionRefiner
from ptycho_torch.prediction.predict import predict_scan

POSITION_ERROR_PX = 0.7
"""Root mean square of the position errors per axis, in pixels."""


def displace(scan: Scan) -> Scan:
    """Return the scan with position errors of zero mean: a common shift would be a shift of the object."""
    errors = np.random.default_rng(0).normal(0, POSITION_ERROR_PX, scan.positions.shape)
    return replace(scan, positions=scan.positions + errors - errors.mean(0))


def measure_error(positions: NDArray[np.float64], scan: Scan) -> float:
    """Return the root mean square error per axis in pixels, without a common shift."""
    error = positions - scan.positions
    return float(np.square(error - error.mean(0)).mean() ** 0.5)


def make_refiner(scan: Scan, bound: float = 5.0) -> tuple[GaussNewtonPositionRefiner, torch.Tensor]:
    """Return a refiner of the positions of ``scan``, and its true object."""
    assert scan.truth is not None
    truth = torch.from_numpy(scan.truth)
    canvas = Canvas((0, 0), tuple(truth.shape))
    batch, positions = make_batch(scan, 1.0), torch.from_numpy(scan.positions)
    return GaussNewtonPositionRefiner(batch, positions, scale_probe_to_photons(scan, 1.0), canvas, bound), truth


def test_positions_converge_against_the_true_object(scan_factory: Callable[..., Scan]) -> None:
    """Measured: 0.653 pixels; after one step 0.179, after two 0.036, after three 0.022; 10⁶ photons per pattern."""
    scan = scan_factory(photons=1e6)
    refiner, truth = make_refiner(displace(scan))
    refiner.refine(truth)
    assert measure_error(refiner.positions.numpy(), scan) < 0.25
    for _ in range(2):
        batch = refiner.refine(truth)
    assert measure_error(refiner.positions.numpy(), scan) < 0.04
    placement = split_positions(refiner.positions, scan.size)
    assert torch.equal(batch.corners, placement.corners)
    assert torch.equal(batch.fractions, placement.fractions.float())


def test_displacements_are_bounded_and_have_zero_mean(scan: Scan) -> None:
    displaced = displace(scan)
    bounded, truth = make_refiner(replace(displaced, positions=displaced.positions + 0.4), bound=0.25)
    bounded.refine(truth)
    displacements = bounded.positions - bounded.initial_positions
    assert 0.2 < float(displacements.abs().max()) <= 0.25 + 1e-9
    shifted, _ = make_refiner(replace(scan, positions=scan.positions + 0.4))
    shifted.refine(truth)
    assert float((shifted.positions - shifted.initial_positions).mean(0).abs().max()) < 1e-9


def test_a_flat_object_moves_no_position(scan: Scan) -> None:
    refiner, truth = make_refiner(displace(scan))
    refiner.refine(torch.ones_like(truth))
    assert torch.equal(refiner.positions, refiner.initial_positions)


def test_the_scale_of_the_object_has_no_effect(scan: Scan) -> None:
    first, truth = make_refiner(displace(scan))
    second, _ = make_refiner(displace(scan))
    first.refine(truth)
    second.refine(3 * truth)
    assert float((first.positions - second.positions).abs().max()) < 1e-3


def test_masked_pixels_have_no_effect(scan: Scan) -> None:
    mask = np.random.default_rng(0).random((scan.size, scan.size)) > 0.1
    positions = []
    for masked_value in (0.0, 50.0):
        amplitudes = np.where(mask, scan.amplitudes, np.float32(masked_value))
        refiner, truth = make_refiner(displace(replace(scan, amplitudes=amplitudes, mask=mask)))
        for _ in range(2):
            refiner.refine(truth)
        positions.append(refiner.positions)
    assert measure_error(positions[0].numpy(), scan) < 0.3
    # The power of the probe is that of the pixels that count, and the results are equal.
    assert torch.equal(*positions)


@pytest.mark.parametrize("name", ["overlap_unet", "refined_unet"])
@pytest.mark.parametrize("gridsize", [1, 2])
def test_a_network_refines_positions(name: str, gridsize: int, scan_factory: Callable[..., Scan]) -> None:
    """An untrained network with the physics that it contains. Patches of single patterns are too rough for positions.

    Measured with the object stages of `overlap_unet`: 0.479 pixels, from 0.664.
    """
    scan = scan_factory(64, photons=1e6)
    displaced = displace(scan)
    model = PtychoModel(NetworkConfig(name, width=4), scale_probe_to_photons(scan, 1.0))
    fixed, refined = (
        predict_scan(model, displaced, 1.0, gridsize=gridsize, position_bound=bound) for bound in (None, 3.0)
    )
    np.testing.assert_array_equal(fixed.positions, displaced.positions)
    if model.object_stages:
        assert measure_error(refined.positions, scan) < 0.8 * measure_error(fixed.positions, scan)
    r_fixed, r_refined = (
        compute_fourier_error(result, replace(displaced, positions=result.positions), photons_per_unit=1.0).r
        for result in (fixed, refined)
    )
    assert r_refined < r_fixed


def test_a_subset_of_the_positions_is_refined_on_a_sufficient_canvas(scan: Scan) -> None:
    model = PtychoModel(NetworkConfig("overlap_unet", width=4), scale_probe_to_photons(scan, 1.0))
    centers = np.array([3, 30, 17, 22])
    result = predict_scan(model, scan, 1.0, centers=centers, position_bound=2.0)
    assert result.positions.shape == (4, 2)
    assert 0 < np.abs(result.positions - scan.positions[centers]).max() <= 2
    corners = np.floor(result.positions - scan.size // 2 + 0.5) - result.origin_yx
    assert (corners >= 2).all()
    assert (corners + scan.size + 2 <= result.object.shape).all()
    assert np.isfinite(result.object).all()


@pytest.mark.parametrize("spread", [0.02, 0.2])
def test_a_fluctuating_source_has_no_effect(spread: float, scan_factory: Callable[..., Scan]) -> None:
    scan = scan_factory(photons=1e6)
    factors = 1 + np.random.default_rng(1).uniform(-spread, spread, (len(scan), 1, 1))
    fluctuating = replace(scan, amplitudes=(scan.amplitudes * np.sqrt(factors)).astype(np.float32))
    positions = []
    for measured in (scan, fluctuating):
        refiner, truth = make_refiner(displace(measured))
        for _ in range(3):
            refiner.refine(truth)
        positions.append(refiner.positions.numpy())
    assert measure_error(positions[1], scan) < 0.06
    assert measure_error(positions[1], replace(scan, positions=positions[0])) < 0.02


def test_a_known_background_has_little_effect(scan_factory: Callable[..., Scan]) -> None:
    """A uniform background of a tenth of the photons. Measured error: 0.084 pixels, and 0.41 if it is unknown."""
    scan = scan_factory(photons=1e6)
    level = float(np.square(scan.amplitudes).sum((1, 2)).mean()) / 10 / scan.size**2
    with_background = replace(scan, amplitudes=np.sqrt(np.square(scan.amplitudes) + np.float32(level)))
    errors = []
    for background in (torch.full((scan.size, scan.size), level), None):
        template, truth = make_refiner(displace(scan))
        refiner = GaussNewtonPositionRefiner(
            make_batch(with_background, 1.0),
            template.initial_positions,
            template.probe,
            template.canvas,
            5.0,
            background,
        )
        for _ in range(3):
            refiner.refine(truth)
        errors.append(measure_error(refiner.positions.numpy(), scan))
    assert errors[0] < 0.12
    assert errors[0] < errors[1] / 3


@pytest.mark.parametrize("name", ["overlap_unet", "lifted_unet"])
def test_dead_patterns_do_not_move_and_do_not_affect_others(name: str, scan_factory: Callable[..., Scan]) -> None:
    scan = scan_factory(64, photons=1e6)
    dead = [9, 30, 50]
    amplitudes = scan.amplitudes.copy()
    amplitudes[dead] = 0
    model = PtychoModel(NetworkConfig(name, width=4), scale_probe_to_photons(scan, 1.0))
    result = predict_scan(model, replace(scan, amplitudes=amplitudes), 1.0, position_bound=3.0)
    assert not np.abs(result.positions - scan.positions)[dead].any()
    alive = np.delete(np.arange(64), dead)
    without = predict_scan(model, scan.select(alive), 1.0, position_bound=3.0)
    assert np.abs(result.positions[alive] - without.positions).max() < 0.05
