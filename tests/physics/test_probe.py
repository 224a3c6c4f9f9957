"""Incoherent probe modes: orthogonalization."""

import torch

from ptycho_torch.physics.probe import compute_power, orthogonalize_modes


def test_orthogonalized_modes_predict_the_same_intensity_and_are_ordered_by_power() -> None:
    generator = torch.Generator().manual_seed(0)
    scales = torch.tensor([1.0, 3.0, 2.0])[:, None, None]
    modes = torch.randn(3, 7, 7, dtype=torch.complex128, generator=generator) * scales
    orthogonal = orthogonalize_modes(modes)
    flat = orthogonal.flatten(1)
    products = flat @ flat.mH
    assert (products - torch.diag(torch.diagonal(products))).abs().max() < 1e-10 * products.abs().max()
    assert (torch.diagonal(products).real.diff() < 0).all()
    obj = torch.randn(7, 7, dtype=torch.complex128, generator=generator)
    before, after = (compute_power(torch.fft.fft2(obj * probe)) for probe in (modes, orthogonal))
    torch.testing.assert_close(before, after, rtol=1e-10, atol=1e-10)


def test_orthogonal_modes_are_unchanged() -> None:
    modes = torch.zeros(2, 5, 5, dtype=torch.complex128)
    modes[0, 1, 2], modes[1, 3, 3] = 2j, 1 - 1j
    torch.testing.assert_close(orthogonalize_modes(modes), modes)
