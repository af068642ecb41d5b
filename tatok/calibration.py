"""Calibration: the DTF threshold at which held-out images keep a wanted mean number of tokens."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from schemas.errors import ConfigError
from tatok.dtf import DTFSettings, Filtered, filter_tokens
from tatok.prior import CodeStatistics
from tatok.tokenizer import FullRate, Tokenizer

__all__ = ["Calibration", "EncodedPhotos", "calibrate"]

BATCH = 16


@dataclass(frozen=True, slots=True, kw_only=True)
class Calibration:
    """Settings found, and the mean, smallest and largest token count that they give (globals included)."""

    dtf: DTFSettings
    mean_tokens: float
    min_tokens: int
    max_tokens: int
    num_images: int


class EncodedPhotos:
    """Photos encoded at full rate once, to be filtered many times under different settings."""

    def __init__(self, tokenizer: Tokenizer, pixels: Iterable[Tensor]) -> None:
        self.tokenizer = tokenizer
        self.pixels: list[Tensor] = []
        self.full: list[FullRate] = []
        self._first: list[CodeStatistics] = []
        batch: list[Tensor] = []
        for image in pixels:
            batch.append(image)
            if len(batch) == BATCH:
                self._add(batch)
                batch = []
        if batch:
            self._add(batch)
        if not self.full:
            raise ConfigError("there is no photo to calibrate or evaluate on")

    def _add(self, batch: list[Tensor]) -> None:
        pixels = torch.stack(batch)
        full = self.tokenizer.full_rate(pixels)
        self.pixels.append(pixels)
        self.full.append(full)
        self._first.append(self.tokenizer.estimate(full, torch.zeros_like(full.codes.patch_BN, dtype=torch.bool)))

    def __len__(self) -> int:
        return sum(len(pixels) for pixels in self.pixels)

    @property
    def first(self) -> list[CodeStatistics]:
        """The statistics given the globals alone, a batch each."""
        return self._first

    def filter(self, settings: DTFSettings) -> list[Filtered]:
        """DTF's kept sets, a batch each; with one round no prior pass is run."""
        return [self._filter_one(full, first, settings) for full, first in zip(self.full, self._first, strict=True)]

    def _filter_one(self, full: FullRate, first: CodeStatistics, settings: DTFSettings) -> Filtered:
        num_images, num_positions = full.codes.patch_BN.shape

        def estimate(visible: Tensor) -> CodeStatistics:
            return self.tokenizer.estimate(full, visible) if bool(visible.any()) else first

        return filter_tokens(
            estimate,
            num_images=num_images,
            num_positions=num_positions,
            num_global=self.tokenizer.num_global,
            settings=settings,
            device=full.codes.patch_BN.device,
        )

    def counts(self, settings: DTFSettings) -> Tensor:
        """Tokens of each image, globals included, int64 [images]."""
        return torch.cat([f.kept_BN.sum(1) for f in self.filter(settings)]) + self.tokenizer.num_global


def calibrate(photos: EncodedPhotos, wanted_tokens: float, settings: DTFSettings) -> Calibration:
    """Find the threshold of `settings` at which the mean count is nearest to `wanted_tokens`, by bisection.

    The count never grows with the threshold (for a fraction: never shrinks), so bisection finds it; ties between
    positions may keep it from being met exactly. Raises ConfigError where no threshold can give the count.
    """
    positions = sum(full.codes.patch_BN.numel() for full in photos.full) / len(photos)
    lowest, highest = photos.tokenizer.num_global, photos.tokenizer.num_global + positions
    if not lowest <= wanted_tokens <= highest:
        raise ConfigError(
            f"{wanted_tokens:g} tokens cannot be the mean: every image has {lowest} global tokens and at most "
            f"{highest:g} tokens in all"
        )
    low, high, is_log = {
        "residual_bits": (0.0, positions * math.log2(photos.tokenizer.vocab_size) * 4, False),
        "fraction": (0.0, 1.0, False),
        "distortion": (1e-9, 1e9, True),
    }[settings.threshold_kind]
    grows = settings.threshold_kind == "fraction"
    best: tuple[float, float, Tensor] | None = None
    for _ in range(48):
        middle = math.sqrt(low * high) if is_log else (low + high) / 2
        middle = float(f"{middle:.6g}")  # what is reported and stored is what was counted
        counts = photos.counts(replace(settings, threshold=middle))
        mean = float(counts.double().mean())
        if best is None or abs(mean - wanted_tokens) < best[0]:
            best = (abs(mean - wanted_tokens), middle, counts)
        if mean == wanted_tokens:
            break
        if (mean > wanted_tokens) != grows:
            low = middle
        else:
            high = middle
    assert best is not None
    _, threshold, counts = best
    return Calibration(
        dtf=replace(settings, threshold=threshold),
        mean_tokens=float(counts.double().mean()),
        min_tokens=int(counts.min()),
        max_tokens=int(counts.max()),
        num_images=len(photos),
    )
