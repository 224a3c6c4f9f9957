"""Uncertainty of an object: counting noise alone at the truth, in the unit of the object, calibrated in simulation."""

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter

from ptycho_torch.data.reconstruction import Reconstruction
from ptycho_torch.data.scan import Scan
from ptycho_torch.engines.measurement_model import compute_coverage
from ptycho_torch.engines.state import ReconstructionState, make_vacuum_state
from ptycho_torch.engines.uncertainty import NOISE_VARIANCE_RATIO, add_uncertainty
from ptycho_torch.evaluation.alignment import compute_covered_region
from ptycho_torch.evaluation.metrics import compare_with_truth
from ptycho_torch.evaluation.uncertainty_calibration import compute_calibration
from ptycho_torch.simulation.scan import simulate_scan

Image = NDArray[np.complexfloating]


def make_state(scan: Scan) -> ReconstructionState:
    return make_vacuum_state(torch.from_numpy(scan.positions), torch.from_numpy(scan.probe))


def crop_truth(scan: Scan) -> Image:
    """Return the true object on the canvas of a result."""
    assert scan.truth is not None
    (top, left), (height, width) = make_state(scan).canvas
    return scan.truth[top : top + height, left : left + width]


def make_reconstruction(scan: Scan, change: Callable[[Image], Image]) -> Reconstruction:
    """Return a reconstruction whose object is the truth of ``scan`` after ``change``."""
    state = make_state(scan)
    return Reconstruction(
        object=change(crop_truth(scan)).astype(np.complex64),
        coverage=compute_coverage(state).numpy(),
        origin_yx=np.array(state.canvas.origin),
        probe=scan.probe,
        positions=scan.positions,
        photons_per_unit=1.0,
    )


@pytest.fixture(scope="module")
def noiseless() -> Scan:
    return simulate_scan("tiny", photons=0, seed=3)


def test_the_uncertainty_of_the_truth_is_counting_noise(noiseless: Scan) -> None:
    result = add_uncertainty(make_reconstruction(noiseless, lambda truth: truth), noiseless)
    region = compute_covered_region(result)
    assert result.uncertainty is not None
    np.testing.assert_allclose(
        result.uncertainty[region], np.sqrt(NOISE_VARIANCE_RATIO / result.coverage[region]), rtol=0.05, atol=1e-4
    )


def test_the_uncertainty_is_in_the_unit_of_the_object_and_reproducible(noiseless: Scan) -> None:
    reconstruction = make_reconstruction(noiseless, lambda truth: np.asarray(gaussian_filter(truth, 1.5)))
    result = add_uncertainty(reconstruction, noiseless).uncertainty
    again = add_uncertainty(reconstruction, noiseless).uncertainty
    rescaled = replace(
        reconstruction,
        object=2 * reconstruction.object,
        probe=reconstruction.probe / 2,
        coverage=reconstruction.coverage / 4,
    )
    region = compute_covered_region(reconstruction)
    assert result is not None
    assert again is not None
    assert result.dtype == np.float32
    assert result.shape == reconstruction.object.shape
    assert np.array_equal(result, again)
    doubled = add_uncertainty(rescaled, noiseless).uncertainty
    assert doubled is not None
    np.testing.assert_allclose(doubled[region], 2 * result[region], rtol=1e-2)


def test_a_known_background_does_not_increase_the_uncertainty(noiseless: Scan) -> None:
    background = np.zeros(noiseless.probe.shape[-2:], np.float32)
    background[:8] = 50.0  # corner origin
    counts = np.square(noiseless.amplitudes) + np.fft.fftshift(background)
    with_background = replace(noiseless, amplitudes=np.sqrt(counts).astype(np.float32))
    reconstruction = make_reconstruction(noiseless, lambda truth: truth)
    region = compute_covered_region(reconstruction)
    with_known, with_unknown = (
        add_uncertainty(replace(reconstruction, background=value), with_background).uncertainty[region]
        for value in (background, None)
    )
    np.testing.assert_allclose(
        with_known, np.sqrt(NOISE_VARIANCE_RATIO / reconstruction.coverage[region]), rtol=0.05, atol=1e-4
    )
    assert np.median(with_unknown) > 2 * np.median(with_known)


def test_the_uncertainty_is_infinite_without_coverage(noiseless: Scan) -> None:
    reconstruction = make_reconstruction(noiseless, lambda truth: truth)
    coverage = reconstruction.coverage.copy()
    coverage[:2] = 0
    result = add_uncertainty(replace(reconstruction, coverage=coverage), noiseless).uncertainty
    assert result is not None
    np.testing.assert_array_equal(np.isinf(result), coverage == 0)


@pytest.mark.parametrize("photons", [1e4, 1e6])
@pytest.mark.parametrize("error", ["blurred", "drifting"])
def test_errors_are_distributed_approximately_as_complex_gaussian_errors(photons: float, error: str) -> None:
    """The errors are local in a blurred object, and common to all patches in a drifting phase."""
    scan = simulate_scan("tiny", photons=photons, seed=4)

    def add_error(truth: Image) -> Image:
        if error == "blurred":
            return np.asarray(gaussian_filter(truth, 1.5))
        rows = np.arange(truth.shape[0])[:, None]
        return np.asarray(truth * np.exp(0.4j * np.sin(rows / 9)))

    result = add_uncertainty(make_reconstruction(scan, add_error), scan)
    assert scan.truth is not None
    calibration = compute_calibration(result, compare_with_truth(result, scan.truth))
    assert calibration is not None
    half, one, _, two, three = calibration.shares
    assert half < 0.6  # a slowly varying error has about the size σ everywhere
    assert 0.3 < one < 0.95
    assert two > 0.9
    assert three > 0.98
    assert calibration.rank_correlation > 0.3
    region = compute_covered_region(result)
    assert result.uncertainty is not None
    uncertainty = np.sqrt(np.mean(result.uncertainty[region] ** 2))
    true_error = np.sqrt(np.mean(np.abs((result.object - crop_truth(scan))[region]) ** 2))
    assert 0.7 < uncertainty / true_error < 2
