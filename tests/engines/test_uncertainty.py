"""A stated uncertainty: counting noise alone for the truth, in the object's unit, right on a simulated scan."""

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter

from ptycho_torch.data.reconstruction import Reconstruction
from ptycho_torch.data.scan import Scan
from ptycho_torch.engines.pipeline import compute_coverage
from ptycho_torch.engines.state import ReconstructionState, make_vacuum_state
from ptycho_torch.engines.uncertainty import NOISE_VARIANCE_RATIO, add_uncertainty
from ptycho_torch.evaluation.alignment import compute_covered_region
from ptycho_torch.evaluation.metrics import compare_with_truth
from ptycho_torch.evaluation.uncertainty_calibration import compute_calibration
from ptycho_torch.simulation.scan import simulate_scan

Image = NDArray[np.complexfloating]


def estimate_of(scan: Scan) -> ReconstructionState:
    return make_vacuum_state(torch.from_numpy(scan.positions), torch.from_numpy(scan.probe))


def truth_of(scan: Scan) -> Image:
    """On the frame of a result."""
    assert scan.truth is not None
    (top, left), (height, width) = estimate_of(scan).canvas
    return scan.truth[top : top + height, left : left + width]


def known(scan: Scan, change: Callable[[Image], Image]) -> Reconstruction:
    """The truth of ``scan``, changed, as a reconstruction."""
    estimate = estimate_of(scan)
    return Reconstruction(
        object=change(truth_of(scan)).astype(np.complex64),
        coverage=compute_coverage(estimate).numpy(),
        origin_yx=np.array(estimate.canvas.origin),
        probe=scan.probe,
        positions=scan.positions,
        photons_per_unit=1.0,
    )


@pytest.fixture(scope="module")
def noiseless() -> Scan:
    return simulate_scan("tiny", photons=0, seed=3)


def test_the_truth_is_doubted_by_counting_noise_alone(noiseless: Scan) -> None:
    found = add_uncertainty(known(noiseless, lambda truth: truth), noiseless)
    region = compute_covered_region(found)
    assert found.uncertainty is not None
    np.testing.assert_allclose(
        found.uncertainty[region], np.sqrt(NOISE_VARIANCE_RATIO / found.coverage[region]), rtol=0.05, atol=1e-4
    )


def test_it_is_in_the_unit_of_the_object_and_the_same_again(noiseless: Scan) -> None:
    rec = known(noiseless, lambda truth: np.asarray(gaussian_filter(truth, 1.5)))
    found = add_uncertainty(rec, noiseless).uncertainty
    again = add_uncertainty(rec, noiseless).uncertainty
    twice = replace(rec, object=2 * rec.object, probe=rec.probe / 2, coverage=rec.coverage / 4)
    region = compute_covered_region(rec)
    assert found is not None
    assert again is not None
    assert found.dtype == np.float32
    assert found.shape == rec.object.shape
    assert np.array_equal(found, again)
    doubled = add_uncertainty(twice, noiseless).uncertainty
    assert doubled is not None
    np.testing.assert_allclose(doubled[region], 2 * found[region], rtol=1e-2)


def test_a_background_is_believed(noiseless: Scan) -> None:
    """Photons that are known to be none of the object's do not make it doubtful."""
    background = np.zeros(noiseless.probe.shape[-2:], np.float32)
    background[:8] = 50.0  # corner origin
    counts = np.square(noiseless.amplitudes) + np.fft.fftshift(background)
    lit = replace(noiseless, amplitudes=np.sqrt(counts).astype(np.float32))
    rec = known(noiseless, lambda truth: truth)
    region = compute_covered_region(rec)
    told, untold = (
        add_uncertainty(replace(rec, background=some), lit).uncertainty[region] for some in (background, None)
    )
    np.testing.assert_allclose(told, np.sqrt(NOISE_VARIANCE_RATIO / rec.coverage[region]), rtol=0.05, atol=1e-4)
    assert np.median(untold) > 2 * np.median(told)


def test_nothing_is_known_where_no_light_fell(noiseless: Scan) -> None:
    rec = known(noiseless, lambda truth: truth)
    coverage = rec.coverage.copy()
    coverage[:2] = 0
    found = add_uncertainty(replace(rec, coverage=coverage), noiseless).uncertainty
    assert found is not None
    np.testing.assert_array_equal(np.isinf(found), coverage == 0)


@pytest.mark.parametrize("photons", [1e4, 1e6])
@pytest.mark.parametrize("wrong", ["blurred", "drifting"])
def test_its_shares_are_near_those_of_complex_gaussian_errors(photons: float, wrong: str) -> None:
    """Of pictures that are wrong in what patches miss alone, and in what all of them miss alike."""
    scan = simulate_scan("tiny", photons=photons, seed=4)

    def spoilt(truth: Image) -> Image:
        if wrong == "blurred":
            return np.asarray(gaussian_filter(truth, 1.5))
        rows = np.arange(truth.shape[0])[:, None]
        return np.asarray(truth * np.exp(0.4j * np.sin(rows / 9)))

    found = add_uncertainty(known(scan, spoilt), scan)
    assert scan.truth is not None
    calibration = compute_calibration(found, compare_with_truth(found, scan.truth))
    assert calibration is not None
    half, one, _, two, three = calibration.shares
    assert half < 0.6  # a slow error is about σ in size, not scattered around 0
    assert 0.3 < one < 0.95
    assert two > 0.9
    assert three > 0.98
    assert calibration.rank_correlation > 0.3
    lit = compute_covered_region(found)
    assert found.uncertainty is not None
    sizes = np.sqrt([np.mean(found.uncertainty[lit] ** 2), np.mean(np.abs((found.object - truth_of(scan))[lit]) ** 2)])
    assert 0.7 < sizes[0] / sizes[1] < 2
