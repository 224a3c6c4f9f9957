"""The Fourier neural operator's convolutions: against torch's FFT, and what makes them an operator on fields."""

import pytest
import torch

from ptycho_torch.models.ffno import MAX_FOURIER_MODES, SpectralConvolution, count_fourier_modes, make_fourier_matrix
from ptycho_torch.training.muon import KernelGroup, Muon


def randn(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def convolution(channels: int = 5) -> SpectralConvolution:
    made = SpectralConvolution(channels)
    made.initialize(torch.Generator().manual_seed(1))
    return made


@pytest.mark.parametrize("size", [2, 6, 10, 16, 32, 33])
def test_rows_keep_the_lowest_frequencies_and_the_energy_in_them(size: int) -> None:
    rows, modes = make_fourier_matrix(size, torch.empty(0)), count_fourier_modes(size)
    assert torch.allclose(rows @ rows.T, torch.diag((rows @ rows.T).diagonal()), atol=1e-5)
    signal = randn(size)
    spectrum = torch.fft.rfft(signal)
    spectrum[modes:] = 0
    assert torch.allclose(rows.T @ (rows @ signal), torch.fft.irfft(spectrum, size), atol=1e-5)


@pytest.mark.parametrize("size", [6, 16, 32])
def test_it_is_the_product_of_spectra(size: int) -> None:
    """A slow independent version, by torch's FFT and complex numbers."""
    layer, image = convolution(), randn(size, 7, 5)
    spectrum = torch.fft.rfft(image, dim=0)
    modes = count_fourier_modes(size)
    found = torch.zeros_like(spectrum)
    weight = torch.view_as_complex(layer.weight.detach())
    found[:modes] = torch.einsum("oik,kpi->kpo", weight[..., :modes], spectrum[:modes])
    assert torch.allclose(layer(image), torch.fft.irfft(found, size, dim=0), atol=1e-5)


def test_what_is_moved_comes_out_moved() -> None:
    layer, image = convolution(), randn(24, 3, 5)
    assert torch.allclose(layer(image.roll(7, 0)), layer(image).roll(7, 0), atol=1e-5)


def test_a_field_gives_the_same_on_a_finer_grid() -> None:
    """The weights belong to waves in the field, not to the pixels that it is sampled with."""
    layer = convolution(2)
    fine = torch.zeros(48, 1, 2)
    for wave in range(MAX_FOURIER_MODES - 3):
        angles = 2 * torch.pi * wave * torch.arange(48) / 48
        fine += torch.cos(angles + wave)[:, None, None] * randn(1, 1, 2, seed=wave)
    assert torch.allclose(layer(fine[::3]), layer(fine)[::3], atol=1e-5)


def test_muon_learns_a_convolution() -> None:
    """Its step for the weights as they are kept, a map from all that is seen to each channel, goes downhill."""
    layer, known, image = convolution(), SpectralConvolution(5), randn(24, 64, 5)
    known.initialize(torch.Generator().manual_seed(2))
    muon = Muon(KernelGroup([layer.weight], 1.0))
    losses = []
    for step in range(150):
        muon.zero_grad()
        loss = (layer(image) - known(image).detach()).square().mean()
        loss.backward()
        muon.step(0.1 / (1 + step / 10))
        losses.append(loss.item())
    assert losses[-1] < losses[0] / 100
