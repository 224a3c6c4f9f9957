"""Noise models: likelihoods with their minimum at the truth, finite everywhere, and the floor of counting noise."""

import numpy as np
import pytest
import torch
from scipy.stats import poisson

from ptycho_torch.core.errors import ConfigError
from ptycho_torch.physics.noise import (
    NOISE_MODELS,
    GaussianAmplitude,
    NoiseModel,
    Poisson,
    compute_noise_floor,
    make_noise_model,
    masked_mean,
    sum_amplitude_errors,
)

RATES = torch.tensor([0.0, 1e-3, 0.1, 1.0, 7.3, 100.0, 1e5], dtype=torch.float64)


@pytest.fixture(params=sorted(NOISE_MODELS))
def model(request: pytest.FixtureRequest) -> NoiseModel:
    return make_noise_model(request.param)


def test_deviance_is_zero_at_a_perfect_fit_and_positive_elsewhere(model: NoiseModel) -> None:
    rate, count = torch.meshgrid(RATES, RATES, indexing="ij")
    deviance = model.deviance(rate, count)
    same = rate == count
    assert deviance[same].abs().max() < 1e-10
    assert (deviance[~same] > 0).all()


def test_deviance_rises_on_both_sides_of_the_count(model: NoiseModel) -> None:
    counts = torch.full((1000,), 9.0, dtype=torch.float64)
    deviance = model.deviance(torch.linspace(0, 40, 1000, dtype=torch.float64), counts)
    lowest = int(deviance.argmin())
    assert abs(lowest * 40 / 999 - 9) < 0.05
    assert (deviance[:lowest].diff() < 0).all()
    assert (deviance[lowest:].diff() > 0).all()


@pytest.mark.parametrize("truth", [0.02, 0.7, 5.0, 60.0])
def test_expected_poisson_deviance_has_its_minimum_at_the_true_rate(truth: float) -> None:
    counts = torch.arange(0, 400, dtype=torch.float64)
    weights = torch.from_numpy(poisson.pmf(counts.numpy(), truth))
    rate = torch.tensor(truth, dtype=torch.float64, requires_grad=True)
    mean = (weights * make_noise_model("poisson").deviance(rate.expand(400), counts)).sum()
    (gradient,) = torch.autograd.grad(mean, rate)
    assert abs(gradient) < 1e-10
    for other in (0.5 * truth, 2 * truth):
        assert (weights * make_noise_model("poisson").deviance(torch.full_like(counts, other), counts)).sum() > mean


def test_mean_deviance_at_the_truth_is_one_half_at_high_dose(model: NoiseModel) -> None:
    counts = torch.from_numpy(np.random.default_rng(0).poisson(1000, 200_000)).double()
    assert model.deviance(torch.full_like(counts, 1000.0), counts).mean() == pytest.approx(0.5, abs=0.01)


def test_gradient_matches_finite_differences(model: NoiseModel) -> None:
    rate = torch.tensor([0.05, 0.5, 3.0, 200.0], dtype=torch.float64, requires_grad=True)
    count = torch.tensor([0.0, 2.0, 3.0, 170.0], dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda r: model.deviance(r, count), rate, eps=1e-6, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_value_and_gradient_are_finite_at_zero_rate(model: NoiseModel, dtype: torch.dtype) -> None:
    wave = torch.zeros(3, dtype=torch.complex64 if dtype == torch.float32 else torch.complex128, requires_grad=True)
    count = torch.tensor([0.0, 1.0, 1e6], dtype=dtype)
    rate = wave.real.square() + wave.imag.square()
    rate.retain_grad()
    deviance = model.deviance(rate, count)
    deviance.sum().backward()
    assert rate.grad is not None
    assert wave.grad is not None
    for values in (deviance, rate.grad, torch.view_as_real(wave.grad)):
        assert torch.isfinite(values).all()


def _fields(modes: int = 2) -> tuple[torch.Tensor, torch.Tensor]:
    rng = np.random.default_rng(3)
    detector = torch.from_numpy(rng.normal(size=(4, modes, 6, 6)) + 1j * rng.normal(size=(4, modes, 6, 6)))
    return detector, detector.abs().square().sum(-3)


def _update(model: NoiseModel, detector: torch.Tensor, intensity: torch.Tensor, counts: torch.Tensor) -> torch.Tensor:
    return detector * (1 + model.relative_change(intensity, counts))[..., None, :, :]


def test_relative_change_is_zero_at_a_perfect_fit(model: NoiseModel) -> None:
    _, intensity = _fields()
    assert model.relative_change(intensity, intensity).abs().max() < 1e-12


def test_relative_change_moves_the_intensity_toward_the_counts(model: NoiseModel) -> None:
    detector, intensity = _fields()
    counts = intensity * torch.from_numpy(np.random.default_rng(4).uniform(0, 3, intensity.shape))
    updated = _update(model, detector, intensity, counts).abs().square().sum(-3)
    assert ((updated - counts).abs() < (intensity - counts).abs()).all()


def test_relative_change_is_exact_to_first_order(model: NoiseModel) -> None:
    detector, intensity = _fields()
    intensity, detector = intensity * 1e6, detector * 1e3  # the offsets of the noise models are then negligible
    counts = intensity * 1.001
    updated = _update(model, detector, intensity, counts).abs().square().sum(-3)
    assert ((updated - counts) / intensity).abs().max() < 1e-5


def test_amplitude_change_replaces_the_modulus() -> None:
    detector, intensity = _fields(modes=1)
    detector, intensity = 1e3 * detector, 1e6 * intensity  # the offsets of the noise models are then negligible
    updated = _update(make_noise_model("amplitude"), detector, intensity, 100 * intensity + 50)
    assert torch.allclose(updated.abs().square().sum(-3), 100 * intensity + 50, rtol=1e-5)
    assert torch.allclose(updated.angle(), detector.angle())


def test_relative_change_is_finite_at_zero_intensity(model: NoiseModel) -> None:
    assert torch.isfinite(model.relative_change(torch.zeros(1, 4, 4), torch.full((1, 4, 4), 1e6))).all()


def test_limits_bound_the_relative_change() -> None:
    intensity, counts = torch.full((1, 2, 2), 1e-3), torch.full((1, 2, 2), 1e6)
    assert (Poisson(0.25, max_relative_excess=4.0).relative_change(intensity, counts) == 2).all()
    assert (GaussianAmplitude(0.0, max_ratio=10.0).relative_change(intensity, counts) == 9).all()


def test_unknown_noise_model_raises() -> None:
    with pytest.raises(ConfigError, match="`loss` is gamma; expected one of amplitude, poisson"):
        make_noise_model("gamma")


def _floor_by_sum(rate: float) -> float:
    spread = 12 * np.sqrt(rate) + 40
    counts = np.arange(max(0, int(rate - spread)), int(rate + spread))
    return float((poisson.pmf(counts, rate) * (np.sqrt(counts) - np.sqrt(rate)) ** 2).sum())


@pytest.mark.parametrize("rate", [0.001, 0.01, 0.033, 0.1, 0.5, 1.0, 2.7, 10.0, 49.9, 50.1, 300.0, 1e4, 1e6])
def test_noise_floor_is_the_poisson_expectation(rate: float) -> None:
    assert compute_noise_floor(torch.tensor([rate])).item() == pytest.approx(_floor_by_sum(rate), rel=1e-3, abs=1e-5)


@pytest.mark.parametrize(("rate", "floor"), [(0.0, 0.0), (0.01, 0.018), (0.1, 0.14), (1.0, 0.45), (1e5, 0.25)])
def test_noise_floor_at_known_rates(rate: float, floor: float) -> None:
    assert compute_noise_floor(torch.tensor([rate])).item() == pytest.approx(floor, abs=0.006)


def test_noise_floor_matches_simulated_counts() -> None:
    rng = np.random.default_rng(0)
    rates = rng.uniform(0, 5, 100_000)
    errors = (np.sqrt(rng.poisson(rates)) - np.sqrt(rates)) ** 2
    standard_error = errors.std() / np.sqrt(errors.size)
    assert abs(errors.mean() - compute_noise_floor(torch.from_numpy(rates)).mean().item()) < 4 * standard_error


def test_noise_floor_keeps_the_shape() -> None:
    assert compute_noise_floor(torch.ones(3, 5, 7)).shape == (3, 5, 7)


@pytest.mark.parametrize("shape", [None, (4, 4), (1, 4, 4), (3, 4, 4)])
def test_sums_of_amplitude_errors(shape: tuple[int, ...] | None) -> None:
    rates, counts = torch.full((3, 4, 4), 4.0), torch.full((3, 4, 4), 9.0)
    mask = None if shape is None else torch.ones(shape, dtype=torch.bool)
    if mask is not None:
        mask[..., 0] = False
        rates[..., 0] = counts[..., 0] = torch.nan
    pixels = 16 if mask is None else 12
    sums = sum_amplitude_errors(rates, counts, mask)
    for values, expected in zip(sums, (pixels, 9 * pixels, _floor_by_sum(4.0) * pixels, pixels), strict=True):
        assert values.dtype == torch.float64
        np.testing.assert_allclose(values, np.full(3, expected), rtol=1e-4)


@pytest.mark.parametrize("shape", [(4, 4), (1, 4, 4), (3, 4, 4)])
def test_masked_pixels_do_not_count(shape: tuple[int, ...]) -> None:
    mask = torch.ones(shape, dtype=torch.bool)
    mask[..., 1, 2:] = False
    values = torch.arange(48.0).reshape(3, 4, 4)
    corrupted = torch.where(mask, values, torch.full_like(values, float("nan")))
    counted = values[mask.expand_as(values)]
    assert masked_mean(corrupted, mask).item() == pytest.approx(counted.mean().item(), rel=1e-6)


def test_without_a_mask_all_pixels_count() -> None:
    values = torch.arange(48.0).reshape(3, 4, 4)
    assert masked_mean(values, None) == values.mean()
