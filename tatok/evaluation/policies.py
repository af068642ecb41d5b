"""Policies: ways to choose the kept patches, at one mean count, to be compared on the same weights (comparison.py)."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase

import torch
import torch.nn.functional as F
from torch import Tensor

from tatok.evaluation.calibration import EncodedPhotos, calibrated_sets
from tatok.model.dtf import Criterion, DTFSettings, keep_most
from tatok.model.prior import CodeStatistics
from tatok.schemas.errors import ConfigError
from tatok.tokenizer.encoding import FullRate

__all__ = ["FULL_RATE", "GLOBALS_ONLY", "SHIPPED", "Policy", "grid_positions", "select_policies", "standard_policies"]

FULL_RATE = "full rate"
GLOBALS_ONLY = "globals only"
SHIPPED = "DTF as shipped"
NUM_ROUNDS = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class Policy:
    """A named way to choose kept sets: one bool [B, N] a batch, in the photos' order.

    `needs_positions` says whether a decoder must be told the positions, or can work them out from the globals.
    """

    name: str
    choose: Callable[[EncodedPhotos], list[Tensor]]
    needs_positions: bool


def grid_positions(height: int, width: int, num_kept: int) -> Tensor:
    """An even kept set, bool [N], of exactly `num_kept` positions (at most N) for a grid of `height` x `width`.

    As many evenly spaced rows as a square lattice would have, the kept positions shared out evenly among the rows and
    evenly spaced in each.
    """
    num_kept = min(num_kept, height * width)
    kept = torch.zeros(height, width, dtype=torch.bool)
    if num_kept > 0:
        fewest = -(-num_kept // width)  # rows that hold so many at all
        num_rows = min(max(round(math.sqrt(num_kept * height / width)), fewest, 1), height, num_kept)
        for row in range(num_rows):
            num_here = (row + 1) * num_kept // num_rows - row * num_kept // num_rows
            columns = ((torch.arange(num_here) + 0.5) * width / num_here).long()
            kept[int((row + 0.5) * height / num_rows), columns] = True
    return kept.flatten()


def standard_policies(
    settings: DTFSettings, num_global: int, mean_tokens: float, *, seed: int = 0, patterns: Sequence[str] | None = None
) -> list[Policy]:
    """DTF under `settings` and under every criterion, and the policies that it has to beat, at one mean count.

    DTF's thresholds, and the error router's, are calibrated on the very photos that are evaluated, so that the mean
    counts are equal; a fixed count is rounded. `patterns` select by name (see `select_policies`).
    Raises ConfigError where `mean_tokens` is less than every image's globals.
    """
    num_kept = round(mean_tokens) - num_global
    if mean_tokens < num_global:
        raise ConfigError(f"{mean_tokens:g} tokens cannot be the mean: every image has {num_global} global tokens")
    entropy, surprisal = _one_round("entropy"), _one_round("surprisal")
    content, distance, residual = _one_round("content"), _one_round("distance"), _one_round("residual")
    fraction = DTFSettings(criterion="entropy", threshold_kind="fraction")
    texture = f", texture over {settings.texture_bits:g} bits" if settings.texture_bits else ""
    shipped = f"{SHIPPED}: {settings.criterion}, {settings.threshold_kind}, R={settings.rounds}{texture}"
    policies = [
        Policy(name=FULL_RATE, choose=_each_batch(lambda full, first: first.entropy >= 0), needs_positions=False),
        _dtf(shipped, settings, mean_tokens),
        _dtf("DTF distance", distance, mean_tokens),
        _dtf("DTF residual", residual, mean_tokens),
        _dtf("DTF content", content, mean_tokens),
        _dtf("DTF entropy (the paper's reading)", entropy, mean_tokens),
        _dtf("DTF entropy, fraction tau", fraction, mean_tokens),
        _dtf("DTF surprisal", surprisal, mean_tokens),
        _dtf(f"DTF distance, {NUM_ROUNDS} rounds", replace(distance, rounds=NUM_ROUNDS), mean_tokens),
        _dtf(f"DTF content, {NUM_ROUNDS} rounds", replace(content, rounds=NUM_ROUNDS), mean_tokens),
        _dtf(f"DTF entropy, {NUM_ROUNDS} rounds", replace(entropy, rounds=NUM_ROUNDS), mean_tokens),
        Policy(
            name="error router (a full decode)",
            choose=lambda photos: _route_by_error(photos, mean_tokens),
            needs_positions=True,
        ),
        Policy(
            name="fixed k by distance",
            choose=_fixed(num_kept, lambda full, first: first.distance),
            needs_positions=True,
        ),
        Policy(
            name="fixed k by residual",
            choose=_fixed(num_kept, lambda full, first: full.residual_BN),
            needs_positions=True,
        ),
        Policy(
            name="fixed k by content",
            choose=_fixed(num_kept, lambda full, first: first.variance),
            needs_positions=False,
        ),
        Policy(
            name="fixed k by entropy",
            choose=_fixed(num_kept, lambda full, first: first.entropy),
            needs_positions=False,
        ),
        Policy(
            name="uniform grid",
            choose=_each_batch(
                lambda full, first: (
                    grid_positions(*full.grid, num_kept).to(first.entropy.device).expand_as(first.entropy)
                )
            ),
            needs_positions=False,
        ),
        Policy(name="random", choose=lambda photos: _random(photos, num_kept, seed), needs_positions=True),
        Policy(name=GLOBALS_ONLY, choose=_each_batch(lambda full, first: first.entropy < 0), needs_positions=False),
    ]
    return policies if patterns is None else select_policies(policies, patterns)


def select_policies(policies: Sequence[Policy], patterns: Sequence[str]) -> list[Policy]:
    """The policies whose names match any of the patterns ("random", "DTF*", "fixed k*"), in their own order.

    Raises ConfigError where a pattern matches no name.
    """
    for pattern in patterns:
        if not any(fnmatchcase(policy.name, pattern) for policy in policies):
            raise ConfigError(f"no policy is named {pattern!r}; there are: {'; '.join(p.name for p in policies)}")
    return [policy for policy in policies if any(fnmatchcase(policy.name, pattern) for pattern in patterns)]


def _one_round(criterion: Criterion) -> DTFSettings:
    return DTFSettings(criterion="entropy").with_criterion(criterion)


def _dtf(name: str, settings: DTFSettings, mean_tokens: float) -> Policy:
    return Policy(
        name=name,
        choose=lambda photos: calibrated_sets(photos, mean_tokens, settings)[1],
        needs_positions=settings.needs_positions,
    )


_OfBatch = Callable[[FullRate, CodeStatistics], Tensor]


def _each_batch(choose: _OfBatch) -> Callable[[EncodedPhotos], list[Tensor]]:
    def choose_all(photos: EncodedPhotos) -> list[Tensor]:
        return [choose(full, first) for full, first in zip(photos.full, photos.first, strict=True)]

    return choose_all


def _fixed(num_kept: int, values: _OfBatch) -> Callable[[EncodedPhotos], list[Tensor]]:
    def choose(full: FullRate, first: CodeStatistics) -> Tensor:
        units_BN = (values(full, first).double() * 1024).round().long()
        return keep_most(units_BN, torch.full((len(units_BN),), num_kept, device=units_BN.device))

    return _each_batch(choose)


def _random(photos: EncodedPhotos, num_kept: int, seed: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)

    def choose(full: FullRate, first: CodeStatistics) -> Tensor:
        num_images, num_positions = first.entropy.shape
        ranks = torch.stack([torch.randperm(num_positions, generator=generator) for _ in range(num_images)])
        return (ranks < num_kept).to(first.entropy.device)

    return _each_batch(choose)(photos)


def _route_by_error(photos: EncodedPhotos, mean_tokens: float) -> list[Tensor]:
    """Keep the patches, over all photos, that are wrong by most when the globals alone are decoded.

    A router by distortion, as InfoTok has one (its reference is the mean image of a dataset, ours what the globals
    tell): the encoder must decode each image once to choose. One threshold on the squared error serves all photos.
    """
    tokenizer = photos.tokenizer
    errors = []
    for pixels, full in zip(photos.pixels, photos.full, strict=True):
        rebuilt = tokenizer.rebuild(full, torch.zeros_like(full.codes.patch_BN, dtype=torch.bool))
        squares = (rebuilt.cpu().long() - pixels.cpu().long()).square()  # integers: ties and order are exact
        errors.append(F.pixel_unshuffle(squares, tokenizer.patch_size).sum(1).flatten(1))
    units = torch.cat([error_BN.flatten() for error_BN in errors])
    total = round((mean_tokens - tokenizer.num_global) * len(photos))
    kept = keep_most(units[None], torch.tensor([total]))[0]
    parts = kept.split([error_BN.numel() for error_BN in errors])
    return [
        part.view_as(error_BN).to(full.codes.patch_BN.device)
        for part, error_BN, full in zip(parts, errors, photos.full, strict=True)
    ]
