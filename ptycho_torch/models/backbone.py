"""The interface of a backbone: the learned layers between the physics input and the head."""

from typing import ClassVar

import torch
from torch import Tensor, nn


class Backbone(nn.Module):
    """Map from (n, channels, N, N) to (n, 2, N, N) real, independent per pattern; zero before training.

    A subclass takes the number of input channels and a width, and ends in ``output_layer``.
    """

    state_key: ClassVar[str]
    """Name of the backbone in tensor names of bundles before schema 3."""

    divisor: ClassVar[int]
    """Divisor of the side of an image in :meth:`transform`."""

    output_layer: nn.Module
    """Last layer."""

    def __init__(self, channels_in: int, width: int) -> None:
        super().__init__()

    def initialize(self, generator: torch.Generator) -> None:
        """Draw all weights as the layers of torch do, from ``generator``; set the last layer to zero."""
        for layer in self.modules():
            if isinstance(layer, nn.Conv2d | nn.ConvTranspose2d | nn.Linear):
                bound = layer.weight[0].numel() ** -0.5  # kaiming_uniform with a = √5, and the bound of the bias
                for parameter in layer.parameters():
                    nn.init.uniform_(parameter, -bound, bound, generator=generator)
            elif isinstance(layer, nn.LayerNorm):
                nn.init.ones_(layer.weight)
                nn.init.zeros_(layer.bias)
        for parameter in self.output_layer.parameters():
            nn.init.zeros_(parameter)

    def forward(self, image: Tensor) -> Tensor:
        """Map (n, channels, rows, columns) to (n, 2, rows, columns); zeros pad the sides to the next multiple."""
        rows, columns = image.shape[-2:]
        if rows % self.divisor == columns % self.divisor == 0:
            return self.transform(image)
        top, left = (-rows % self.divisor // 2, -columns % self.divisor // 2)
        bottom, right = -rows % self.divisor - top, -columns % self.divisor - left
        padded = nn.functional.pad(image, (left, right, top, bottom))
        return self.transform(padded)[..., top : top + rows, left : left + columns]

    def transform(self, image: Tensor) -> Tensor:
        """Map (n, channels, rows, columns), sides divisible by :attr:`divisor`, to (n, 2, rows, columns)."""
        raise NotImplementedError
