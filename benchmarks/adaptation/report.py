"""The tables of docs/results/adapt.md: means over seeds, with the least and the most."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from benchmarks.adaptation.compare import Adapted, Cost
from tatok.evaluation.comparison import PolicyScore

__all__ = ["CaseResults", "tables"]


@dataclass(frozen=True, slots=True, kw_only=True)
class CaseResults:
    """All that was measured of one frozen tokenizer."""

    name: str
    title: str
    num_global: int
    num_positions: int
    adapted: tuple[Adapted, ...]
    cost: Cost


def tables(cases: Sequence[CaseResults]) -> str:
    """A section a case."""
    return "\n".join(_case(case) for case in cases)


def _case(case: CaseResults) -> str:
    full = case.adapted[0].full_rate
    seeds = ", ".join(str(each.seed) for each in case.adapted)
    lines = [
        f"### {case.title.capitalize() if case.title[0].islower() else case.title}",
        "",
        f"{full.num_images:,} held-out images; {case.num_global} globals; seeds of the adaptation: {seeds}. All "
        f"{case.num_positions} tokens, by the frozen tokenizer itself: {full.psnr_db:.2f} dB, kernel "
        f"{_spread([full], _kernel, 1)}, perceptual {full.perceptual_milli:.0f}.",
        "",
        "| share of tokens | kept set, and fill | tokens | PSNR | kernel x 1000 | perceptual x 1000 |",
        "|---|---|---|---|---|---|",
    ]
    for number, at_share in enumerate(case.adapted[0].at_shares):
        for row, first in enumerate(at_share.scores):
            scores = [each.at_shares[number].scores[row] for each in case.adapted]
            assert all(score.name == first.name for score in scores)
            lines.append(
                f"| {at_share.share:.0%} | {first.name} | {statistics.mean(s.mean_tokens for s in scores):.1f} | "
                f"{_spread(scores, lambda s: s.psnr_db, 2)} | {_spread(scores, _kernel, 1)} | "
                f"{_spread(scores, lambda s: s.perceptual_milli, 0)} |"
            )
    prior = [each.given_globals for each in case.adapted]
    entropy, surprisal = (
        statistics.mean(getattr(p, f"{name}_bits") for p in prior) for name in ("entropy", "surprisal")
    )
    lines += [
        "",
        f"The prior given the globals: {entropy:.2f} bits of entropy a position, {surprisal:.2f} of surprisal. On one "
        f"thread, beside the frozen encoder's time, the globals take {_ratio(case.cost.globals_ratios)} and prior and "
        f"filter {_ratio(case.cost.filter_ratios)} of it (median of {len(case.cost.filter_ratios)} turns in turn, "
        "least to most).",
        "",
    ]
    return "\n".join(lines)


def _kernel(score: PolicyScore) -> float | None:
    return None if score.kernel is None else 1000 * score.kernel


def _spread(scores: Sequence[PolicyScore], of: Callable[[PolicyScore], float | None], digits: int) -> str:
    values = [value for value in map(of, scores) if value is not None]
    if not values:
        return "-"  # too few images for a distance of sets
    mean = f"{statistics.mean(values):.{digits}f}"
    return mean if len(values) == 1 else f"{mean} ({min(values):.{digits}f} to {max(values):.{digits}f})"


def _ratio(values: Sequence[float]) -> str:
    return f"{statistics.median(values):.2f} ({min(values):.2f} to {max(values):.2f})"
