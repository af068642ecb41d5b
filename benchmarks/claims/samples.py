"""The claims bench's samples: what a generator draws, beside real images and beside what its tokenizer makes of them.

Samples differ from real images for two reasons: the tokenizer cannot rebuild everything, and the generator has not
learned everything. Three distances keep these apart: of rebuilt images to real ones, which is the tokenizer's share; of
samples to rebuilt images, the generator's; and of samples to real images, which is what is compared.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from benchmarks.claims.generation import Budget, Tokenization, generator_folder
from benchmarks.claims.models import Setting
from tatok.evaluation.distances import ImageDistances, ImageFeatures, load_features
from tatok.generator.checkpoint import load_generator
from tatok.generator.training import CHECKPOINT
from tatok.model.pixels import in_batches
from tatok.tokenizer.tokenizer import Tokenizer
from tatok.training.photos import centre_crops

__all__ = ["Guided", "Sampling", "sample"]

SAMPLING_BATCH = 500
GUIDANCES = (1.0, 1.5)


@dataclass(frozen=True, slots=True, kw_only=True)
class Guided:
    """The samples under one guidance."""

    guidance: float
    num_images: int
    mean_tokens: float
    to_real: ImageDistances
    to_rebuilt: ImageDistances


@dataclass(frozen=True, slots=True, kw_only=True)
class Sampling:
    """One generator's samples, in the order of `GUIDANCES`, and its tokenizer's rebuilt images beside the real ones."""

    variant: str
    budget: Budget
    rebuilt_to_real: ImageDistances
    samples: tuple[Guided, ...]


def sample(
    tokenization: Tokenization,
    setting: Setting,
    budget: Budget,
    seed: int,
    *,
    work: Path,
    heldout: list[str],
    device: str,
) -> Sampling:
    """Sample `num_samples` images under each guidance, as many of each class, and measure them."""
    chosen = torch.device(device)
    loaded = load_generator(generator_folder(work, tokenization.variant, budget, seed) / CHECKPOINT)
    generator, tokenizer = loaded.generator.to(chosen), Tokenizer.load(tokenization.checkpoint, device)
    network = load_features("mobilenet")

    def images() -> Iterator[Tensor]:
        return in_batches(centre_crops(heldout, setting.image_size, setting.num_samples), SAMPLING_BATCH)

    real = ImageFeatures(network, images(), device)
    rebuilt = ImageFeatures(network, (tokenizer.decode(tokenizer.encode(pixels)) for pixels in images()), device)
    classes_N = torch.arange(setting.num_samples) % max(len(loaded.classes), 1)
    samples = []
    for guidance in GUIDANCES:
        random = torch.Generator(chosen).manual_seed(seed)
        features, num_tokens = [], 0
        for classes in classes_N.split(SAMPLING_BATCH):
            sequences = generator.sample(classes.to(chosen), guidance=guidance, generator=random)
            num_tokens += sum(sequence.num_tokens for sequence in sequences)
            features.append(real.extract(tokenizer.decode(sequences)))
        features_NF = torch.cat(features)
        samples.append(
            Guided(
                guidance=guidance,
                num_images=setting.num_samples,
                mean_tokens=num_tokens / setting.num_samples,
                to_real=real.distances(features_NF),
                to_rebuilt=rebuilt.distances(features_NF),
            )
        )
    return Sampling(
        variant=tokenization.variant,
        budget=budget,
        rebuilt_to_real=real.distances(rebuilt.features_NF, paired=True),
        samples=tuple(samples),
    )
