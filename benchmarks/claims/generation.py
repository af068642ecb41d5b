"""The claims bench's generators: tokenize with the pipeline, train generators alike on what it wrote.

Tokenizations of the same images, the full rate's first. Its generator has a budget of training tokens, and how long it
takes is measured; the others are trained once with as many tokens and once with as much time. Steps run one after
another with all threads, since time is a budget here.
"""

from __future__ import annotations

import shutil
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import torch

from benchmarks.claims.models import Setting, Variant
from benchmarks.claims.reconstruction import encoded
from tatok.dataset.parts import TokenizedData
from tatok.evaluation.calibration import calibrate
from tatok.generator.checkpoint import load_generator
from tatok.generator.recipe import GeneratorRecipe, HeldOutLoss, Spent
from tatok.generator.training import CHECKPOINT, train_generator
from tatok.model.checkpoint import load_checkpoint, write_dtf
from tatok.pipeline.run import run_job
from tatok.schemas.errors import TatokError
from tatok.schemas.job import JobConfig

__all__ = ["Budget", "Generation", "Tokenization", "generate", "generator_folder", "tokenize"]

Budget = Literal["tokens", "time"]

KEEPS_ALL, KEEPS_NONE = 0.0, 1e9  # distortions


@dataclass(frozen=True, slots=True, kw_only=True)
class Tokenization:
    """The two datasets of one model, and the mean count of the one to train on."""

    variant: str
    checkpoint: str
    train: str
    heldout: str
    mean_tokens: float
    num_images: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Generation:
    """One generator; `variant` names the model whose tokens it speaks."""

    variant: str
    budget: Budget
    seed: int
    num_parameters: int
    spent: Spent
    heldout: HeldOutLoss


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


def generator_folder(work: Path, variant: str, budget: Budget, seed: int) -> Path:
    """Where a generator is trained."""
    return work / "generators" / f"{variant}-{budget}-{seed}"


def generate(
    tokenization: Tokenization,
    setting: Setting,
    budget: Budget,
    seed: int,
    *,
    seconds: float | None,
    work: Path,
    device: str,
) -> Generation:
    """Train a generator, or resume training it; `seconds` are the budget of time."""
    recipe = _recipe(setting, seed, setting.generator_tokens if budget == "tokens" else None, seconds)
    output = generator_folder(work, tokenization.variant, budget, seed)
    spent, look = train_generator(
        tokenization.train, output, recipe, torch.device(device), heldout=tokenization.heldout, log_every_steps=100
    )
    assert look is not None
    loaded = load_generator(output / CHECKPOINT)
    return Generation(
        variant=tokenization.variant,
        budget=budget,
        seed=seed,
        num_parameters=sum(p.numel() for p in loaded.generator.parameters()),
        spent=spent,
        heldout=look,
    )
