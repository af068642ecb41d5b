"""One adapted tokenizer on held-out images: kept sets at equal counts, fills at equal sets, and what it costs."""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeVar

import torch
from torch import Tensor

from benchmarks.adaptation.cases import Case
from tatok.evaluation.calibration import EncodedPhotos
from tatok.evaluation.comparison import PolicyScore, evaluate
from tatok.evaluation.diagnostics import PriorCalibration, tokenizer_report
from tatok.evaluation.distances import ImageFeatures, load_features
from tatok.evaluation.policies import FULL_RATE, Policy, grid_positions, standard_policies
from tatok.frozen.config import FillSettings
from tatok.model.pixels import to_float
from tatok.tokenizer.beneath import any_checkpoint
from tatok.tokenizer.tokenizer import Tokenizer
from tatok.training.photos import centre_crops, expand_sources

__all__ = ["CONSTANT", "DTF", "KEPT_SETS", "Adapted", "AtShare", "Cost", "compare", "cost"]

DTF = "DTF distance"
KEPT_SETS = (
    DTF,
    "DTF entropy (the paper's reading)",
    "fixed k by distance",
    "fixed k by entropy",
    "uniform grid",
    "random",
)
CONSTANT = f"{DTF}, constant in place of the fill"
FILLS = {
    CONSTANT: FillSettings(kind="constant"),
    f"{DTF}, nearest code to the mean": FillSettings(kind="nearest"),
    f"{DTF}, most probable code": FillSettings(kind="mode"),
    f"{DTF}, most probable code in 4 rounds": FillSettings(kind="mode", rounds=4),
}
NO_GLOBALS = "uniform grid without globals, constant"


@dataclass(frozen=True, slots=True, kw_only=True)
class AtShare:
    """Scores at one share of the frozen tokenizer's tokens."""

    share: float
    scores: tuple[PolicyScore, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Adapted:
    """One seed's figures; `full_rate` is the frozen tokenizer by itself."""

    seed: int
    full_rate: PolicyScore
    at_shares: tuple[AtShare, ...]
    given_globals: PriorCalibration


@dataclass(frozen=True, slots=True, kw_only=True)
class Cost:
    """CPU time of one thread, each turn's over that of the frozen encoder's in the same turn."""

    num_images: int
    globals_ratios: tuple[float, ...]
    filter_ratios: tuple[float, ...]


def compare(case: Case, seed: int, checkpoint: Path) -> Adapted:
    """Every kept set and every fill at every share; fills of DTF's own sets, and of a grid that has no globals."""
    tokenizer = Tokenizer.load(checkpoint, "cpu")
    crops = centre_crops(expand_sources([case.heldout]), case.image_size, case.num_heldout)
    photos = EncodedPhotos(tokenizer, crops)
    features = ImageFeatures(load_features("mobilenet"), photos.pixels, tokenizer.device)
    full = standard_policies(tokenizer.dtf, tokenizer.num_global, case.num_global, patterns=[FULL_RATE])
    at_shares = []
    for share in case.shares:
        tokens = share * case.num_positions
        policies = standard_policies(tokenizer.dtf, tokenizer.num_global, tokens, seed=seed, patterns=list(KEPT_SETS))
        sets = {policy.name: policy.choose(photos) for policy in policies}
        scores = evaluate(photos, [_given(policy, sets[policy.name]) for policy in policies], features=features)
        dtf = next(policy for policy in policies if policy.name == DTF)
        for name, fill in FILLS.items():
            filled = _filled(photos, fill)
            of_sets = features if name == CONSTANT else None  # whose distances take most of the time
            scores += evaluate(filled, [replace(_given(dtf, sets[DTF]), name=name)], features=of_sets)
        (bare,) = evaluate(_filled(photos, FILLS[CONSTANT]), [_grid(round(tokens))], features=features)
        scores.append(_without_globals(bare, tokenizer))
        at_shares.append(AtShare(share=share, scores=tuple(scores)))
    return Adapted(
        seed=seed,
        full_rate=evaluate(photos, full, features=features)[0],
        at_shares=tuple(at_shares),
        given_globals=tokenizer_report(photos).given_globals,
    )


def _given(policy: Policy, kept: list[Tensor]) -> Policy:
    """The policy with sets that were chosen before: choosing takes a search."""
    return replace(policy, choose=lambda photos: kept)


def _filled(photos: EncodedPhotos, fill: FillSettings) -> EncodedPhotos:
    """The photos as encoded, decoded with another fill."""
    other = copy.copy(photos)
    other.tokenizer = photos.tokenizer.with_fill(fill)
    return other


def _grid(num_kept: int) -> Policy:
    def choose(photos: EncodedPhotos) -> list[Tensor]:
        return [
            grid_positions(*full.grid, num_kept).expand(full.codes.patch_BN.shape).contiguous() for full in photos.full
        ]

    return Policy(name=NO_GLOBALS, choose=choose, needs_positions=False)


def _without_globals(score: PolicyScore, tokenizer: Tokenizer) -> PolicyScore:
    """The score of sets that were filled without a look at the globals, which then need not be sent."""
    bits = tokenizer.num_global * math.log2(tokenizer.vocab_size)
    return replace(
        score,
        mean_tokens=score.mean_tokens - tokenizer.num_global,
        bits=score.bits - bits,
        bits_with_positions=score.bits_with_positions - bits,
    )


@torch.inference_mode()
def cost(case: Case, checkpoint: Path, *, num_images: int = 64, turns: int = 7) -> Cost:
    """What globals, and prior with DTF, take beside the frozen encoder, in turns after one that warms up."""
    tokenizer, canvas = Tokenizer.load(checkpoint, "cpu"), any_checkpoint(checkpoint).model.canvas
    crops = centre_crops(expand_sources([case.heldout]), case.image_size, num_images)
    pixels = torch.stack(list(crops))
    found: list[tuple[float, float]] = []
    for turn in range(-1, turns):
        codes_s, _ = _timed(lambda: canvas.working(to_float(pixels)))
        full_s, full = _timed(lambda: tokenizer.full_rate(pixels))
        filter_s, _ = _timed(lambda full=full: tokenizer.filter(full))  # type: ignore[misc]
        if turn >= 0:
            found.append(((full_s - codes_s) / codes_s, filter_s / codes_s))
    return Cost(
        num_images=len(pixels),
        globals_ratios=tuple(each[0] for each in found),
        filter_ratios=tuple(each[1] for each in found),
    )


T = TypeVar("T")


def _timed(call: Callable[[], T]) -> tuple[float, T]:
    started = time.process_time()
    made = call()
    return time.process_time() - started, made
