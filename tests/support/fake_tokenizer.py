"""A Tokenizer without a model: deterministic for each image, quick, and with the public face of the real one."""

from __future__ import annotations

import hashlib
import os
import signal
import time
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from tatok.schemas.records import EntropyStatistics, Grid, TokenSequence
from tatok.tokenizer.frames import join_frames

_NUMBERS = np.random.default_rng(0).random(1 << 17, dtype=np.float32)


@dataclass(frozen=True, kw_only=True)
class FakeTokenizer:
    """Codes and kept sets are looked up by a checksum of the pixels; about half of the patches are kept."""

    version: str = "1"
    delay_s: float = 0.0
    kill_self_once: str | None = None
    vocab_size: int = 1024
    patch_size: int = 16
    num_global: int = 4
    codes_per_position: int = 1
    has_entropy: bool = True
    device_name: str = "cpu"

    @property
    def device(self) -> torch.device:
        return torch.device(self.device_name)

    @property
    def identity(self) -> dict[str, str]:
        return {"weights": hashlib.sha256(self.version.encode()).hexdigest(), "threshold": "0.5"}

    @property
    def fingerprint(self) -> str:
        return hashlib.sha256(repr(sorted(self.identity.items())).encode()).hexdigest()

    def encode(self, pixels: torch.Tensor) -> list[TokenSequence]:
        assert pixels.dtype == torch.uint8, pixels.dtype
        assert pixels.shape[1] == 3, pixels.shape
        time.sleep(self.delay_s)
        if self.kill_self_once and not Path(self.kill_self_once).exists():
            Path(self.kill_self_once).touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return [self._encode(image) for image in pixels]

    def encode_clips(self, pixels: torch.Tensor) -> list[TokenSequence]:
        assert pixels.ndim == 5, pixels.shape
        frames = self.encode(pixels.flatten(0, 1))
        return [join_frames(frames[i : i + pixels.shape[1]]) for i in range(0, len(frames), pixels.shape[1])]

    def _encode(self, pixels_CHW: torch.Tensor) -> TokenSequence:
        grid = Grid(1, pixels_CHW.shape[1] // self.patch_size, pixels_CHW.shape[2] // self.patch_size)
        # A generator for each image would cost several times as much as all the rest of it.
        number = zlib.crc32(pixels_CHW.numpy().tobytes())
        first, second = divmod(number, 1 << 16)
        bits = _NUMBERS[first : first + grid.num_positions] * np.float32(10)
        worth = np.maximum(bits - (3 + 4 * _NUMBERS[second]), 0)
        kept = worth.nonzero()[0]
        chosen = _NUMBERS[second : second + self.num_global + len(kept)]
        codes = (chosen * self.vocab_size).astype(np.int64)
        sum_bits, kept_bits = float(bits.sum()), float(bits[kept].sum())
        return TokenSequence(
            codes=codes,
            positions=kept,
            num_global=self.num_global,
            grid=grid,
            entropy=EntropyStatistics(
                entropy_bits=sum_bits,
                kept_entropy_bits=kept_bits,
                residual_bits=sum_bits - kept_bits,
                surprisal_bits=sum_bits,
                entropy_mean_bits=sum_bits / len(bits),
                entropy_max_bits=float(bits.max()),
                patch_entropy_bits_N=bits.astype(np.float16),
                patch_worth_bits_N=worth,
            ),
        )


def load_fake(device: str = "cpu", **options: object) -> FakeTokenizer:
    return FakeTokenizer(device_name=device, **options)  # type: ignore[arg-type]


def load_other_fake(device: str) -> FakeTokenizer:
    return load_fake(device, version="2")


def encode_nothing(pixels: torch.Tensor) -> Sequence[TokenSequence]:
    return ()
