"""Spectral convolutions of the Fourier neural operator: comparison with torch.fft and independence of the grid."""

import pytest
import torch

from ptycho_torch.models.ffno import MAX_FOURIER_MODES, SpectralConvolution, count_fourier_modes, make_fourier_matrix
from ptycho_torch.training.muon import KernelGroup, Muon


def randn(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def make_convolution(channels: int = 5) -> SpectralConvolution:
    layer = SpectralConvolution(channels)
    layer.initialize(torch.Generator().manual_seed(1))
    return layer


@pytest.mark.parametrize("size", [2, 6, 10, 16, 32, 33])
def test_fourier_matrix_projects_on_the_lowest_frequencies(size: int) -> None:
    rows, modes = make_fourier_matrix(size, torch.empty(0)), count_fourier_modes(size)
    assert torch.allclose(rows @ rows.T, torch.diag((rows @ rows.T).diagonal()), atol=1e-5)
    signal = randn(size)
    spectrum = torch.fft.rfft(signal)
    spectrum[modes:] = 0
    assert torch.allclose(rows.T @ (rows @ signal), torch.fft.irfft(spectrum, size), atol=1e-5)


@pytest.mark.parametrize("size", [6, 16, 32])
def test_convolution_equals_the_product_of_spectra(size: int) -> None:
    """Compare with a slow independent version by torch.fft and complex numbers."""
    layer, image = make_convolution(), randn(size, 7, 5)
    spectrum = torch.fft.rfft(image, dim=0)
    modes = count_fourier_modes(size)
    expected = torch.zeros_like(spectrum)
    weight = torch.view_as_complex(layer.weight.detach())
    expected[:modes] = torch.einsum("oik,kpi->kpo", weight[..., :modes], spectrum[:modes])
    assert torch.allclose(layer(image), torch.fft.irfft(expected, size, dim=0), atol=1e-5)


def test_convolution_commutes_with_circular_shifts() -> None:
    layer, image = make_convolution(), randn(24, 3, 5)
    assert torch.allclose(layer(image.roll(7, 0)), layer(image).roll(7, 0), atol=1e-5)


def test_result_does_not_depend_on_the_sampling_of_a_field() -> None:
    """The weights belong to frequencies of the field, not to pixels."""
    layer = make_convolution(2)
    fine = torch.zeros(48, 1, 2)
    for wave in range(MAX_FOURIER_MODES - 3):
        angles = 2 * torch.pi * wave * torch.arange(48) / 48
        fine += torch.cos(angles + wave)[:, None, None] * randn(1, 1, 2, seed=wave)
    assert torch.allclose(layer(fine[::3]), layer(fine)[::3], atol=1e-5)


def test_muon_fits_a_convolution() -> None:
    """Steps of Muon for the stored axis order of the weights decrease the loss."""
    layer, target, image = make_convolution(), SpectralConvolution(5), randn(24, 64, 5)
    target.initialize(torch.Generator().manual_seed(2))
    muon = Muon(KernelGroup([layer.weight], 1.0))
    losses = []
    for step in range(150):
        muon.zero_grad()
        loss = (layer(image) - target(image).detach()).square().mean()
        loss.backward()
        muon.step(0.1 / (1 + step / 10))
        losses.append(loss.item())
    assert losses[-1] < losses[0] / 100
