"""Bytes <-> the floats that the model computes with; images in batches."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import islice

import torch
from torch import Tensor

__all__ = ["in_batches", "to_float", "to_pixels"]


def to_float(pixels: Tensor) -> Tensor:
    """uint8 images -> float32 in [-1, 1]."""
    return pixels.float() / 127.5 - 1


def to_pixels(images: Tensor) -> Tensor:
    """Float images, about [-1, 1] -> uint8."""
    return ((images + 1) * 127.5).round().clamp(0, 255).byte()


def in_batches(images: Iterable[Tensor], batch_size: int) -> Iterator[Tensor]:
    """Images of one size, [3, H, W], in batches [B, 3, H, W]; the last one may be smaller."""
    iterator = iter(images)
    while batch := list(islice(iterator, batch_size)):
        yield torch.stack(batch)
