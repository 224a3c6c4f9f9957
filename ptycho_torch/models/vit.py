"""A small vision transformer (Dosovitskiy et al., ICLR 2021) from channels of N × N pixels to two of N × N pixels."""

from typing import ClassVar

import torch
from torch import Tensor, nn

from ptycho_torch.models.backbone import Backbone

TOKEN_SIZE_PX = 8
"""Side of what becomes a token, in pixels."""

NUM_BLOCKS = 3
"""Blocks."""

NUM_ATTENTION_HEADS = 4
"""Heads of attention."""

MLP_RATIO = 2
"""Channels within a feed-forward layer, in those of a token."""

MAX_PERIOD_TOKENS = 100.0
"""Period of the slowest wave that says where a token is, in tokens over 2π; the fastest has 1."""


def make_position_embedding(rows: int, columns: int, channels: int, like: Tensor) -> Tensor:
    """Waves (rows · columns, channels) that tell a token where it is from the middle, for a grid of any size.

    Sines and cosines (Vaswani et al., 2017) of the row in the first half of the channels, of the column in the second.
    """
    periods = torch.logspace(0, 1, channels // 4, MAX_PERIOD_TOKENS, device=like.device, dtype=torch.float32)

    def waves(count: int) -> Tensor:
        steps = torch.arange(count, device=like.device, dtype=torch.float32) - (count - 1) / 2
        angles = steps[:, None] / periods
        return torch.cat([torch.sin(angles), torch.cos(angles)], -1)

    down, across = waves(rows)[:, None].expand(-1, columns, -1), waves(columns).expand(rows, -1, -1)
    return torch.cat([down, across], -1).flatten(0, 1).to(like.dtype)


class Block(nn.Module):
    """Attention, then a feed-forward layer, each behind a norm and beside a way past it (pre-norm)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.attention_norm, self.mlp_norm = nn.LayerNorm(channels), nn.LayerNorm(channels)
        self.queries, self.keys, self.values = (nn.Linear(channels, channels) for _ in range(3))
        self.attention_output = nn.Linear(channels, channels)
        self.mlp_expand = nn.Linear(channels, MLP_RATIO * channels)
        self.mlp_project = nn.Linear(MLP_RATIO * channels, channels)

    def forward(self, tokens: Tensor) -> Tensor:
        """Of (n, tokens, channels)."""
        normalized = self.attention_norm(tokens)
        queries, keys, values = (
            layer(normalized).unflatten(-1, (NUM_ATTENTION_HEADS, -1)).transpose(1, 2)
            for layer in (self.queries, self.keys, self.values)
        )
        attended = nn.functional.scaled_dot_product_attention(queries, keys, values)
        tokens = tokens + self.attention_output(attended.transpose(1, 2).flatten(2))
        return tokens + self.mlp_project(nn.functional.silu(self.mlp_expand(self.mlp_norm(tokens))))


class ViT(Backbone):
    """Tokens of 8 × 8 pixels, each of which attends to all others of its pattern.

    Args:
        channels_in: channels of the input.
        width: a token has six times as many channels, rounded up to a multiple of 8.
    """

    state_key: ClassVar[str] = "vit"
    divisor: ClassVar[int] = TOKEN_SIZE_PX

    def __init__(self, channels_in: int, width: int) -> None:
        super().__init__(channels_in, width)
        channels = -(-6 * width // 8) * 8  # which heads and waves divide
        self.input_layer = nn.Linear(TOKEN_SIZE_PX**2 * channels_in, channels)
        self.blocks = nn.Sequential(*(Block(channels) for _ in range(NUM_BLOCKS)))
        self.output_norm = nn.LayerNorm(channels)
        self.output_layer = nn.Linear(channels, TOKEN_SIZE_PX**2 * 2)

    def forward(self, image: Tensor) -> Tensor:
        """Map (n, channels_in, N, N) to (n, 2, N, N).

        Raises:
            ConfigError: N is not divisible by 8.
        """
        self.require_divisible(image)
        pixels = nn.functional.pixel_unshuffle(image, TOKEN_SIZE_PX)
        rows, columns = pixels.shape[-2:]
        tokens = self.input_layer(pixels.flatten(2).transpose(1, 2))
        tokens = tokens + make_position_embedding(rows, columns, tokens.shape[-1], tokens)
        outputs = self.output_layer(self.output_norm(self.blocks(tokens)))
        return nn.functional.pixel_shuffle(outputs.transpose(1, 2).unflatten(-1, (rows, columns)), TOKEN_SIZE_PX)
