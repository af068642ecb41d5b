"""Tokenizers as users write them: good ones of every shape, and broken ones."""

from __future__ import annotations

import threading
import time

import torch
import torch.nn.functional as F
from torch import Tensor


class Blocks:
    """Mean colours of blocks of 8 x 8 pixels, 4,096 of them."""

    vocab_size, patch_size, identity = 4096, 8, "blocks"

    def encode(self, pixels: Tensor) -> Tensor:
        red, green, blue = (F.avg_pool2d(pixels.float(), self.patch_size) / 16).long().clamp(0, 15).unbind(1)
        return red * 256 + green * 16 + blue

    def decode(self, codes: Tensor, height: int, width: int) -> Tensor:
        colours = torch.stack([codes // 256, codes // 16 % 16, codes % 16], dim=1) * 16 + 8
        return F.interpolate(colours.float(), (height, width)).byte()


def load(device: str) -> Blocks:
    return Blocks()


class Residual(Blocks):
    """Two codes a position, the second in a codebook beyond two bytes."""

    vocab_size, codes_per_position = 1 << 18, 2  # type: ignore[assignment]

    def encode(self, pixels: Tensor) -> Tensor:
        coarse = super().encode(pixels)
        return torch.stack([coarse, coarse + (1 << 17)], dim=-1)

    def decode(self, codes: Tensor, height: int, width: int) -> Tensor:
        return super().decode(codes[..., 0], height, width)


class Lists(Blocks):
    """Five codes an image, in no grid: mean colours of vertical strips."""

    image_size = (16, 24)

    def encode(self, pixels: Tensor) -> Tensor:
        strips = F.adaptive_avg_pool2d(pixels.float(), (1, 5))[:, :, 0] / 16
        red, green, blue = strips.long().clamp(0, 15).unbind(1)
        return red * 256 + green * 16 + blue

    def decode(self, codes: Tensor, height: int, width: int) -> Tensor:
        return super().decode(codes[:, None], height, width)


class OfClips:
    """Clips alone: mean colours of two frames (or of one image) at a time."""

    vocab_size, patch_size, identity = 4096, 8, "clips"
    frames_a_step = 2

    def encode_clips(self, pixels: Tensor) -> Tensor:
        steps = max(pixels.shape[1] // self.frames_a_step, 1)
        means = pixels.float().unflatten(1, (steps, -1)).mean(2)
        return Blocks().encode(means.flatten(0, 1)).unflatten(0, (-1, steps))

    def decode_clips(self, codes: Tensor, num_frames: int, height: int, width: int) -> Tensor:
        steps = codes.shape[1]
        frames = Blocks().decode(codes.flatten(0, 1), height, width).unflatten(0, (-1, steps))
        return frames.repeat_interleave(num_frames // steps, dim=1)


class WithPrior(Blocks):
    """With entropies: two bits a position expected, three found."""

    def entropy_bits(self, codes: Tensor) -> Tensor:
        return torch.full(codes.shape, 2.0)

    def surprisal_bits(self, codes: Tensor) -> Tensor:
        return torch.full(codes.shape, 3.0)


class Noisy(Blocks):
    """Broken: its codes are drawn at random."""

    def encode(self, pixels: Tensor) -> Tensor:
        codes = super().encode(pixels)
        return (codes + torch.randint(0, 2, codes.shape)) % self.vocab_size


class OfTheBatch(Blocks):
    """Broken: pixels are centred over the batch, as a batch norm in training does."""

    def encode(self, pixels: Tensor) -> Tensor:
        centred = pixels.float() - pixels.float().mean() + 128
        return super().encode(centred.clamp(0, 255).byte())


class OutOfRange(Blocks):
    """Broken: it has more codes than it says."""

    vocab_size = 100


class WrongGrid(Blocks):
    """Broken: its steps are of 16 pixels, though it says 8."""

    def encode(self, pixels: Tensor) -> Tensor:
        return super().encode(F.avg_pool2d(pixels.float(), 2).byte())


class NotThreadSafe(Blocks):
    """Broken: a call keeps its pixels on the object, where another call replaces them."""

    def __init__(self) -> None:
        self._threads: set[int] = set()

    def encode(self, pixels: Tensor) -> Tensor:
        self._pixels = pixels
        self._threads.add(threading.get_ident())
        time.sleep(0.02)  # in which other threads come by
        return super().encode(self._pixels)


class WrongScale(Blocks):
    """Broken: decodes to 0 .. 1, of which bytes leave nothing."""

    def decode(self, codes: Tensor, height: int, width: int) -> Tensor:
        return (super().decode(codes, height, width) / 255).byte()


class NewEachTime(Blocks):
    """Broken: its identity is that of the object, not of what it does."""

    def __init__(self) -> None:
        self.identity = f"loaded at {time.perf_counter_ns()}"
