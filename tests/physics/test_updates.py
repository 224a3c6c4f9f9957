"""The data-consistency step against the published formulas, written out in NumPy."""

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from ptycho_torch.models.input_lift import backproject_pattern, data_consistency_step
from ptycho_torch.physics.forward import from_patches
from ptycho_torch.physics.noise import GaussianAmplitude, NoiseModel, Poisson, make_noise_model
from ptycho_torch.physics.updates import (
    compute_detector_change,
    compute_exit_wave_change,
    compute_patch_update,
    normalize_by_illumination,
)

ComplexArray = NDArray[np.complex128]
EXACT = 1e-10


class Case:
    """Random patches, probes and counts; ``size`` may be odd."""

    def __init__(self, size: int, modes: int) -> None:
        rng = np.random.default_rng(3)

        def draw(*shape: int) -> ComplexArray:
            return rng.standard_normal(shape) + 1j * rng.standard_normal(shape)

        self.patches, self.probe = draw(3, size, size), 5 * draw(3, modes, size, size)
        self.counts = rng.poisson(40, (3, size, size)).astype(float)
        self.counts[0, :2] = 0
        self.mask = rng.random((3, size, size)) > 0.2

    @property
    def tensors(self) -> tuple[torch.Tensor, ...]:
        return tuple(map(torch.from_numpy, (self.patches, self.probe, self.counts, self.mask)))


@pytest.fixture(params=[(8, 1), (7, 3)], ids=str)
def case(request: pytest.FixtureRequest) -> Case:
    return Case(*request.param)


def compute_slowly(
    case: Case, model: str, offset: float, fraction: float, limit: float, mask: bool
) -> tuple[ComplexArray, ComplexArray]:
    """Return the change of the exit waves (n, M, N, N) and the update Σ P* Δψ (n, N, N)."""
    changes, updates = np.zeros_like(case.probe), np.zeros_like(case.patches)
    for n in range(len(case.patches)):
        waves = [np.fft.fft2(mode * case.patches[n], norm="ortho") for mode in case.probe[n]]
        rate = sum(np.abs(wave) ** 2 for wave in waves)
        if model == "amplitude":
            ratio = np.sqrt(case.counts[n] + offset) / np.sqrt(rate + offset + fraction * rate.max())
            factor = np.minimum(ratio, limit) - 1
        else:
            factor = np.minimum((case.counts[n] - rate) / (rate + offset), limit) / 2
        if mask:
            factor[~case.mask[n]] = 0
        for m, wave in enumerate(waves):
            changes[n, m] = np.fft.ifft2(wave * factor, norm="ortho")
            updates[n] += case.probe[n, m].conj() * changes[n, m]
    return changes, updates


@pytest.mark.parametrize("mask", [False, True])
@pytest.mark.parametrize(
    ("noise", "slow"),
    [
        (make_noise_model("amplitude"), ("amplitude", 1e-3, 0.0, np.inf)),
        (make_noise_model("poisson"), ("poisson", 0.1, 0.0, 10.0)),
        (Poisson(0.1, None), ("poisson", 0.1, 0.0, np.inf)),
        (GaussianAmplitude(0.0, 1e-6, 10.0), ("amplitude", 0.0, 1e-6, 10.0)),
        (GaussianAmplitude(0.0, 1e-6, 1.1), ("amplitude", 0.0, 1e-6, 1.1)),
        (Poisson(0.25, 4.0), ("poisson", 0.25, 0.0, 4.0)),
        (Poisson(0.25, 0.5), ("poisson", 0.25, 0.0, 0.5)),
    ],
    ids=str,
)
def test_exit_wave_change_is_the_explicit_formula(
    case: Case, noise: NoiseModel, slow: tuple[str, float, float, float], mask: bool
) -> None:
    patches, probe, counts, used = case.tensors
    fields = from_patches(patches, probe)
    change = compute_exit_wave_change(fields.detector, fields.intensity, counts, used if mask else None, noise)
    expected, _ = compute_slowly(case, *slow, mask)
    assert np.abs(change.numpy() - expected).max() < EXACT * np.abs(expected).max()


def test_modulus_projection_gives_the_measured_amplitudes(case: Case) -> None:
    patches, probe, counts, _ = case.tensors
    fields = from_patches(patches, probe)
    change = compute_detector_change(fields.detector, fields.intensity, counts, None, GaussianAmplitude(0.0))
    updated = (fields.detector + change).abs().square().sum(-3)
    assert (updated - counts).abs().max() < EXACT * counts.max()


def test_masked_values_that_are_not_finite_do_not_matter(case: Case) -> None:
    patches, probe, counts, mask = case.tensors
    fields = from_patches(patches, probe)
    invalid = torch.where(mask, counts, torch.nan)
    changes = [
        compute_exit_wave_change(fields.detector, fields.intensity, values, mask, make_noise_model("amplitude"))
        for values in (counts, invalid)
    ]
    assert torch.equal(*changes)


def test_network_step_is_the_explicit_formula(case: Case) -> None:
    patches, probe, counts, mask = case.tensors
    _, update = compute_slowly(case, "amplitude", 0.0, 1e-6, 10.0, True)
    power = (np.abs(case.probe) ** 2).sum(1)
    expected = update / (power + 0.02 * power.max((1, 2), keepdims=True))
    step = data_consistency_step(patches, counts.sqrt(), probe, mask)
    assert np.abs(step.numpy() - expected).max() < EXACT


def test_backprojection_is_the_explicit_formula(case: Case) -> None:
    _, probe, counts, _ = case.tensors
    expected = np.zeros_like(case.patches)
    for n in range(len(expected)):
        waves = [np.fft.fft2(mode, norm="ortho") for mode in case.probe[n]]
        amplitude = np.sqrt(sum(np.abs(wave) ** 2 for wave in waves))
        ratio = np.sqrt(case.counts[n]) / np.maximum(amplitude, 1e-6 * amplitude.max())
        power = (np.abs(case.probe[n]) ** 2).sum(0)
        for mode, wave in zip(case.probe[n], waves, strict=True):
            expected[n] += mode.conj() * np.fft.ifft2(wave * ratio, norm="ortho")
        expected[n] /= power + 0.02 * power.max()
    assert np.abs(backproject_pattern(counts.sqrt(), probe).numpy() - expected).max() < EXACT


def test_patch_update_is_normalized_by_the_illumination(case: Case) -> None:
    patches, probe, _, _ = case.tensors
    change = patches[:, None] * probe  # an update of exactly the patches, without regularization
    assert (compute_patch_update(change, probe, 0.0) - patches).abs().max() < EXACT


def test_illumination_of_a_canvas_is_regularized_by_its_maximum() -> None:
    illumination = torch.tensor([[0.0, 1.0, 4.0], [2.0, 0.0, 0.0]], dtype=torch.float64)
    direction = torch.ones_like(illumination) + 1j
    expected = direction / (illumination + 0.02 * 4)
    assert (normalize_by_illumination(direction, illumination, 0.02) - expected).abs().max() < EXACT


def test_network_step_is_differentiable_at_zero_counts(case: Case) -> None:
    patches, probe, counts, _ = case.tensors
    patches = patches.requires_grad_()
    data_consistency_step(patches, (0 * counts).sqrt(), probe).abs().square().sum().backward()
    assert patches.grad is not None
    assert torch.isfinite(torch.view_as_real(patches.grad)).all()
