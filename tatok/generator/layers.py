"""The layers of the generator's transformer, and their cache while it samples.

Shapes: B batch, S tokens, D width, H heads, E head dimension.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

__all__ = ["Cache", "CausalLayer"]


class Cache:
    """Keys and values of one layer, [B, H, S, E], with room for `growth` steps more than were asked for."""

    def __init__(self, growth: int) -> None:
        self.growth = growth
        self.keys: Tensor | None = None
        self.values: Tensor | None = None

    def append(self, keys: Tensor, values: Tensor, length: int) -> tuple[Tensor, Tensor]:
        """Add one step after `length` earlier ones; all steps so far."""
        if self.keys is None or self.values is None:
            self.keys, self.values = keys[:, :, :0], values[:, :, :0]
        if self.keys.shape[2] == length:
            room = (0, 0, 0, self.growth)
            self.keys, self.values = F.pad(self.keys, room), F.pad(self.values, room)
        self.keys[:, :, length : length + 1], self.values[:, :, length : length + 1] = keys, values
        return self.keys[:, :, : length + 1], self.values[:, :, : length + 1]

    def keep(self, rows: Tensor) -> None:
        """Continue with some of the images only."""
        assert self.keys is not None
        assert self.values is not None
        self.keys, self.values = self.keys[rows], self.values[rows]


class CausalLayer(nn.Module):
    """Pre-norm causal self-attention and MLP."""

    def __init__(self, width: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.attention_norm, self.mlp_norm = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv = nn.Linear(width, 3 * width, bias=False)
        self.projection = nn.Linear(width, width)
        self.expand, self.contract = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x_BSD: Tensor, cache: Cache | None = None, length: int = 0) -> Tensor:
        """With a cache, `x_BSD` is the one step after `length` earlier ones."""
        qkv = self.qkv(self.attention_norm(x_BSD)).unflatten(2, (3, self.num_heads, -1))
        query, key, value = qkv.permute(2, 0, 3, 1, 4)
        if cache is not None:
            key, value = cache.append(key, value, length)
        attended = F.scaled_dot_product_attention(query, key, value, is_causal=cache is None)
        x_BSD = x_BSD + self.projection(attended.transpose(1, 2).flatten(2))
        return x_BSD + self.contract(F.gelu(self.expand(self.mlp_norm(x_BSD)), approximate="tanh"))
