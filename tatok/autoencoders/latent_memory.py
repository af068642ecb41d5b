"""Latents of random crops, made once and kept: a frozen encoder gives the same each time, and costs more than a step.

What it costs is choice: a photo has as many crops as were cached of it. Batches are windows of whole latents, so crops
move by `factor` pixels, and are not mirrored or resized again; an image's mirror has other latents than its latents'
mirror.

Shapes: V crops, A channels of latents, h and w their sides, B latents of a batch, S its side in latents.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from typing import Protocol

import torch
from safetensors.torch import load, save
from torch import Tensor

__all__ = ["LatentMemory", "cached_latents"]

BLOCK = 256  # crops of one file


class Files(Protocol):
    """Where blocks are kept: a folder by names relative to it."""

    def read(self, name: str) -> bytes | None:
        """A file's bytes, or None where there is no such file."""

    def write(self, name: str, data: bytes) -> None:
        """Write a file, atomically."""


def cached_latents(
    crops: Iterator[Tensor], num_crops: int, encode: Callable[[Tensor], Tensor], files: Files, name: str
) -> Iterator[Tensor]:
    """Latents, float16 [<= 256, A, h, w] a block, of the first `num_crops`, uint8 [3, H, W]; each block is kept.

    `name` says what they are made of: blocks under it that are there already are read, and their crops passed over.
    """
    for number, first in enumerate(range(0, num_crops, BLOCK)):
        path = f"latents/{name}-{number:05d}.safetensors"
        block = [next(crops) for _ in range(min(BLOCK, num_crops - first))]
        if (data := files.read(path)) is None:
            latents = torch.cat([encode(each).half().cpu() for each in torch.stack(block).split(16)])
            files.write(path, data := save({"latents": latents.contiguous()}))
        yield load(data)["latents"]


class LatentMemory:
    """Latents [V, A, h, w], float16, of crops; batches come from `batches`."""

    def __init__(self, latents_VAhw: Tensor, factor: int, name: str) -> None:
        self.latents_VAhw = latents_VAhw
        self.factor = factor
        self.name = name

    def __len__(self) -> int:
        return len(self.latents_VAhw)

    def batches(self, batch_size: int, image_size: int, seed: int, *, num_given: int = 0) -> Iterator[Tensor]:
        """Windows of random crops without end, [B, A, S, S], of images of `image_size` pixels.

        Crops are drawn with all of them once a pass. The same seed gives the same stream, without its first `num_given`
        batches.
        """
        side = image_size // self.factor
        rng = random.Random(seed)
        order: list[int] = []
        height, width = self.latents_VAhw.shape[-2:]
        while True:
            while len(order) < batch_size:
                order += rng.sample(range(len(self)), len(self))
            chosen, order = order[:batch_size], order[batch_size:]
            corners = [(rng.randrange(height - side + 1), rng.randrange(width - side + 1)) for _ in chosen]
            if num_given:
                num_given -= 1
                continue
            windows = [
                self.latents_VAhw[crop, :, top : top + side, left : left + side]
                for crop, (top, left) in zip(chosen, corners, strict=True)
            ]
            yield torch.stack(windows)
