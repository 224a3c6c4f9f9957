"""The eight orientations of a detector."""

import numpy as np
import pytest

from ptycho_torch.core.errors import ConfigError
from ptycho_torch.data.orientation import ORIENTATIONS, Orientation

EACH = pytest.mark.parametrize("orientation", ORIENTATIONS, ids=str)


def make_patterns(rows: int, columns: int) -> np.ndarray:
    return np.arange(2 * rows * columns).reshape(2, rows, columns)


@EACH
@pytest.mark.parametrize("shape", [(6, 6), (7, 7), (6, 9)])
def test_zero_frequency_stays_at_the_middle_pixel(orientation: Orientation, shape: tuple[int, int]) -> None:
    patterns = make_patterns(*shape)
    oriented = orientation.apply(patterns)
    middle = tuple(length // 2 for length in oriented.shape[1:])
    np.testing.assert_array_equal(oriented[:, *middle], patterns[:, shape[0] // 2, shape[1] // 2])


@EACH
def test_the_matrix_maps_each_pixel_to_its_place(orientation: Orientation) -> None:
    pattern = np.zeros((7, 7))
    pattern[3 + 1, 3 + 2] = 1
    row, column = np.argwhere(orientation.apply(pattern))[0] - 3
    np.testing.assert_array_equal(orientation.matrix @ (1, 2), (row, column))


@EACH
@pytest.mark.parametrize("shape", [(6, 6), (7, 5)])
def test_the_inverse_restores_the_patterns(orientation: Orientation, shape: tuple[int, int]) -> None:
    patterns = make_patterns(*shape)
    np.testing.assert_array_equal(orientation.inverse.apply(orientation.apply(patterns)), patterns)


@EACH
def test_a_sequence_of_two_orientations_is_one_orientation(orientation: Orientation) -> None:
    patterns = make_patterns(6, 6)
    for after in ORIENTATIONS:
        np.testing.assert_array_equal(
            orientation.then(after).apply(patterns), after.apply(orientation.apply(patterns)), str(after)
        )


@pytest.mark.parametrize("code", range(8))
def test_a_code_transposes_before_it_flips(code: int) -> None:
    patterns = make_patterns(7, 7)  # odd: a flip about the middle pixel is a plain reversal
    expected = patterns.swapaxes(1, 2) if code & 4 else patterns
    expected = expected[:, ::-1] if code & 2 else expected
    expected = expected[:, :, ::-1] if code & 1 else expected
    np.testing.assert_array_equal(Orientation.from_code(code).apply(patterns), expected)
    assert Orientation.from_code(code).code == code


def test_a_flip_of_patterns_and_of_the_exit_wave_are_the_same() -> None:
    rng = np.random.default_rng(0)
    wave = rng.normal(size=(8, 8)) + 1j * rng.normal(size=(8, 8))

    def measure(wave: np.ndarray) -> np.ndarray:
        return np.abs(np.fft.fftshift(np.fft.fft2(np.fft.ifftshift(wave)))) ** 2

    for orientation in ORIENTATIONS:
        np.testing.assert_allclose(
            measure(orientation.apply(wave)), orientation.apply(measure(wave)), rtol=1e-9, err_msg=str(orientation)
        )


def test_a_code_out_of_range_is_refused() -> None:
    with pytest.raises(ConfigError, match="is 8; expected a whole number from 0 to 7"):
        Orientation.from_code(8)
