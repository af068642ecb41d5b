"""Evaluation: what each way of choosing the kept patches costs in distortion, at the same weights and mean count."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from tatok.calibration import EncodedPhotos, calibrate
from tatok.dtf import DTFSettings, keep_most
from tatok.features import MobileNetFeatures, perceptual_distance
from tatok.prior import CodeStatistics
from tatok.tokenizer import to_float

__all__ = ["Policy", "PolicyScore", "evaluate", "grid_positions", "standard_policies"]

FULL_RATE = "full rate"
GLOBALS_ONLY = "globals only"


@dataclass(frozen=True, slots=True, kw_only=True)
class Policy:
    """A named way to choose kept sets: one bool [B, N] a batch, in the photos' order.

    `needs_positions` tells whether a decoder must be told the positions, or can work them out from the globals.
    """

    name: str
    choose: Callable[[EncodedPhotos], list[Tensor]]
    needs_positions: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class PolicyScore:
    """Held-out figures of one policy.

    PSNR in dB: the mean over images, and that of the mean squared error over all images. `perceptual` is the mean
    channel-normalised feature distance (features.py), times 1000. Bits are an image's codes at log2 K each, without
    and with its positions (log2 of the number of kept sets of that size, where they must be told).
    """

    name: str
    num_images: int
    mean_tokens: float
    psnr_db: float
    psnr_of_mean_db: float
    perceptual_milli: float
    bits: float
    bits_with_positions: float


def grid_positions(height: int, width: int, num_kept: int) -> Tensor:
    """An even kept set, bool [N]: a lattice of r x c points, r * c nearest to `num_kept`, r / c to the grid's."""
    if num_kept <= 0:
        return torch.zeros(height * width, dtype=torch.bool)
    rows, columns = min(
        ((r, max(1, round(num_kept / r))) for r in range(1, height + 1)),
        key=lambda rc: (abs(rc[0] * rc[1] - num_kept), abs(math.log(rc[0] * width / (rc[1] * height)))),
    )
    ys = ((torch.arange(rows) + 0.5) * height / rows).long()
    xs = ((torch.arange(min(columns, width)) + 0.5) * width / min(columns, width)).long()
    kept = torch.zeros(height, width, dtype=torch.bool)
    kept[ys[:, None], xs[None, :]] = True
    return kept.flatten()


def _each_batch(
    choose: Callable[[int, int, tuple[int, int], CodeStatistics], Tensor],
) -> Callable[[EncodedPhotos], list[Tensor]]:
    def choose_all(photos: EncodedPhotos) -> list[Tensor]:
        return [
            choose(full.codes.patch_BN.shape[0], full.codes.patch_BN.shape[1], full.grid, first)
            for full, first in zip(photos.full, photos.first, strict=True)
        ]

    return choose_all


def _dtf(name: str, settings: DTFSettings, mean_tokens: float) -> Policy:
    def choose(photos: EncodedPhotos) -> list[Tensor]:
        found = calibrate(photos, mean_tokens, settings).dtf
        return [filtered.kept_BN for filtered in photos.filter(found)]

    return Policy(name=name, choose=choose, needs_positions=settings.needs_positions)


def standard_policies(settings: DTFSettings, num_global: int, mean_tokens: float, seed: int = 0) -> list[Policy]:
    """DTF under `settings` and under every criterion, and the policies that it has to beat, at one mean count.

    DTF's thresholds are calibrated on the very photos that are evaluated, so that the mean counts are equal.
    """
    num_kept = round(mean_tokens) - num_global
    generator = torch.Generator().manual_seed(seed)

    def fixed(values: Callable[[CodeStatistics], Tensor]) -> Callable[[EncodedPhotos], list[Tensor]]:
        return _each_batch(
            lambda b, n, grid, first: keep_most(
                (values(first).double() * 1024).round().long(), torch.full((b,), num_kept, device=first.entropy.device)
            )
        )

    def random(b: int, n: int, grid: tuple[int, int], first: CodeStatistics) -> Tensor:
        ranks = torch.stack([torch.randperm(n, generator=generator) for _ in range(b)])
        return (ranks < num_kept).to(first.entropy.device)

    entropy = DTFSettings(criterion="entropy", threshold_kind="residual_bits")
    fraction = DTFSettings(criterion="entropy", threshold_kind="fraction")
    surprisal = DTFSettings(criterion="surprisal", threshold_kind="residual_bits")
    content = DTFSettings(criterion="content", threshold_kind="distortion")
    distance = DTFSettings(criterion="distance", threshold_kind="distortion")
    shipped = f"DTF as shipped: {settings.criterion}, {settings.threshold_kind}, R={settings.rounds}"
    return [
        Policy(name=FULL_RATE, choose=_each_batch(lambda b, n, g, f: f.entropy >= 0), needs_positions=False),
        _dtf(shipped, settings, mean_tokens),
        _dtf("DTF distance", distance, mean_tokens),
        _dtf("DTF content", content, mean_tokens),
        _dtf("DTF entropy (the paper's reading)", entropy, mean_tokens),
        _dtf("DTF entropy, fraction tau", fraction, mean_tokens),
        _dtf("DTF surprisal", surprisal, mean_tokens),
        Policy(name="fixed k by distance", choose=fixed(lambda f: f.distance), needs_positions=True),
        Policy(name="fixed k by content", choose=fixed(lambda f: f.variance), needs_positions=False),
        Policy(name="fixed k by entropy", choose=fixed(lambda f: f.entropy), needs_positions=False),
        Policy(
            name="uniform grid",
            choose=_each_batch(lambda b, n, g, f: grid_positions(*g, num_kept).expand(b, n).to(f.entropy.device)),
            needs_positions=False,
        ),
        Policy(name="random", choose=_each_batch(random), needs_positions=True),
        Policy(name=GLOBALS_ONLY, choose=_each_batch(lambda b, n, g, f: f.entropy < 0), needs_positions=False),
    ]


@torch.inference_mode()
def evaluate(photos: EncodedPhotos, policies: list[Policy]) -> list[PolicyScore]:
    """Score every policy on the photos; the perceptual network is not the one that training uses."""
    network = MobileNetFeatures().to(photos.tokenizer.device)
    references = [network(to_float(pixels).to(photos.tokenizer.device)) for pixels in photos.pixels]
    code_bits = math.log2(photos.tokenizer.vocab_size)
    scores = []
    for policy in policies:
        errors, distances, tokens, bits, bits_with_positions = [], [], [], [], []
        for pixels, full, kept, reference in zip(
            photos.pixels, photos.full, policy.choose(photos), references, strict=True
        ):
            rebuilt = photos.tokenizer.rebuild(full, kept)
            difference = rebuilt.cpu().double() - pixels.double()
            errors += (difference.square().mean((1, 2, 3)) / 255**2).tolist()
            distances += perceptual_distance(network(to_float(rebuilt)), reference).tolist()
            for num_kept in kept.sum(1).tolist():
                count = num_kept + photos.tokenizer.num_global
                positions = math.log2(math.comb(kept.shape[1], num_kept)) if policy.needs_positions else 0.0
                tokens.append(count)
                bits.append(count * code_bits)
                bits_with_positions.append(count * code_bits + positions)
        num = len(errors)
        scores.append(
            PolicyScore(
                name=policy.name,
                num_images=num,
                mean_tokens=sum(tokens) / num,
                psnr_db=sum(-10 * math.log10(max(e, 1e-12)) for e in errors) / num,
                psnr_of_mean_db=-10 * math.log10(max(sum(errors) / num, 1e-12)),
                perceptual_milli=1000 * sum(distances) / num,
                bits=sum(bits) / num,
                bits_with_positions=sum(bits_with_positions) / num,
            )
        )
    return scores
