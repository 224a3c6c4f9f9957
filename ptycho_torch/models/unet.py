"""U-Net (Ronneberger, Fischer & Brox, MICCAI 2015, arXiv:1505.04597) between images of N × N pixels."""

from typing import ClassVar

from torch import Tensor, nn

from ptycho_torch.models.backbone import Backbone


class ResidualBlock(nn.Module):
    """``x + conv(act(x))``, without statistics over the batch: patterns stay independent."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.convolution = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, image: Tensor) -> Tensor:
        """Map (n, channels, rows, columns) to the same shape."""
        return self.convolution(nn.functional.silu(image)).add_(image)  # in place: memory traffic limits the speed


class PixelUnshuffle(nn.Module):
    """Rearrangement of 2 × 2 pixels into four channels: pixel_unshuffle of torch, three times as fast on a CPU."""

    def forward(self, image: Tensor) -> Tensor:
        """Map (n, channels, rows, columns) to (n, 4 channels, rows / 2, columns / 2)."""
        n, channels, rows, columns = image.shape
        squares = image.reshape(n, channels, rows // 2, 2, columns // 2, 2).permute(0, 1, 3, 5, 2, 4)
        return squares.reshape(n, 4 * channels, rows // 2, columns // 2)


class Upsample(nn.ConvTranspose2d):
    """Transposed convolution with kernel and stride 2, computed as one matrix product and a rearrangement.

    Its windows do not overlap: each pixel becomes 2 × 2 pixels independently. On a CPU this is twice as fast as the
    transposed convolution of torch, forward and backward.
    """

    def __init__(self, channels_in: int, channels_out: int) -> None:
        super().__init__(channels_in, channels_out, 2, stride=2)

    def upsample_and_add(self, image: Tensor, skip: Tensor) -> Tensor:
        """Map ``image`` (n, channels_in, rows, columns) and add ``skip`` (n, channels_out, 2 rows, 2 columns)."""
        n, _, rows, columns = image.shape
        assert self.bias is not None
        matrix = self.weight.permute(2, 3, 1, 0).reshape(4 * self.out_channels, self.in_channels)
        squares = nn.functional.linear(image.permute(0, 2, 3, 1), matrix, self.bias.repeat(4))
        squares = squares.view(n, rows, columns, 2, 2, self.out_channels).permute(0, 1, 3, 2, 4, 5)
        enlarged = squares.reshape(n, 2 * rows, 2 * columns, self.out_channels)  # a copy
        return enlarged.add_(skip.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class UNet(Backbone):
    """U-Net with three scales, the finest at half the resolution; skip connections add.

    Args:
        channels_in: channels of the input.
        width: channels of the finest scale; each coarser scale has twice as many as the scale before it.
        channels_out: channels of the output.
    """

    state_key: ClassVar[str] = "unet"
    divisor: ClassVar[int] = 8
    """A factor of 2 for the finest scale and for each of the two coarser scales."""

    def __init__(self, channels_in: int, width: int = 16, channels_out: int = 2) -> None:
        super().__init__(channels_in, width)
        fine, half, quarter = width, 2 * width, 4 * width
        self.input_layer = nn.Sequential(
            PixelUnshuffle(), nn.Conv2d(4 * channels_in, fine, 3, padding=1), ResidualBlock(fine)
        )
        self.down_half = nn.Sequential(nn.Conv2d(fine, half, 2, stride=2), ResidualBlock(half))
        self.down_quarter = nn.Conv2d(half, quarter, 2, stride=2)
        self.bottom = nn.Sequential(*(ResidualBlock(quarter) for _ in range(2)))
        self.up_half = Upsample(quarter, half)
        self.merge_half = ResidualBlock(half)
        self.up_fine = Upsample(half, fine)
        self.merge_fine = ResidualBlock(fine)
        self.output_layer = nn.Conv2d(fine, 4 * channels_out, 3, padding=1)

    def transform(self, image: Tensor) -> Tensor:
        """Map (n, channels_in, N, N) to (n, channels_out, N, N), N divisible by 8."""
        fine = self.input_layer(image)
        half = self.down_half(fine)
        quarter = self.bottom(self.down_quarter(half))
        half = self.merge_half(self.up_half.upsample_and_add(quarter, half))
        fine = self.merge_fine(self.up_fine.upsample_and_add(half, fine))
        return nn.functional.pixel_shuffle(self.output_layer(nn.functional.silu(fine)), 2)
