"""Layers of the U-Net, compared with the layers of torch."""

import pytest
import torch
from torch import nn

from ptycho_torch.models.unet import PixelUnshuffle, Upsample


def randn(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("memory", [torch.contiguous_format, torch.channels_last])
def test_upsample_equals_transposed_convolution_plus_skip(memory: torch.memory_format) -> None:
    layer = Upsample(6, 5).double()
    image, skip = randn(2, 6, 3, 4).to(memory_format=memory), randn(2, 5, 6, 8, seed=1).to(memory_format=memory)
    image.requires_grad_()
    expected = nn.functional.conv_transpose2d(image, layer.weight, layer.bias, stride=2) + skip
    result = layer.upsample_and_add(image, skip)
    torch.testing.assert_close(result, expected, rtol=0, atol=1e-12)
    weights, inputs = randn(*expected.shape, seed=2), (image, layer.weight, layer.bias)
    pairs = zip(
        torch.autograd.grad(result, inputs, weights), torch.autograd.grad(expected, inputs, weights), strict=True
    )
    for gradient, expected_gradient in pairs:
        torch.testing.assert_close(gradient, expected_gradient, rtol=0, atol=1e-12)


@pytest.mark.parametrize("memory", [torch.contiguous_format, torch.channels_last])
def test_unshuffle_equals_pixel_unshuffle_of_torch(memory: torch.memory_format) -> None:
    image = randn(2, 3, 6, 4).to(memory_format=memory)
    torch.testing.assert_close(PixelUnshuffle()(image), nn.functional.pixel_unshuffle(image, 2), rtol=0, atol=0)
