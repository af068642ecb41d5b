"""Transformer layers over tokens that carry 2-D coordinates (rotary positions), so weights fit any grid size.

Shapes: B batch, L tokens, D width, H heads, E head dimension.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tatok.model.tables import tables_of

__all__ = ["Transformer", "rotary_angles"]

ROTARY_BASE = 100.0
"""Longest wavelength, in patches, is about 2 pi times this: grids of hundreds of patches stay distinguishable."""


def rotary_angles(coordinates_L2: Tensor, head_dim: int) -> tuple[Tensor, Tensor]:
    """Cosines and sines, float32 [L, head_dim], of the rotation that stands for each token's (row, column).

    Coordinates are in units of patches and may be fractional. Half of the head's dimensions turn with the row,
    half with the column (RoPE, arXiv 2104.09864, per axis).
    """
    num_frequencies = head_dim // 4
    exponents = torch.arange(num_frequencies, device=coordinates_L2.device, dtype=torch.float32) / num_frequencies
    frequencies = ROTARY_BASE**-exponents
    angles = (coordinates_L2.float()[:, :, None] * frequencies).flatten(1)  # [L, head_dim / 2]: rows, then columns
    angles = torch.cat([angles, angles], dim=1)
    return angles.cos(), angles.sin()


def _rotation(coordinates_L2: Tensor, head_dim: int, dtype: torch.dtype) -> tuple[Tensor, ...]:
    """Cosines and sines [L, 1, 1, head_dim]; the sines of the first half are negative, as `_rotate` needs them."""

    def build(coordinates_L2: Tensor) -> tuple[Tensor, Tensor]:
        cos, sin = rotary_angles(coordinates_L2, head_dim)
        first, second = sin.chunk(2, dim=1)
        return cos[:, None, None].to(dtype), torch.cat([-first, second], dim=1)[:, None, None].to(dtype)

    return tables_of(coordinates_L2, ("rotation", head_dim, dtype), build)


def _rotate(x_BLXHE: Tensor, cos_L11E: Tensor, sin_L11E: Tensor) -> Tensor:
    """Each vector's halves (a, b) -> (a cos - b sin, b cos + a sin)."""
    return (x_BLXHE * cos_L11E).add_(x_BLXHE.roll(x_BLXHE.shape[-1] // 2, -1).mul_(sin_L11E))


def _attend(query_BHLE: Tensor, key_BHLE: Tensor, value_BHLE: Tensor) -> Tensor:
    # On CPUs, torch's fused attention takes several times as long backwards in bfloat16 as these three products.
    if query_BHLE.requires_grad and query_BHLE.dtype is torch.bfloat16 and query_BHLE.device.type == "cpu":
        scores = (query_BHLE * query_BHLE.shape[-1] ** -0.5) @ key_BHLE.transpose(-1, -2)
        return scores.softmax(-1) @ value_BHLE
    return F.scaled_dot_product_attention(query_BHLE, key_BHLE, value_BHLE)


class _Layer(nn.Module):
    """Pre-norm self-attention and MLP."""

    is_compiled_alone = True

    def __init__(self, width: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.attention_norm = nn.LayerNorm(width)
        self.qkv = nn.Linear(width, 3 * width, bias=False)
        self.projection = nn.Linear(width, width)
        self.mlp_norm = nn.LayerNorm(width)
        self.expand = nn.Linear(width, 4 * width)
        self.contract = nn.Linear(4 * width, width)

    def forward(self, x_BLD: Tensor, cos_L11E: Tensor, sin_L11E: Tensor) -> Tensor:
        qkv = self.qkv(self.attention_norm(x_BLD)).unflatten(2, (3, self.num_heads, -1))
        rotated = _rotate(qkv[:, :, :2], cos_L11E.to(qkv.dtype), sin_L11E.to(qkv.dtype))
        query, key, value = (each.transpose(1, 2) for each in (*rotated.unbind(2), qkv[:, :, 2]))  # [B, H, L, E]
        attended = _attend(query, key, value)
        x_BLD = x_BLD + self.projection(attended.transpose(1, 2).flatten(2))
        return x_BLD + self.contract(F.gelu(self.expand(self.mlp_norm(x_BLD)), approximate="tanh"))


class Transformer(nn.Module):
    """A stack of bidirectional layers; the output is normalised."""

    def __init__(self, num_layers: int, width: int, num_heads: int) -> None:
        super().__init__()
        self.head_dim = width // num_heads
        self.layers = nn.ModuleList(_Layer(width, num_heads) for _ in range(num_layers))
        self.norm = nn.LayerNorm(width)
        for layer in self.layers:  # residual branches start small, so that depth does not raise the variance
            assert isinstance(layer, _Layer)
            for branch in (layer.projection, layer.contract):
                nn.init.normal_(branch.weight, std=0.02 / (2 * num_layers) ** 0.5)
                nn.init.zeros_(branch.bias)

    def forward(self, x_BLD: Tensor, coordinates_L2: Tensor) -> Tensor:
        """Tokens [B, L, D] at (row, column) coordinates -> tokens [B, L, D]."""
        device = x_BLD.device.type
        is_mixed = torch.is_autocast_enabled(device)  # then the layers' products have another type than x
        dtype = torch.get_autocast_dtype(device) if is_mixed else x_BLD.dtype
        cos, sin = _rotation(coordinates_L2, self.head_dim, dtype)
        for layer in self.layers:
            x_BLD = layer(x_BLD, cos, sin)
        return self.norm(x_BLD)
