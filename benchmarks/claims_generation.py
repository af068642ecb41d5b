"""The claims bench's generation: tokenize with the pipeline, train generators alike, sample, measure the samples.

Tokenizations of the same images, the full rate's first. Its generator has a budget of training tokens, and how long it
takes is measured; the others are trained once with as many tokens and once with as much time. Steps run one after
another with all threads, since time is a budget here.
"""

from __future__ import annotations

import shutil
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import torch
from claims_models import Setting, Variant
from claims_reconstruction import encoded

from pipeline.run import run_job
from schemas.errors import TatokError
from schemas.job import JobConfig
from tatok.calibration import calibrate
from tatok.checkpoint import load_checkpoint, write_dtf
from tatok.distances import ImageFeatures, load_features
from tatok.generator_checkpoint import load_generator
from tatok.generator_training import CHECKPOINT, GeneratorRecipe, HeldOutLoss, Spent, train_generator
from tatok.parts import TokenizedData
from tatok.photos import centre_crops, in_batches
from tatok.tokenizer import Tokenizer

__all__ = ["Budget", "Generation", "Samples", "Tokenization", "generate", "tokenize"]

Budget = Literal["tokens", "time"]

SAMPLING_BATCH = 500
GUIDANCES = (1.0, 1.5)
KEEPS_ALL, KEEPS_NONE = 0.0, 1e9  # distortions


@dataclass(frozen=True, slots=True, kw_only=True)
class Tokenization:
    """The two data sets of one model, and the mean count of the one to train on."""

    variant: str
    checkpoint: str
    train: str
    heldout: str
    mean_tokens: float
    num_images: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Samples:
    """Distances of sampled images to the held-out ones, and what sampling took; `seconds` include the decoder."""

    guidance: float
    num_images: int
    kernel: float
    kernel_std: float
    frechet: float | None
    mean_tokens: float
    seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Generation:
    """One generator; `variant` names the model whose tokens it speaks."""

    variant: str
    budget: Budget
    seed: int
    num_parameters: int
    spent: Spent
    heldout: HeldOutLoss
    samples: tuple[Samples, ...]


def tokenize(
    variant: Variant,
    setting: Setting,
    checkpoint: Path,
    *,
    work: Path,
    photos: list[str],
    heldout: list[str],
    device: str,
) -> Tokenization:
    """Tokenize both image sets with the pipeline, DTF's threshold calibrated on held-out images to the headline count.

    Raises TatokError where the pipeline does not end complete and without rejects.
    """
    folder = work / "tokenizers" / variant.name
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(checkpoint, folder)
    dtf = load_checkpoint(folder).dtf
    if variant.fixed_tokens is None:
        images = encoded(folder, heldout, replace(setting, num_heldout=min(setting.num_heldout, 2000)), device)
        dtf = calibrate(images, setting.headline, dtf).dtf
    else:
        dtf = dtf.with_threshold(KEEPS_NONE if variant.model.num_global else KEEPS_ALL)
    write_dtf(folder, dtf)
    urls = {}
    for name, source in (("train", photos), ("heldout", heldout)):
        urls[name] = str(work / "tokens" / variant.name / name)
        job = {
            "source": tuple(source),
            "output": urls[name],
            "checkpoint": str(folder),
            "device": device,
            "preprocessing": {"image_size": setting.image_size},
            "resources": {"batch_size": 64},
            "write": {"patch_entropy": False},
        }
        summary = run_job(JobConfig.model_validate(job))
        if summary.status != "complete" or summary.num_rejects:
            raise TatokError(f"{urls[name]}: {summary.status}, {summary.num_rejects} rejects")
    data = TokenizedData.open(urls["train"])
    return Tokenization(
        variant=variant.name,
        checkpoint=str(folder),
        train=urls["train"],
        heldout=urls["heldout"],
        mean_tokens=data.num_tokens / data.num_rows,
        num_images=data.num_rows,
    )


def _recipe(setting: Setting, seed: int, tokens: int | None, seconds: float | None) -> GeneratorRecipe:
    return GeneratorRecipe(
        tokens=tokens,
        seconds=seconds,
        width=setting.generator_width,
        num_layers=setting.generator_layers,
        batch_tokens=setting.generator_batch_tokens,
        seed=seed,
    )


def generate(
    tokenization: Tokenization,
    setting: Setting,
    budget: Budget,
    seed: int,
    *,
    seconds: float | None,
    work: Path,
    heldout: list[str],
    device: str,
) -> Generation:
    """Train a generator (or go on training it), sample and measure; `seconds` are the budget of time."""
    name = f"{tokenization.variant}-{budget}-{seed}"
    recipe = _recipe(setting, seed, setting.generator_tokens if budget == "tokens" else None, seconds)
    output = work / "generators" / name
    chosen = torch.device(device)
    spent, look = train_generator(
        tokenization.train, output, recipe, chosen, heldout=tokenization.heldout, log_every_steps=100
    )
    assert look is not None
    loaded = load_generator(output / CHECKPOINT)
    generator, tokenizer = loaded.generator.to(chosen), Tokenizer.load(tokenization.checkpoint, device)
    real = in_batches(centre_crops(heldout, setting.image_size, setting.num_samples), SAMPLING_BATCH)
    references = ImageFeatures(load_features("mobilenet"), real, device)
    samples = []
    for guidance in GUIDANCES:
        torch.manual_seed(seed)
        random = torch.Generator(chosen).manual_seed(seed)
        features, num_tokens, took_s = [], 0, 0.0
        num_classes = max(len(loaded.classes), 1)
        classes_N = torch.arange(setting.num_samples) % num_classes  # as many of each, whatever the budget
        for classes in classes_N.split(SAMPLING_BATCH):
            started = time.perf_counter()
            sequences = generator.sample(classes.to(chosen), guidance=guidance, generator=random)
            images = tokenizer.decode(sequences).cpu()
            took_s += time.perf_counter() - started
            num_tokens += sum(sequence.num_tokens for sequence in sequences)
            features.append(references.extract(images))
        distances = references.distances(torch.cat(features))
        samples.append(
            Samples(
                guidance=guidance,
                num_images=setting.num_samples,
                kernel=distances.kernel,
                kernel_std=distances.kernel_std,
                frechet=distances.frechet,
                mean_tokens=num_tokens / setting.num_samples,
                seconds=took_s,
            )
        )
    return Generation(
        variant=tokenization.variant,
        budget=budget,
        seed=seed,
        num_parameters=sum(p.numel() for p in generator.parameters()),
        spent=spent,
        heldout=look,
        samples=tuple(samples),
    )
