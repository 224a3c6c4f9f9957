"""The interface of a backbone: the learned layers between the physics input and the head."""

from typing import ClassVar

import torch
from torch import Tensor, nn

from ptycho_torch.core.errors import ConfigError


class Backbone(nn.Module):
    """Map from (n, channels, N, N) to (n, 2, N, N) real, independent per pattern; zero before training.

    A subclass takes the number of input channels and a width, and ends in ``output_layer``.
    """

    state_key: ClassVar[str]
    """Name of the backbone in tensor names of bundles before schema 3."""

    divisor: ClassVar[int]
    """Divisor of N."""

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

    def require_divisible(self, image: Tensor) -> None:
        """Raise :class:`ConfigError` unless both sides of ``image`` are divisible by :attr:`divisor`."""
        rows, columns = image.shape[-2:]
        if rows % self.divisor or columns % self.divisor:
            raise ConfigError(
                f"patterns of {rows} × {columns} pixels; expected a side divisible by {self.divisor}; "
                "choose another `network`"
            )
