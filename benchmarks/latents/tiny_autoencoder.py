"""A frozen autoencoder of 2.7 million weights, as a user's module would bring it: `tiny_autoencoder.py:load`.

A convolutional stand-in for the autoencoder of FLUX.2: images [B, 3, H, W] <-> latents [B, 32, H/8, W/8]. Its weights
are read from a folder with `encoder.safetensors` and `decoder.safetensors`; their names count the layers below.
"""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

__all__ = ["TinyAutoencoder", "load"]

WIDTH, CHANNELS, FACTOR = 64, 32, 8
FILES = ("encoder.safetensors", "decoder.safetensors")


def _conv(inputs: int = WIDTH, outputs: int = WIDTH, *, stride: int = 1, bias: bool = True) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, 3, stride=stride, padding=1, bias=bias)


class _Block(nn.Module):
    """Three convolutions beside their input; with `pool`, a look over the whole image first."""

    def __init__(self, *, has_pool: bool) -> None:
        super().__init__()
        self.conv = nn.Sequential(_conv(), nn.ReLU(), _conv(), nn.ReLU(), _conv())
        wide = 4 * WIDTH
        self.pool = (
            nn.Sequential(
                nn.Conv2d(WIDTH, wide, 1, bias=False),
                nn.GroupNorm(4, wide),
                nn.ReLU(),
                nn.Conv2d(wide, WIDTH, 1, bias=False),
            )
            if has_pool
            else None
        )

    def forward(self, x: Tensor) -> Tensor:
        if self.pool is not None:
            x = x + self.pool(x)
        return torch.relu(self.conv(x) + x)


class _Clamp(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return 3 * torch.tanh(x / 3)


def _encoder() -> nn.Sequential:
    layers: list[nn.Module] = [_conv(3), _Block(has_pool=False)]
    for has_pool in (False, False, True):
        layers += [_conv(stride=2, bias=False), *(_Block(has_pool=has_pool) for _ in range(3))]
    return nn.Sequential(*layers, _conv(outputs=CHANNELS))


def _decoder() -> nn.Sequential:
    layers: list[nn.Module] = [_Clamp(), _conv(CHANNELS), nn.ReLU(), *(_Block(has_pool=True) for _ in range(3))]
    for num_blocks in (3, 3, 1):
        layers += [nn.Upsample(scale_factor=2), _conv(bias=False), *(_Block(has_pool=False) for _ in range(num_blocks))]
    return nn.Sequential(*layers, _conv(outputs=3))


class TinyAutoencoder(nn.Module):
    """The autoencoder; images are float in [-1, 1], as tatok's own are."""

    channels, factor = CHANNELS, FACTOR

    def __init__(self) -> None:
        super().__init__()
        self.encoder, self.decoder = _encoder(), _decoder()

    def encode(self, images_B3HW: Tensor) -> Tensor:
        """Latents [B, 32, H/8, W/8]."""
        latents: Tensor = self.encoder((images_B3HW + 1) / 2)
        return latents

    def decode(self, latents_BChw: Tensor) -> Tensor:
        """Images [B, 3, H, W], about [-1, 1]."""
        images: Tensor = self.decoder(latents_BChw) * 2 - 1
        return images


def load(device: str, *, path: str) -> TinyAutoencoder:
    """The autoencoder of a folder, on a device; raises FileNotFoundError where a file is missing."""
    model = TinyAutoencoder()
    for part, name in zip((model.encoder, model.decoder), FILES, strict=True):
        part.load_state_dict(load_file(Path(path) / name))
    return model.to(device)
