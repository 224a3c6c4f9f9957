"""Vision transformer (Dosovitskiy et al., ICLR 2021, arXiv:2010.11929) between images of N × N pixels."""

from typing import ClassVar

import torch
from torch import Tensor, nn

from ptycho_torch.models.backbone import Backbone

TOKEN_SIZE_PX = 8
"""Side in pixels of the square that becomes one token."""

NUM_BLOCKS = 3
"""Number of blocks."""

NUM_ATTENTION_HEADS = 4
"""Number of attention heads."""

MLP_RATIO = 2
"""Channels inside a feed-forward layer, per channel of a token."""

MAX_PERIOD_TOKENS = 100.0
"""Longest period of the position embedding, in tokens / 2π; the shortest is 1."""


def make_position_embedding(rows: int, columns: int, channels: int, like: Tensor) -> Tensor:
    """Make the position embedding (rows · columns, channels) of a grid of tokens, relative to its center.

    The first half of the channels are sines and cosines of the row, the second half of the column (Vaswani et al.,
    NeurIPS 2017).

    Args:
        rows: rows of the grid.
        columns: columns of the grid.
        channels: channels of a token, a multiple of 4.
        like: tensor whose device and dtype the embedding gets.
    """
    periods = torch.logspace(0, 1, channels // 4, MAX_PERIOD_TOKENS, device=like.device, dtype=torch.float32)

    def make_waves(count: int) -> Tensor:
        steps = torch.arange(count, device=like.device, dtype=torch.float32) - (count - 1) / 2
        angles = steps[:, None] / periods
        return torch.cat([torch.sin(angles), torch.cos(angles)], -1)

    down, across = make_waves(rows)[:, None].expand(-1, columns, -1), make_waves(columns).expand(rows, -1, -1)
    return torch.cat([down, across], -1).flatten(0, 1).to(like.dtype)


class Block(nn.Module):
    """Attention and a feed-forward layer, each after a layer norm and with a skip connection (pre-norm)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.attention_norm, self.mlp_norm = nn.LayerNorm(channels), nn.LayerNorm(channels)
        self.queries, self.keys, self.values = (nn.Linear(channels, channels) for _ in range(3))
        self.attention_output = nn.Linear(channels, channels)
        self.mlp_expand = nn.Linear(channels, MLP_RATIO * channels)
        self.mlp_project = nn.Linear(MLP_RATIO * channels, channels)

    def forward(self, tokens: Tensor) -> Tensor:
        """Map (n, tokens, channels) to the same shape."""
        normalized = self.attention_norm(tokens)
        queries, keys, values = (
            layer(normalized).unflatten(-1, (NUM_ATTENTION_HEADS, -1)).transpose(1, 2)
            for layer in (self.queries, self.keys, self.values)
        )
        attended = nn.functional.scaled_dot_product_attention(queries, keys, values)
        tokens = tokens + self.attention_output(attended.transpose(1, 2).flatten(2))
        return tokens + self.mlp_project(nn.functional.silu(self.mlp_expand(self.mlp_norm(tokens))))


class ViT(Backbone):
    """Vision transformer with tokens of 8 × 8 pixels; each token attends to all tokens of its pattern.

    Args:
        channels_in: channels of the input.
        width: a sixth of the channels of a token, which are rounded up to a multiple of 8.
    """

    state_key: ClassVar[str] = "vit"
    divisor: ClassVar[int] = TOKEN_SIZE_PX

    def __init__(self, channels_in: int, width: int) -> None:
        super().__init__(channels_in, width)
        channels = -(-6 * width // 8) * 8  # divisible by 4 for attention heads and waves
        self.input_layer = nn.Linear(TOKEN_SIZE_PX**2 * channels_in, channels)
        self.blocks = nn.Sequential(*(Block(channels) for _ in range(NUM_BLOCKS)))
        self.output_norm = nn.LayerNorm(channels)
        self.output_layer = nn.Linear(channels, TOKEN_SIZE_PX**2 * 2)

    def transform(self, image: Tensor) -> Tensor:
        """Map (n, channels_in, N, N) to (n, 2, N, N), N divisible by 8."""
        pixels = nn.functional.pixel_unshuffle(image, TOKEN_SIZE_PX)
        rows, columns = pixels.shape[-2:]
        tokens = self.input_layer(pixels.flatten(2).transpose(1, 2))
        tokens = tokens + make_position_embedding(rows, columns, tokens.shape[-1], tokens)
        outputs = self.output_layer(self.output_norm(self.blocks(tokens)))
        return nn.functional.pixel_shuffle(outputs.transpose(1, 2).unflatten(-1, (rows, columns)), TOKEN_SIZE_PX)
