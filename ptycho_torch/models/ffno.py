"""Factorized Fourier neural operator (Tran, Mathews, Xie & Ong, ICLR 2023, arXiv:2111.13802)."""

import math
from typing import ClassVar

import torch
from torch import Tensor, nn

from ptycho_torch.models.backbone import Backbone

NUM_BLOCKS = 3
"""Number of blocks."""

GRID_STEP_PX = 4
"""Side in pixels of the square that becomes one point of the grid."""

MAX_FOURIER_MODES = 8
"""Largest number of frequencies per axis, including zero."""

MLP_RATIO = 2
"""Channels inside a feed-forward layer, per channel of a block."""


def count_fourier_modes(size: int) -> int:
    """Return the number of frequencies of an axis of ``size`` points: without Nyquist, up to a maximum."""
    return min(MAX_FOURIER_MODES, (size + 1) // 2)


def make_fourier_matrix(size: int, like: Tensor) -> Tensor:
    """Make the matrix (2K, size) of the real Fourier transform: cosines of the K lowest frequencies, then minus sines.

    The rows are orthogonal, with a scale for which the transpose inverts the transform for signals of these
    frequencies. A product with so few rows is as fast as an FFT, and gives the same result in every runtime.

    Args:
        size: points along the axis.
        like: tensor whose device and dtype the matrix gets.
    """
    steps = torch.arange(size, device=like.device, dtype=torch.float32)
    frequencies = torch.arange(count_fourier_modes(size), device=like.device, dtype=torch.float32)
    angles = 2 * math.pi / size * torch.remainder(frequencies[:, None] * steps, size)
    scale = torch.where(frequencies == 0, size**-0.5, (2 / size) ** 0.5)[:, None]
    return torch.cat([scale * torch.cos(angles), -scale * torch.sin(angles)]).to(like.dtype)


class SpectralConvolution(nn.Module):
    """Convolution along one axis: one complex matrix between the channels for each of the lowest frequencies.

    The weights are stored as real numbers (channels out, channels in, K, 2), the axis order of a convolution kernel,
    because Muon orthogonalizes a kernel as a matrix with one row per output channel.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(channels, channels, MAX_FOURIER_MODES, 2))

    def initialize(self, generator: torch.Generator) -> None:
        """Draw the weights such that each frequency keeps a third of its power, as in the linear layers of torch."""
        bound = (2 * self.weight.shape[1]) ** -0.5
        nn.init.uniform_(self.weight, -bound, bound, generator=generator)

    def forward(self, image: Tensor) -> Tensor:
        """Convolve (size, points, channels) along the first axis."""
        size, points, channels = image.shape
        rows = make_fourier_matrix(size, image)
        modes = count_fourier_modes(size)
        spectrum = (rows @ image.reshape(size, -1)).reshape(2, modes, points, channels)
        real, imaginary = self.weight[:, :, :modes].permute(3, 2, 1, 0)  # (K, in, out) each
        # (a + ib)(c + id), as one real product from [a, b] to [ac − bd, ad + bc].
        matrix = torch.cat([torch.cat([real, imaginary], -1), torch.cat([-imaginary, real], -1)], -2)
        mixed = torch.cat([spectrum[0], spectrum[1]], -1) @ matrix
        stacked = torch.cat([mixed[..., :channels], mixed[..., channels:]])
        return (rows.T @ stacked.reshape(2 * modes, -1)).reshape(size, points, channels)


class Block(nn.Module):
    """``x + W₂ act(W₁ (x + K_y x + K_x x))``: K_y and K_x convolve along one axis each.

    In the paper the input of the feed-forward layer is only the low frequencies; here the image is added to them,
    because otherwise no block would change fine detail.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.along_rows, self.along_columns = SpectralConvolution(channels), SpectralConvolution(channels)
        self.mlp_expand = nn.Linear(channels, MLP_RATIO * channels)
        self.mlp_project = nn.Linear(MLP_RATIO * channels, channels)

    def forward(self, image: Tensor) -> Tensor:
        """Map (rows, columns, n, channels) to the same shape; this order keeps both transforms matrix products."""
        rows, columns, n, channels = image.shape
        down = self.along_rows(image.reshape(rows, -1, channels)).reshape(image.shape)
        across = self.along_columns(image.transpose(0, 1).reshape(columns, -1, channels))
        combined = image + down + across.reshape(columns, rows, n, channels).transpose(0, 1)
        return image + self.mlp_project(nn.functional.silu(self.mlp_expand(combined)))


class FFNO(Backbone):
    """Fourier neural operator on a grid with a quarter of the resolution.

    Args:
        channels_in: channels of the input.
        width: a third of the channels of a block.
    """

    state_key: ClassVar[str] = "ffno"
    divisor: ClassVar[int] = 8
    """4 for the grid; 8 as for all backbones."""

    def __init__(self, channels_in: int, width: int) -> None:
        super().__init__(channels_in, width)
        channels = 3 * width
        self.input_layer = nn.Linear(GRID_STEP_PX**2 * channels_in, channels)
        self.blocks = nn.Sequential(*(Block(channels) for _ in range(NUM_BLOCKS)))
        self.output_layer = nn.Linear(channels, GRID_STEP_PX**2 * 2)

    def initialize(self, generator: torch.Generator) -> None:
        """Draw all weights, including the spectral convolutions; set the last layer to zero."""
        super().initialize(generator)
        for layer in self.modules():
            if isinstance(layer, SpectralConvolution):
                layer.initialize(generator)

    def transform(self, image: Tensor) -> Tensor:
        """Map (n, channels_in, N, N) to (n, 2, N, N), N divisible by 8."""
        points = nn.functional.pixel_unshuffle(image, GRID_STEP_PX).permute(2, 3, 0, 1)
        mixed = self.output_layer(nn.functional.silu(self.blocks(self.input_layer(points))))
        return nn.functional.pixel_shuffle(mixed.permute(2, 3, 0, 1), GRID_STEP_PX)
