"""What tokenizers rebuild of held-out photos at full rate and at some mean counts, as `tatok eval` measures it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from tatok import Tokenizer
from tatok.autoencoders.canvas import LatentCanvas
from tatok.evaluation.calibration import EncodedPhotos
from tatok.evaluation.comparison import evaluate
from tatok.evaluation.distances import SMALLEST_SET, ImageFeatures
from tatok.evaluation.features import MobileNetFeatures, perceptual_distance
from tatok.evaluation.policies import FULL_RATE, SHIPPED, Policy, standard_policies
from tatok.model.checkpoint import load_checkpoint
from tatok.model.pixels import to_float, to_pixels

__all__ = ["Figures", "measured", "measured_autoencoder", "table"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Figures:
    """One row: lower is better but for PSNR; `perceptual` and `kernel` are times 1000 (tatok.evaluation.comparison)."""

    model: str
    kept: str
    tokens: float | None
    psnr_db: float
    perceptual: float
    kernel: float | None
    kernel_std: float | None


def measured(
    name: str, tokenizer: Tokenizer, photos: Sequence[Tensor], counts: Sequence[float], features: ImageFeatures
) -> list[Figures]:
    """At full rate, and by DTF at each mean count."""
    encoded = EncodedPhotos(tokenizer, photos)
    policies: list[Policy] = []
    for count in counts:
        patterns = [f"{SHIPPED}*"] if policies else [FULL_RATE, f"{SHIPPED}*"]
        policies += standard_policies(tokenizer.dtf, tokenizer.num_global, count, patterns=patterns)
    scores = evaluate(encoded, policies, features=features)
    return [
        Figures(
            model=name,
            kept="all" if policy.name == FULL_RATE else "DTF",
            tokens=score.mean_tokens,
            psnr_db=score.psnr_db,
            perceptual=score.perceptual_milli,
            kernel=_milli(score.kernel),
            kernel_std=_milli(score.kernel_std),
        )
        for policy, score in zip(policies, scores, strict=True)
    ]


@torch.inference_mode()
def measured_autoencoder(checkpoint: str, photos: Sequence[Tensor], features: ImageFeatures) -> Figures:
    """What the frozen autoencoder draws of its own latents: the most that a model over it can reach."""
    canvas = load_checkpoint(checkpoint).model.canvas
    assert isinstance(canvas, LatentCanvas)
    network = MobileNetFeatures()
    psnr, perceptual, drawn = [], [], []
    for photo in photos:
        images = to_float(photo[None])
        rebuilt = to_pixels(canvas.images(canvas.working(images)))
        drawn.append(rebuilt)
        error = ((rebuilt.double() - photo.double()) / 255).square().mean()
        psnr.append(float(-10 * error.log10()))
        perceptual.append(float(perceptual_distance(network(to_float(rebuilt)), network(images))))
    kernel: tuple[float | None, float | None] = (None, None)
    if len(photos) >= SMALLEST_SET:
        found = features.distances(torch.cat([features.extract(each) for each in drawn]), paired=True)
        kernel = found.kernel, found.kernel_std
    return Figures(
        model="autoencoder",
        kept="its latents",
        tokens=None,
        psnr_db=sum(psnr) / len(psnr),
        perceptual=1000 * sum(perceptual) / len(perceptual),
        kernel=_milli(kernel[0]),
        kernel_std=_milli(kernel[1]),
    )


def _milli(value: float | None) -> float | None:
    return None if value is None else 1000 * value


def table(rows: Sequence[Figures]) -> str:
    """A Markdown table."""
    lines = ["| model | kept | tokens | PSNR, dB | perceptual | kernel |", "|---|---|---|---|---|---|"]
    for row in rows:
        tokens = "" if row.tokens is None else f"{row.tokens:.0f}"
        kernel = "" if row.kernel is None or row.kernel_std is None else f"{row.kernel:.1f} ± {row.kernel_std:.1f}"
        lines.append(f"| {row.model} | {row.kept} | {tokens} | {row.psnr_db:.2f} | {row.perceptual:.0f} | {kernel} |")
    return "\n".join(lines)
