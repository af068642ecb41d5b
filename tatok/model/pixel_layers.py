"""Convolutions between pixels and tokens: a stem that reads texture, and a decoder that can draw it.

A linear patch embedding sees a patch as one vector and forgets what its few dimensions cannot hold; a linear pixel head
draws patch by patch, which shows as seams and blur. Both ends are therefore convolutional where a model asks for it:
the stem for filters that respond to texture wherever it lies in a patch, the decoder for detail across patch borders.

Shapes: B batch, D width of the transformers, A channels of the canvas (3 of pixels), h and w patch rows and columns, H
and W sides of the canvas.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

__all__ = ["ConvStem", "PixelDecoder"]

STEM_CHANNELS = (32, 64)
_GROUPS = 8


class ConvStem(nn.Module):
    """Canvases [B, A, H, W] -> patch embeddings [B, N, D] in raster order: two strided convolutions, then patches."""

    def __init__(self, patch_side: int, width: int, channels: int = 3) -> None:
        super().__init__()
        first, second = STEM_CHANNELS
        self.first = nn.Conv2d(channels, first, 3, stride=2, padding=1)
        self.second = nn.Conv2d(first, second, 3, stride=2, padding=1)
        side = patch_side // 4
        self.patches = nn.Conv2d(second, width, side, stride=side)

    def forward(self, canvas_BAHW: Tensor) -> Tensor:
        """Embed canvases whose sides are multiples of the patch."""
        x = F.gelu(self.first(canvas_BAHW), approximate="tanh")
        x = F.gelu(self.second(x), approximate="tanh")
        tokens: Tensor = self.patches(x).flatten(2).transpose(1, 2)
        return tokens


class _ResidualBlock(nn.Module):
    is_compiled_alone = True

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.first_norm = nn.GroupNorm(_GROUPS, channels)
        self.first = nn.Conv2d(channels, channels, 3, padding=1)
        self.second_norm = nn.GroupNorm(_GROUPS, channels)
        self.second = nn.Conv2d(channels, channels, 3, padding=1)
        nn.init.normal_(self.second.weight, std=1e-3)
        assert self.second.bias is not None
        nn.init.zeros_(self.second.bias)

    def forward(self, x: Tensor) -> Tensor:
        branch = self.first(F.silu(self.first_norm(x)))
        return x + self.second(F.silu(self.second_norm(branch)))


class _Scale(nn.Module):
    """One doubling of resolution: a convolution that makes four pixels of one, the draft's pixels, residual blocks."""

    def __init__(self, channels: int, to_channels: int, pixels: int, num_blocks: int, canvas_channels: int) -> None:
        super().__init__()
        self.pixels = pixels
        self.enlarge = nn.Conv2d(channels, 4 * to_channels, 3, padding=1)
        self.draft = nn.Conv2d(canvas_channels * pixels**2, to_channels, 1)
        self.blocks = nn.ModuleList(_ResidualBlock(to_channels) for _ in range(num_blocks))

    def forward(self, x: Tensor, draft_BAHW: Tensor) -> Tensor:
        x = F.pixel_shuffle(self.enlarge(x), 2) + self.draft(F.pixel_unshuffle(draft_BAHW, self.pixels))
        for block in self.blocks:
            x = block(x)
        return x


class PixelDecoder(nn.Module):
    """Decoder states on the patch grid, and a draft, -> what to add to the draft, [B, A, H, W].

    Each scale doubles the resolution down to maps of 2 pixels a side, with `width`, 3 `width` and 4 `width` channels at
    2, 4 and 8 pixels a side; the last convolution makes the pixels. It starts at zero: an untrained decoder gives the
    draft. The patch's side must be a power of two of at least 4, and `width` a multiple of 8.
    """

    def __init__(
        self, patch_side: int, model_width: int, width: int, canvas_channels: int = 3, num_blocks: int = 2
    ) -> None:
        super().__init__()
        channels, scales = model_width, []
        pixels = patch_side // 2
        while pixels >= 2:
            to_channels = width * {2: 1, 4: 3}.get(pixels, 4)
            scales.append(_Scale(channels, to_channels, pixels, num_blocks, canvas_channels))
            channels, pixels = to_channels, pixels // 2
        self.scales = nn.ModuleList(scales)
        self.norm = nn.GroupNorm(_GROUPS, channels)
        self.head = nn.Conv2d(channels, 4 * canvas_channels, 3, padding=1)
        nn.init.zeros_(self.head.weight)
        assert self.head.bias is not None
        nn.init.zeros_(self.head.bias)

    def forward(self, states_BDhw: Tensor, draft_BAHW: Tensor) -> Tensor:
        """What to add to the draft."""
        x = states_BDhw
        if x.is_cuda:  # tensor cores read channels last
            x, draft_BAHW = (each.contiguous(memory_format=torch.channels_last) for each in (x, draft_BAHW))
        for scale in self.scales:
            x = scale(x, draft_BAHW)
        return F.pixel_shuffle(self.head(F.silu(self.norm(x))), 2)
