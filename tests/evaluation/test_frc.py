"""Ring correlation: 1 for equal fields, about 0 for unrelated ones, and a crossing where the agreement ends."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from ptycho_torch.core.errors import DataError
from ptycho_torch.evaluation.frc import compute_half_bit_threshold, compute_ring_correlation, find_largest_square

Complex = NDArray[np.complex128]


def noise(seed: int, side: int) -> Complex:
    rng = np.random.default_rng(seed)
    return np.asarray(rng.normal(size=(side, side)) + 1j * rng.normal(size=(side, side)), np.complex128)


def band(image: Complex, low: float, high: float) -> Complex:
    """Only the frequencies from ``low`` to below ``high``, in cycles per pixel."""
    frequency = np.fft.fftfreq(len(image))
    radius = np.hypot(frequency[:, None], frequency)
    return np.asarray(np.fft.ifft2(np.fft.fft2(image) * ((radius >= low) & (radius < high))), np.complex128)


@pytest.mark.parametrize("side", [16, 33, 64])
def test_equal_images_correlate_everywhere(side: int) -> None:
    found = compute_ring_correlation(noise(0, side), noise(0, side))
    np.testing.assert_allclose(found.correlation, 1, atol=1e-10)
    assert (found.crossing, found.resolution) == (None, None)
    np.testing.assert_allclose(found.frequency, np.arange(1, side // 2 + 1) / side)


@pytest.mark.parametrize("seed", range(4))
def test_unrelated_images_correlate_nowhere(seed: int) -> None:
    found = compute_ring_correlation(noise(seed, 65), noise(100 + seed, 65))
    assert np.abs(found.correlation[4:]).max() < 0.4
    assert abs(found.correlation[4:].mean()) < 0.05
    assert (found.correlation > found.threshold).sum() <= 1


@pytest.mark.parametrize("side", [64, 81])
@pytest.mark.parametrize("cutoff", [0.1, 0.2, 0.35])
def test_the_crossing_is_where_the_agreement_ends(side: int, cutoff: float) -> None:
    common = noise(1, side)
    first = band(common, 0, cutoff) + band(noise(2, side), cutoff, 2)
    found = compute_ring_correlation(first, common)
    assert found.crossing is not None
    assert found.crossing == pytest.approx(cutoff, abs=1.5 / side)
    assert found.resolution == pytest.approx(0.5 / found.crossing)


@pytest.mark.parametrize("factor", [3, 0.001])
def test_scale_does_not_count_but_phase_does(factor: float) -> None:
    image = noise(0, 32)
    np.testing.assert_allclose(compute_ring_correlation(factor * image, image).correlation, 1, atol=1e-10)
    np.testing.assert_allclose(
        compute_ring_correlation(image * np.exp(0.5j), image).correlation, np.cos(0.5), atol=1e-10
    )
    np.testing.assert_allclose(compute_ring_correlation(-image, image).correlation, -1, atol=1e-10)


@pytest.mark.parametrize("flat", [1, 5j, 0])
def test_a_flat_image_correlates_with_nothing(sample_object: Callable[..., Complex], flat: complex) -> None:
    truth = sample_object(np.arange(48), np.arange(48))
    found = compute_ring_correlation(np.full((48, 48), flat, np.complex128), truth)
    np.testing.assert_array_equal(found.correlation, 0)
    assert (found.crossing, found.resolution) == (0, None)


def test_a_flat_phase_gives_no_agreement_for_a_phase_object(sample_object: Callable[..., Complex]) -> None:
    """The true amplitude without the phase: an image for which a correlation of amplitudes is perfect."""
    truth = sample_object(np.arange(64), np.arange(64))
    found = compute_ring_correlation(np.abs(truth).astype(complex), truth)
    assert np.mean(found.correlation < found.threshold) > 0.8


@pytest.mark.parametrize("change", [np.conj, np.transpose, lambda image: image[::-1], lambda image: image[:, ::-1]])
def test_a_wrong_orientation_gives_no_agreement(change: Callable[[Complex], Complex]) -> None:
    found = compute_ring_correlation(change(noise(0, 64)), noise(0, 64))
    assert (found.correlation > found.threshold).sum() <= 1


def test_the_threshold_is_half_a_bit() -> None:
    """At many pixels the criterion is SNR / (1 + SNR) where two halves together carry log₂(1 + 2·SNR) = ½."""
    snr = (np.sqrt(2) - 1) / 2
    assert compute_half_bit_threshold(np.array([1e12]))[0] == pytest.approx(snr / (1 + snr), abs=1e-4)
    assert compute_half_bit_threshold(np.array([1.0]))[0] == pytest.approx(1, abs=1e-4)
    assert (np.diff(compute_half_bit_threshold(np.geomspace(1, 1e6, 50))) < 0).all()


@pytest.mark.parametrize("shapes", [((8, 9), (8, 9)), ((16, 16), (18, 18)), ((7, 7), (7, 7))])
def test_other_shapes_are_refused(shapes: tuple[Any, Any]) -> None:
    with pytest.raises(DataError, match="expected equal squares of at least 8"):
        compute_ring_correlation(np.ones(shapes[0]) + 0j, np.ones(shapes[1]) + 0j)


@pytest.mark.parametrize("seed", range(5))
def test_the_largest_square_is_inside_and_none_is_larger(seed: int) -> None:
    rng = np.random.default_rng(seed)
    region = rng.random((17, 22)) > 0.02
    rows, columns = find_largest_square(region)
    side = rows.stop - rows.start
    assert side == columns.stop - columns.start
    assert side % 2 == 1
    assert region[rows, columns].all()
    larger = side + 2
    windows = np.lib.stride_tricks.sliding_window_view(region, (larger, larger))
    assert not windows.all((2, 3)).any()


def test_no_square_in_an_empty_region() -> None:
    rows, columns = find_largest_square(np.zeros((5, 6), bool))
    assert np.zeros((5, 6))[rows, columns].size == 0
