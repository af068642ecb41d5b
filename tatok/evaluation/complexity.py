"""How complex an image is, by its size as a PNG, and how token counts and quality follow it."""

from __future__ import annotations

import io
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image
from torch import Tensor

__all__ = ["NUM_QUARTILES", "Quartile", "png_bytes", "quartiles", "rank_correlation"]

NUM_QUARTILES = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class Quartile:
    """Means over a quarter of the images, by PNG size: `mean_psnr_db` over images, counts with globals."""

    num_images: int
    mean_png_bytes: float
    mean_tokens: float
    mean_psnr_db: float


def png_bytes(images: Iterable[Tensor]) -> list[int]:
    """Bytes of each image, uint8 [3, H, W], as a PNG of Pillow's default settings; comparable at one H x W only."""
    sizes = []
    for image in images:
        buffer = io.BytesIO()
        Image.fromarray(image.permute(1, 2, 0).cpu().numpy()).save(buffer, "PNG")
        sizes.append(buffer.tell())
    return sizes


def _ranks(values: Sequence[float]) -> np.ndarray:
    """Ranks from 1, float64; equal values share their mean rank."""
    _, inverse, counts = np.unique(np.asarray(values, dtype=np.float64), return_inverse=True, return_counts=True)
    return (np.cumsum(counts) - (counts - 1) / 2)[inverse]


def rank_correlation(first: Sequence[float], second: Sequence[float]) -> float | None:
    """Spearman's rank correlation, ties averaged, in -1 .. 1; None where a side is constant and so has no order."""
    ranks = np.stack([_ranks(first), _ranks(second)])
    deviations = ranks - ranks.mean(axis=1, keepdims=True)
    scale = float(np.sqrt(np.prod(np.square(deviations).sum(axis=1))))
    return float(deviations[0] @ deviations[1]) / scale if scale else None


def quartiles(png: Sequence[int], tokens: Sequence[int], psnr_db: Sequence[float]) -> tuple[Quartile, ...]:
    """Counts and quality by quarter of PNG size, smallest first, equal sizes in the images' order.

    The quarters differ by one image at most; fewer than four images give no quarters.
    """
    if len(png) < NUM_QUARTILES:
        return ()
    order = np.argsort(np.asarray(png), kind="stable")
    return tuple(
        Quartile(
            num_images=len(part),
            mean_png_bytes=float(np.asarray(png)[part].mean()),
            mean_tokens=float(np.asarray(tokens)[part].mean()),
            mean_psnr_db=float(np.asarray(psnr_db)[part].mean()),
        )
        for part in np.array_split(order, NUM_QUARTILES)
    )
