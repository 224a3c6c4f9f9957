"""A factorised Fourier neural operator (Tran, Mathews, Xie & Ong, ICLR 2023, arXiv:2111.13802)."""

import math
from typing import ClassVar

import torch
from torch import Tensor, nn

from ptycho_torch.models.backbone import Backbone

NUM_BLOCKS = 3
"""Blocks."""

GRID_STEP_PX = 4
"""Pixels along a side of what becomes a point of the grid."""

MAX_FOURIER_MODES = 8
"""Most frequencies that are kept along an axis, zero among them."""

MLP_RATIO = 2
"""Channels within a feed-forward layer, in those of a block."""


def count_fourier_modes(size: int) -> int:
    """Return the number of frequencies of an axis of ``size`` points: without Nyquist, up to a maximum."""
    return min(MAX_FOURIER_MODES, (size + 1) // 2)


def make_fourier_matrix(size: int, like: Tensor) -> Tensor:
    """Rows (2K, size) of the real Fourier transform: cosines of the K lowest frequencies, then minus their sines.

    Orthonormal but for the scale, which is such that the transpose brings a signal of these frequencies back.
    Products with so few rows are as fast as an FFT, and any runtime computes them alike.
    """
    steps = torch.arange(size, device=like.device, dtype=torch.float32)
    frequencies = torch.arange(count_fourier_modes(size), device=like.device, dtype=torch.float32)
    angles = 2 * math.pi / size * torch.remainder(frequencies[:, None] * steps, size)
    scale = torch.where(frequencies == 0, size**-0.5, (2 / size) ** 0.5)[:, None]
    return torch.cat([scale * torch.cos(angles), -scale * torch.sin(angles)]).to(like.dtype)


class SpectralConvolution(nn.Module):
    """A convolution along one axis, as a complex matrix between the channels for each of the lowest frequencies.

    The matrices are kept as real numbers (channels out, channels in, K, 2), so that an optimiser for kernels takes
    them for what they are: a map from everything that is seen to each channel.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(channels, channels, MAX_FOURIER_MODES, 2))

    def initialize(self, generator: torch.Generator) -> None:
        """Draw the weights so that each frequency keeps its power but for a third, as in torch's linear layers."""
        bound = (2 * self.weight.shape[1]) ** -0.5
        nn.init.uniform_(self.weight, -bound, bound, generator=generator)

    def forward(self, image: Tensor) -> Tensor:
        """Along the first axis of (size, points, channels)."""
        size, points, channels = image.shape
        rows = make_fourier_matrix(size, image)
        modes = count_fourier_modes(size)
        seen = (rows @ image.reshape(size, -1)).reshape(2, modes, points, channels)
        real, imaginary = self.weight[:, :, :modes].permute(3, 2, 1, 0)  # (K, in, out) each
        # (a + ib)(c + id), as one real product from [a, b] to [ac − bd, ad + bc].
        matrix = torch.cat([torch.cat([real, imaginary], -1), torch.cat([-imaginary, real], -1)], -2)
        mixed = torch.cat([seen[0], seen[1]], -1) @ matrix
        stacked = torch.cat([mixed[..., :channels], mixed[..., channels:]])
        return (rows.T @ stacked.reshape(2 * modes, -1)).reshape(size, points, channels)


class Block(nn.Module):
    """``x + W₂ act(W₁ (x + K_y x + K_x x))``: K_y and K_x convolve along one axis each.

    The paper's feed-forward layer sees the kept frequencies alone; here it sees the image beside them, without which
    fine detail would pass all blocks untouched.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.along_rows, self.along_columns = SpectralConvolution(channels), SpectralConvolution(channels)
        self.mlp_expand = nn.Linear(channels, MLP_RATIO * channels)
        self.mlp_project = nn.Linear(MLP_RATIO * channels, channels)

    def forward(self, image: Tensor) -> Tensor:
        """Of (rows, columns, n, channels): an axis is then in front for one product and second for the other."""
        rows, columns, n, channels = image.shape
        down = self.along_rows(image.reshape(rows, -1, channels)).reshape(image.shape)
        across = self.along_columns(image.transpose(0, 1).reshape(columns, -1, channels))
        seen = image + down + across.reshape(columns, rows, n, channels).transpose(0, 1)
        return image + self.mlp_project(nn.functional.silu(self.mlp_expand(seen)))


class FFNO(Backbone):
    """Blocks of convolutions by their lowest frequencies, on a grid of a quarter of the resolution.

    Args:
        channels_in: channels of the input.
        width: a block has three times as many channels.
    """

    state_key: ClassVar[str] = "ffno"
    divisor: ClassVar[int] = 8
    """The grid needs 4; 8 is what all networks take."""

    def __init__(self, channels_in: int, width: int) -> None:
        super().__init__(channels_in, width)
        channels = 3 * width
        self.input_layer = nn.Linear(GRID_STEP_PX**2 * channels_in, channels)
        self.blocks = nn.Sequential(*(Block(channels) for _ in range(NUM_BLOCKS)))
        self.output_layer = nn.Linear(channels, GRID_STEP_PX**2 * 2)

    def initialize(self, generator: torch.Generator) -> None:
        super().initialize(generator)
        for layer in self.modules():
            if isinstance(layer, SpectralConvolution):
                layer.initialize(generator)

    def forward(self, image: Tensor) -> Tensor:
        """Map (n, channels_in, N, N) to (n, 2, N, N).

        Raises:
            ConfigError: N is not divisible by 8.
        """
        self.require_divisible(image)
        points = nn.functional.pixel_unshuffle(image, GRID_STEP_PX).permute(2, 3, 0, 1)
        mixed = self.output_layer(nn.functional.silu(self.blocks(self.input_layer(points))))
        return nn.functional.pixel_shuffle(mixed.permute(2, 3, 0, 1), GRID_STEP_PX)
