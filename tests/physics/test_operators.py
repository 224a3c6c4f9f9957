"""Identities of the operators, in float64, on odd, even and non-square shapes."""

import numpy as np
import pytest
import torch
from torch import Tensor

from ptycho_torch.physics.forward import (
    backpropagate_detector_waves,
    compute_detector_waves,
    compute_exit_waves,
    from_object,
    from_patches,
    from_vacuum,
    project_onto_patches,
    shift_probe,
)
from ptycho_torch.physics.fourier import far_field, fourier_shift, inverse_far_field
from ptycho_torch.physics.patches import extract_patches, make_canvas, place_patches, split_positions

EXACT = 1e-10


def waves(rng: np.random.Generator, *shape: int) -> Tensor:
    return torch.from_numpy(rng.standard_normal(shape) + 1j * rng.standard_normal(shape))


def inner(a: Tensor, b: Tensor) -> complex:
    return complex((a.conj() * b).sum())


def assert_adjoint(left: complex, right: complex) -> None:
    """Real and imaginary parts apart: a forgotten conjugate shows in one of them."""
    assert left.real == pytest.approx(right.real, rel=EXACT, abs=EXACT)
    assert left.imag == pytest.approx(right.imag, rel=EXACT, abs=EXACT)


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(7)


@pytest.mark.parametrize("size", [5, 8, 13])
def test_far_field_is_the_explicit_sum(rng: np.random.Generator, size: int) -> None:
    wave = waves(rng, size, size)
    k = np.arange(size)
    kernel = np.exp(-2j * np.pi * np.outer(k, k) / size) / np.sqrt(size)
    assert np.abs(far_field(wave).numpy() - kernel @ wave.numpy() @ kernel.T).max() < EXACT


@pytest.mark.parametrize("size", [7, 8])
def test_far_field_keeps_energy_and_its_adjoint_is_its_inverse(rng: np.random.Generator, size: int) -> None:
    x, y = waves(rng, 3, size, size), waves(rng, 3, size, size)
    assert float(far_field(x).abs().square().sum()) == pytest.approx(float(x.abs().square().sum()), rel=EXACT)
    assert_adjoint(inner(far_field(x), y), inner(x, inverse_far_field(y)))
    assert (inverse_far_field(far_field(x)) - x).abs().max() < EXACT


@pytest.mark.parametrize("shape", [(7, 10), (8, 8), (9, 5)])
def test_shift_is_undone_by_its_opposite_which_is_its_adjoint(rng: np.random.Generator, shape: tuple[int, int]) -> None:
    shifts = torch.tensor([[0.3, -0.45], [0.0, 0.2]], dtype=torch.float64)
    x, y = waves(rng, 2, *shape), waves(rng, 2, *shape)
    assert (fourier_shift(fourier_shift(x, shifts), -shifts) - x).abs().max() < EXACT
    assert_adjoint(inner(fourier_shift(x, shifts), y), inner(x, fourier_shift(y, -shifts)))
    assert float(fourier_shift(x, shifts).abs().square().sum()) == pytest.approx(float(x.abs().square().sum()))


def test_a_positive_shift_moves_content_to_higher_rows_and_columns() -> None:
    image = torch.zeros(1, 9, 12, dtype=torch.complex128)
    image[0, 2, 3] = 1
    moved = fourier_shift(image, torch.tensor([[2.0, 5.0]], dtype=torch.float64)).real
    assert np.unravel_index(int(moved.argmax()), (9, 12)) == (4, 8)
    assert moved.max() == pytest.approx(1.0)


def test_fractional_shift_is_exact_for_a_band_limited_wave() -> None:
    y, x = np.meshgrid(np.arange(16), np.arange(16), indexing="ij")

    def wave(dy: float, dx: float) -> np.ndarray:
        return np.exp(2j * np.pi * (3 * (y - dy) - 2 * (x - dx)) / 16)

    moved = fourier_shift(torch.from_numpy(wave(0, 0))[None], torch.tensor([[0.37, -0.21]], dtype=torch.float64))
    assert np.abs(moved[0].numpy() - wave(0.37, -0.21)).max() < EXACT


@pytest.mark.parametrize("size", [4, 5])
def test_extract_and_place_are_adjoint_and_match_loops(rng: np.random.Generator, size: int) -> None:
    rows, columns = 11, 14
    corners = torch.tensor([[0, 0], [3, 2], [3, 2], [rows - size, columns - size]])
    obj, patches = waves(rng, rows, columns), waves(rng, 4, size, size)
    cut, placed = extract_patches(obj, corners, size), place_patches(patches, corners, (rows, columns))
    slow = np.zeros((rows, columns), complex)
    for patch, (r, c) in zip(patches.numpy(), corners.tolist(), strict=True):
        slow[r : r + size, c : c + size] += patch
    for patch, (r, c) in zip(cut, corners.tolist(), strict=True):
        assert torch.equal(patch, obj[r : r + size, c : c + size])
    assert np.abs(placed.numpy() - slow).max() < EXACT
    assert_adjoint(inner(cut, patches), inner(obj, placed))


def test_placing_ones_counts_the_hits() -> None:
    corners = torch.tensor([[0, 0], [1, 2], [4, 4]])
    hits = place_patches(torch.ones(3, 3, 3), corners, (7, 8))
    assert hits.sum() == 27
    assert hits[1, 2] == 2
    assert hits[6, 0] == 0


@pytest.mark.parametrize("corner", [(-1, 0), (0, -1), (5, 0), (0, 8)])
def test_a_window_outside_the_object_is_refused(corner: tuple[int, int]) -> None:
    corners = torch.tensor([corner])
    with pytest.raises(IndexError, match="reach outside"):
        extract_patches(torch.ones(8, 11), corners, 4)
    with pytest.raises(IndexError, match="reach outside"):
        place_patches(torch.ones(1, 4, 4), corners, (8, 11))


@pytest.mark.parametrize("size", [4, 7])
def test_a_position_is_corner_plus_half_a_window_plus_fraction(size: int) -> None:
    positions = torch.tensor([[10.0, -3.25], [0.5, 7.49], [-8.5, 1e6 + 0.125]], dtype=torch.float64)
    placement = split_positions(positions, size)
    assert torch.equal(placement.corners + size // 2 + placement.fractions, positions)
    assert placement.fractions.min() >= -0.5
    assert placement.fractions.max() < 0.5
    assert placement.corners.dtype == torch.int64


def test_the_frame_holds_every_window_and_two_pixels_more() -> None:
    frame = make_canvas(torch.tensor([[3, -4], [9, 0]]), 5)
    assert frame.origin == (1, -6)
    assert frame.shape == (9 + 5 + 2 - 1, 0 + 5 + 2 + 6)


def slow_patterns(obj: np.ndarray, modes: np.ndarray, positions: np.ndarray) -> np.ndarray:
    """The forward model in numpy, one position and one mode at a time, with sums for the Fourier transforms."""
    size = modes.shape[-1]
    k = np.arange(size)
    dft = np.exp(-2j * np.pi * np.outer(k, k) / size) / np.sqrt(size)
    frequency = np.fft.fftfreq(size)
    out = np.zeros((len(positions), size, size))
    for i, position in enumerate(positions):
        corner = np.floor(position - size // 2 + 0.5).astype(int)
        fraction = position - size // 2 - corner
        ramp = np.exp(-2j * np.pi * frequency * fraction[0])[:, None] * np.exp(-2j * np.pi * frequency * fraction[1])
        for mode in modes:
            moved = dft.conj() @ (dft @ mode @ dft.T * ramp) @ dft.conj().T
            window = obj[corner[0] : corner[0] + size, corner[1] : corner[1] + size]
            out[i] += np.abs(dft @ (moved * window) @ dft.T) ** 2
    return out


@pytest.mark.parametrize("size", [6, 9])
def test_forward_model_matches_a_slow_independent_one(rng: np.random.Generator, size: int) -> None:
    obj, modes = waves(rng, 21, 26), waves(rng, 2, size, size)
    positions = np.array([[6.2, 7.8], [10.5, 13.49], [8.0, 9.0]])
    fast = from_object(obj, modes, torch.from_numpy(positions)).intensity.numpy()
    slow = slow_patterns(obj.numpy(), modes.numpy(), positions)
    assert np.abs(fast - slow).max() < EXACT * slow.max()


def test_incoherent_modes_add_intensities(rng: np.random.Generator) -> None:
    obj, modes = waves(rng, 20, 22), waves(rng, 3, 8, 8)
    positions = torch.tensor([[8.3, 9.1], [11.0, 12.6]], dtype=torch.float64)
    together = from_object(obj, modes, positions, background=2.5).intensity
    apart = sum(from_object(obj, mode[None], positions).intensity for mode in modes)
    assert (together - apart - 2.5).abs().max() < EXACT * together.max()


def test_moving_object_and_positions_together_changes_nothing(rng: np.random.Generator) -> None:
    obj, probe = waves(rng, 30, 31), waves(rng, 1, 8, 8)
    positions = torch.tensor([[10.3, 12.7], [14.9, 9.2]], dtype=torch.float64)
    moved = torch.roll(obj, (3, -2), (0, 1))
    before = from_object(obj, probe, positions).intensity
    after = from_object(moved, probe, positions + torch.tensor([3.0, -2.0])).intensity
    wrong = from_object(moved, probe, positions - torch.tensor([3.0, -2.0])).intensity
    assert (before - after).abs().max() < EXACT * before.max()
    assert (before - wrong).abs().max() > 0.1 * before.max()


def test_a_free_global_phase_and_the_energy_of_the_exit_wave(rng: np.random.Generator) -> None:
    obj, probe = waves(rng, 20, 20), waves(rng, 2, 8, 8)
    positions = torch.tensor([[9.4, 10.1]], dtype=torch.float64)
    fields = from_object(obj, probe, positions)
    turned = from_object(obj * np.exp(0.7j), probe, positions)
    assert (fields.intensity - turned.intensity).abs().max() < EXACT * fields.intensity.max()
    assert float(fields.intensity.sum()) == pytest.approx(float(fields.exit.abs().square().sum()), rel=EXACT)


def test_linear_part_of_the_forward_model_has_its_adjoint(rng: np.random.Generator) -> None:
    """Object → far field, and back: inverse far field, conjugate probe, place."""
    shape, size = (19, 23), 8
    obj, probe = waves(rng, *shape), waves(rng, 2, size, size)
    positions = torch.tensor([[8.2, 9.7], [10.6, 12.1]], dtype=torch.float64)
    placement = split_positions(positions, size)
    moved = shift_probe(probe, placement.fractions)
    y = waves(rng, 2, 2, size, size)
    back = place_patches(backpropagate_detector_waves(y, moved), placement.corners, shape)
    assert_adjoint(inner(from_object(obj, probe, positions).detector, y), inner(obj, back))


@pytest.mark.parametrize(("modes", "size"), [(1, 8), (3, 7)])
def test_operators_on_patches_have_their_adjoints(rng: np.random.Generator, modes: int, size: int) -> None:
    patches, probe, y = waves(rng, 4, size, size), waves(rng, 4, modes, size, size), waves(rng, 4, modes, size, size)
    assert_adjoint(inner(compute_exit_waves(patches, probe), y), inner(patches, project_onto_patches(y, probe)))
    back = backpropagate_detector_waves(y, probe)
    assert_adjoint(inner(compute_detector_waves(patches, probe), y), inner(patches, back))


def test_vacuum_is_a_patch_of_ones(rng: np.random.Generator) -> None:
    probe = waves(rng, 3, 2, 7, 7)
    vacuum, ones = from_vacuum(probe, 1.5), from_patches(torch.ones(3, 7, 7, dtype=probe.dtype), probe, 1.5)
    for field, expected in zip(vacuum, ones, strict=True):
        assert torch.equal(field, expected)


def test_gradients_match_finite_differences(rng: np.random.Generator) -> None:
    obj = waves(rng, 12, 13).requires_grad_()
    probe = waves(rng, 1, 6, 6).requires_grad_()
    positions = torch.tensor([[5.3, 6.6], [7.0, 5.2]], dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda o, p: from_object(o, p, positions).intensity, (obj, probe))


def test_prediction_from_object_equals_prediction_from_its_patches(rng: np.random.Generator) -> None:
    obj, probe = waves(rng, 18, 18), waves(rng, 1, 8, 8)
    positions = torch.tensor([[8.4, 9.3]], dtype=torch.float64)
    placement = split_positions(positions, 8)
    whole = from_object(obj, probe, positions)
    half = from_patches(extract_patches(obj, placement.corners, 8), shift_probe(probe, placement.fractions))
    assert torch.equal(whole.intensity, half.intensity)
