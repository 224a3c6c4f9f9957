"""A small U-Net from channels of N × N pixels to channels of N × N pixels."""

from typing import ClassVar

from torch import Tensor, nn

from ptycho_torch.networks.body import Body


class ResidualBlock(nn.Module):
    """``x + conv(act(x))``. No statistics over the batch, so that patterns stay independent."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.convolution = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, image: Tensor) -> Tensor:
        return self.convolution(nn.functional.silu(image)).add_(image)  # in place: memory is what this costs


class UNet(Body):
    """Three scales, the finest on a grid of half the resolution; skips add; the last layer starts at zero.

    Args:
        channels_in: channels of the input.
        width: channels of the finest scale; each coarser one has twice as many.
        channels_out: channels of the output.
    """

    part: ClassVar[str] = "unet"
    divisor: ClassVar[int] = 8
    """N must be divisible by this: a factor of 2 for the grid of the finest scale and for each coarser one."""

    def __init__(self, channels_in: int, width: int = 16, channels_out: int = 2) -> None:
        super().__init__(channels_in, width)
        fine, half, quarter = width, 2 * width, 4 * width
        self.enter = nn.Sequential(
            nn.PixelUnshuffle(2), nn.Conv2d(4 * channels_in, fine, 3, padding=1), ResidualBlock(fine)
        )
        self.down_half = nn.Sequential(nn.Conv2d(fine, half, 2, stride=2), ResidualBlock(half))
        self.down_quarter = nn.Conv2d(half, quarter, 2, stride=2)
        self.bottom = nn.Sequential(*(ResidualBlock(quarter) for _ in range(2)))
        self.up_half = nn.ConvTranspose2d(quarter, half, 2, stride=2)
        self.merge_half = ResidualBlock(half)
        self.up_fine = nn.ConvTranspose2d(half, fine, 2, stride=2)
        self.merge_fine = ResidualBlock(fine)
        self.leave = nn.Conv2d(fine, 4 * channels_out, 3, padding=1)

    def forward(self, image: Tensor) -> Tensor:
        """Map (n, channels_in, N, N) to (n, channels_out, N, N).

        Raises:
            ConfigError: N is not divisible by 8.
        """
        self.require_divisible(image)
        fine = self.enter(image)
        half = self.down_half(fine)
        quarter = self.bottom(self.down_quarter(half))
        half = self.merge_half(self.up_half(quarter).add_(half))
        fine = self.merge_fine(self.up_fine(half).add_(fine))
        return nn.functional.pixel_shuffle(self.leave(nn.functional.silu(fine)), 2)
