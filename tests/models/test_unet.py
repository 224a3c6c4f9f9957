"""The U-Net's own layers, against torch's."""

import pytest
import torch
from torch import nn

from ptycho_torch.models.unet import PixelUnshuffle, Upsample


def randn(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("memory", [torch.contiguous_format, torch.channels_last])
def test_upsample_is_a_transposed_convolution_and_a_sum(memory: torch.memory_format) -> None:
    layer = Upsample(6, 5).double()
    image, skip = randn(2, 6, 3, 4).to(memory_format=memory), randn(2, 5, 6, 8, seed=1).to(memory_format=memory)
    image.requires_grad_()
    wanted = nn.functional.conv_transpose2d(image, layer.weight, layer.bias, stride=2) + skip
    found = layer.upsample_and_add(image, skip)
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-12)
    towards, inputs = randn(*wanted.shape, seed=2), (image, layer.weight, layer.bias)
    pairs = zip(torch.autograd.grad(found, inputs, towards), torch.autograd.grad(wanted, inputs, towards), strict=True)
    for mine, theirs in pairs:
        torch.testing.assert_close(mine, theirs, rtol=0, atol=1e-12)


@pytest.mark.parametrize("memory", [torch.contiguous_format, torch.channels_last])
def test_unshuffle_is_that_of_torch(memory: torch.memory_format) -> None:
    image = randn(2, 3, 6, 4).to(memory_format=memory)
    torch.testing.assert_close(PixelUnshuffle()(image), nn.functional.pixel_unshuffle(image, 2), rtol=0, atol=0)
