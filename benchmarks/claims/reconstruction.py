"""The claims bench's reconstruction: train one model, rebuild held-out images under every policy, keep the figures."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path

import torch

from benchmarks.claims.models import Setting, Variant, training_config
from tatok.evaluation.calibration import EncodedPhotos
from tatok.evaluation.comparison import PolicyScore, evaluate
from tatok.evaluation.diagnostics import PriorCalibration, tokenizer_report
from tatok.evaluation.distances import ImageFeatures, load_features
from tatok.evaluation.policies import FULL_RATE, GLOBALS_ONLY, SHIPPED, standard_policies
from tatok.model.checkpoint import load_checkpoint
from tatok.tokenizer.tokenizer import Tokenizer
from tatok.training.photos import centre_crops
from tatok.training.run import train

__all__ = [
    "IN_ABLATIONS",
    "SAME_WEIGHTS_RIVALS",
    "CodeFigures",
    "Point",
    "Reconstruction",
    "encoded",
    "reconstruct",
    "run_folder",
]

SAME_WEIGHTS_RIVALS = ("random", "uniform grid", "fixed k by distance", "fixed k by content", "fixed k by entropy")
IN_MARGINS = ("DTF distance", "DTF content", *SAME_WEIGHTS_RIVALS)
IN_ABLATIONS = ("DTF distance", "DTF content", "DTF entropy (the paper's reading)", "random", GLOBALS_ONLY)
# Every policy is scored at the headline's count; these trace the curve, without distances between sets.
ON_THE_CURVE = ("DTF distance", "DTF content", "DTF entropy (the paper's reading)", "fixed k by distance", "random")


@dataclass(frozen=True, slots=True, kw_only=True)
class Point:
    """Scores at one wanted mean count (None: the only one that a fixed-rate model has)."""

    wanted_tokens: int | None
    scores: tuple[PolicyScore, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class CodeFigures:
    """What a model's codes and prior are like on held-out images; the first two are None where there are no globals.

    Perplexities are of the codes in use; calibrations are of hidden patches given the globals, and given half of the
    other patches as well.
    """

    global_codes_used: int | None
    global_perplexity: float | None
    patch_codes_used: int
    patch_perplexity: float
    given_globals: PriorCalibration
    given_half: PriorCalibration


@dataclass(frozen=True, slots=True, kw_only=True)
class Reconstruction:
    """One model's figures; `seconds` are those of its training, on as many threads as the bench gave it."""

    variant: str
    seed: int
    seconds: float
    num_images_trained: int
    num_parameters: int
    points: tuple[Point, ...]
    codes: CodeFigures | None


def run_folder(work: Path, variant: Variant, seed: int) -> Path:
    """Where a model is trained."""
    return work / "models" / f"{variant.name}-{seed}"


def encoded(checkpoint: Path, heldout: list[str], setting: Setting, device: str) -> EncodedPhotos:
    """Held-out images under a trained model."""
    tokenizer = Tokenizer.load(checkpoint, device)
    return EncodedPhotos(tokenizer, centre_crops(heldout, setting.image_size, setting.num_heldout))


def reconstruct(
    variant: Variant, setting: Setting, seed: int, *, work: Path, photos: list[str], heldout: list[str], device: str
) -> Reconstruction:
    """Train (or resume training) one model and evaluate it."""
    started = time.monotonic()
    config = training_config(
        variant,
        setting,
        seed,
        output=str(run_folder(work, variant, seed)),
        photos=tuple(photos),
        heldout=tuple(heldout),
    )
    checkpoint = Path(train(config, torch.device(device)))
    seconds = time.monotonic() - started
    images = encoded(checkpoint, heldout, setting, device)
    features = ImageFeatures(load_features("mobilenet"), images.pixels, device)
    tokenizer, num_global = images.tokenizer, images.tokenizer.num_global
    if variant.fixed_tokens is not None:
        only = FULL_RATE if num_global == 0 else GLOBALS_ONLY
        policies = standard_policies(tokenizer.dtf, num_global, num_global, patterns=[only])
        points = [Point(wanted_tokens=None, scores=tuple(evaluate(images, policies, features=features)))]
        codes = None
    else:
        points = []
        for count in sorted({setting.headline, *setting.curve}):
            policies = standard_policies(tokenizer.dtf, num_global, count, seed=seed)
            policies = [policy for policy in policies if not policy.name.startswith(SHIPPED)]
            if variant.group == "ablation":
                policies = [policy for policy in policies if policy.name in IN_ABLATIONS]
            elif seed != setting.seeds[0]:
                policies = [policy for policy in policies if policy.name in (*IN_MARGINS, *ON_THE_CURVE)]
            if count == setting.headline:
                scores = evaluate(images, policies, features=features)
            else:
                scores = evaluate(images, [policy for policy in policies if policy.name in ON_THE_CURVE])
            points.append(Point(wanted_tokens=count, scores=tuple(scores)))
        codes = _code_figures(images)
    return Reconstruction(
        variant=variant.name,
        seed=seed,
        seconds=seconds,
        num_images_trained=sum(stage.steps * stage.batch_size for stage in config.stages),
        num_parameters=sum(p.numel() for p in load_checkpoint(checkpoint).model.parameters()),
        points=tuple(points),
        codes=codes,
    )


def _code_figures(images: EncodedPhotos) -> CodeFigures:
    report = tokenizer_report(images)
    of_globals, of_patches = report.global_codes, report.patch_codes
    return CodeFigures(
        global_codes_used=of_globals.num_codes_used if of_globals else None,
        global_perplexity=of_globals.perplexity if of_globals else None,
        patch_codes_used=of_patches.num_codes_used,
        patch_perplexity=of_patches.perplexity,
        given_globals=report.given_globals,
        given_half=report.given_half,
    )
