"""Evaluation: what each way of choosing the kept patches costs in distortion, at the same weights and mean count."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from tatok.evaluation.calibration import EncodedPhotos
from tatok.evaluation.complexity import Quartile, png_bytes, quartiles, rank_correlation
from tatok.evaluation.distances import SMALLEST_SET, ImageDistances, ImageFeatures
from tatok.evaluation.features import MobileNetFeatures, perceptual_distance
from tatok.evaluation.policies import Policy
from tatok.model.pixels import in_batches, to_float
from tatok.schemas.errors import ConfigError
from tatok.tokenizer.protocol import AnyTokenizer

__all__ = ["EVERY_POSITION", "PolicyScore", "evaluate", "evaluate_tokenizer"]

EVERY_POSITION = "as it is"
"""The name of `evaluate_tokenizer`'s score."""

SSIM_WINDOW = 11  # pixels
_BATCH = 64


@dataclass(frozen=True, slots=True, kw_only=True)
class PolicyScore:
    """Held-out figures of one policy.

    PSNR in dB: the mean over images, and that of the mean squared error over all images. `ssim` is torchmetrics'
    structural similarity (Gaussian window of 11), the mean over images; None for images smaller than the window.
    `perceptual_milli` is the mean channel-normalised feature distance (features.py), times 1000.
    `kernel`, `kernel_std` and `frechet` are distances of the rebuilt photos, as a set, to the originals
    (`ImageDistances`); None where they were not asked for or there are too few photos.
    Bits are an image's codes at log2 K each, without and with its positions (log2 of the number of kept sets of that
    size, where they must be told). `count_correlation` is Spearman's, of the images' token counts with their sizes as
    PNG, None where all counts are equal; `quartiles` are by that size.
    """

    name: str
    num_images: int
    mean_tokens: float
    psnr_db: float
    psnr_of_mean_db: float
    ssim: float | None
    perceptual_milli: float
    kernel: float | None
    kernel_std: float | None
    frechet: float | None
    bits: float
    bits_with_positions: float
    count_correlation: float | None
    quartiles: tuple[Quartile, ...]


@dataclass(slots=True)
class _Measured:
    """Figures of one policy, an entry an image."""

    errors: list[float] = field(default_factory=list)  # mean squared, of pixels in 0 .. 1
    similarities: list[float] = field(default_factory=list)
    perceptual: list[float] = field(default_factory=list)
    tokens: list[int] = field(default_factory=list)
    position_bits: list[float] = field(default_factory=list)
    features: list[Tensor] = field(default_factory=list)

    def add(
        self,
        rebuilt: Tensor,
        pixels: Tensor,
        network: MobileNetFeatures,
        reference: list[Tensor],
        of_set: ImageFeatures | None,
    ) -> None:
        """The figures of pixels, of which `reference` are the perceptual features; `of_set` are the set's."""
        difference = rebuilt.cpu().double() - pixels.double()
        self.errors += (difference.square().mean((1, 2, 3)) / 255**2).tolist()
        self.similarities += _structural_similarity(rebuilt.cpu(), pixels)
        self.perceptual += perceptual_distance(network(to_float(rebuilt)), reference).tolist()
        if of_set is not None:
            self.features.append(of_set.extract(rebuilt))


@torch.inference_mode()
def evaluate(
    photos: EncodedPhotos, policies: Sequence[Policy], *, features: ImageFeatures | None = None
) -> list[PolicyScore]:
    """Score every policy on the photos; the perceptual network is not the one that training uses.

    `features` are those of the very photos, in order, which may be computed once for many evaluations
    (`ImageFeatures(load_features("mobilenet"), photos.pixels)`); without them set distances are skipped, which saves
    most of the time for small images. Each policy decodes every photo once.
    Raises ConfigError where `features` are of other photos, or the packages of the `eval` extra are missing.
    """
    _check_features(photos, features)
    network = MobileNetFeatures().to(photos.tokenizer.device)
    kept_sets = [policy.choose(photos) for policy in policies]
    measured = [_Measured() for _ in policies]
    for number, (pixels, full) in enumerate(zip(photos.pixels, photos.full, strict=True)):
        reference = network(to_float(pixels).to(photos.tokenizer.device))
        for policy, kept_set, figures in zip(policies, kept_sets, measured, strict=True):
            kept = kept_set[number]
            rebuilt = photos.tokenizer.rebuild(full, kept)
            figures.add(rebuilt, pixels, network, reference, features)
            counts = kept.sum(1).tolist()
            figures.tokens += [count + photos.tokenizer.num_global for count in counts]
            figures.position_bits += [
                math.log2(math.comb(kept.shape[1], count)) if policy.needs_positions else 0.0 for count in counts
            ]
    png = png_bytes(image for pixels in photos.pixels for image in pixels)
    code_bits = math.log2(photos.tokenizer.vocab_size)
    return [
        _score(policy.name, figures, code_bits, png, features)
        for policy, figures in zip(policies, measured, strict=True)
    ]


@torch.inference_mode()
def evaluate_tokenizer(
    tokenizer: AnyTokenizer,
    images: Iterable[Tensor],
    device: torch.device | str,
    *,
    network: nn.Module | None = None,
) -> PolicyScore:
    """Score a tokenizer as it is, such as a user's own, on uint8 images [3, H, W]; no policy chooses its tokens.

    `network` is that of the set distances (`load_features`), None for none. Raises ConfigError where there is no image,
    the tokenizer cannot decode, or the packages of the `eval` extra are missing.
    """
    batches = list(in_batches(images, _BATCH))
    if not batches:
        raise ConfigError("there is no photo to evaluate on")
    features = None if network is None else ImageFeatures(network, batches, device)
    perceptual, figures = MobileNetFeatures().to(device), _Measured()
    for pixels in batches:
        sequences = tokenizer.encode(pixels)
        rebuilt = tokenizer.decode(sequences).to(device)
        figures.add(rebuilt, pixels, perceptual, perceptual(to_float(pixels).to(device)), features)
        figures.tokens += [sequence.num_tokens for sequence in sequences]
        figures.position_bits += [0.0] * len(sequences)
    png = png_bytes(image for pixels in batches for image in pixels)
    return _score(EVERY_POSITION, figures, math.log2(tokenizer.vocab_size), png, features)


def _check_features(photos: EncodedPhotos, features: ImageFeatures | None) -> None:
    if features is None:
        return
    if len(features) != len(photos):
        raise ConfigError(f"features are of {len(features)} images, but there are {len(photos)} photos; they must pair")
    again = features.extract(photos.pixels[0])
    if not torch.allclose(features.features_NF[: len(again)], again, rtol=1e-2, atol=1e-2):
        raise ConfigError("features are of other images than the photos, or in another order; compute them anew")


def _structural_similarity(rebuilt: Tensor, pixels: Tensor) -> list[float]:
    try:
        from torchmetrics.functional.image import structural_similarity_index_measure
    except ImportError as error:
        raise ConfigError("structural similarity needs torchmetrics: pip install 'tatok[eval]'") from error
    if min(pixels.shape[-2:]) < SSIM_WINDOW:
        return []
    similarities = structural_similarity_index_measure(
        rebuilt.float() / 255, pixels.float() / 255, data_range=1.0, reduction="none"
    )
    assert isinstance(similarities, Tensor)
    return similarities.tolist()


def _score(
    name: str, figures: _Measured, code_bits: float, png: list[int], features: ImageFeatures | None
) -> PolicyScore:
    num = len(figures.errors)
    psnr_db = [-10 * math.log10(max(error, 1e-12)) for error in figures.errors]
    distances: ImageDistances | None = None
    if features is not None and num >= SMALLEST_SET:
        distances = features.distances(torch.cat(figures.features), paired=True)
    bits = code_bits * sum(figures.tokens) / num
    return PolicyScore(
        name=name,
        num_images=num,
        mean_tokens=sum(figures.tokens) / num,
        psnr_db=sum(psnr_db) / num,
        psnr_of_mean_db=-10 * math.log10(max(sum(figures.errors) / num, 1e-12)),
        ssim=sum(figures.similarities) / num if figures.similarities else None,
        perceptual_milli=1000 * sum(figures.perceptual) / num,
        kernel=distances.kernel if distances else None,
        kernel_std=distances.kernel_std if distances else None,
        frechet=distances.frechet if distances else None,
        bits=bits,
        bits_with_positions=bits + sum(figures.position_bits) / num,
        count_correlation=rank_correlation(figures.tokens, png),
        quartiles=quartiles(png, figures.tokens, psnr_db),
    )
