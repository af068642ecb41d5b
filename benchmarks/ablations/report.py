"""The tables of docs/results/ablations.md: means over seeds, with the least and the most where there are several."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from benchmarks.ablations.variants import WHOLE, Variant
from tatok.evaluation.comparison import PolicyScore
from tatok.evaluation.policies import FULL_RATE, GLOBALS_ONLY, SHIPPED
from tatok.schemas.records import count_text

__all__ = ["Trained", "tables"]

_COLUMNS: tuple[tuple[str, Callable[[PolicyScore], float], int], ...] = (
    ("PSNR", lambda score: score.psnr_db, 2),
    ("kernel", lambda score: 1000 * (score.kernel if score.kernel is not None else float("nan")), 1),
    ("perceptual", lambda score: score.perceptual_milli, 0),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Trained:
    """What was measured of one training."""

    variant: str
    seed: int
    scores: tuple[PolicyScore, ...]

    def score(self, start: str) -> PolicyScore:
        """Of the kept sets whose name starts so."""
        return next(score for score in self.scores if score.name.startswith(start))


def tables(trained: Sequence[Trained], variants: Sequence[Variant]) -> str:
    """One of the variants; one of the rivals; one of kept sets on the whole recipe's weights; what is not there."""
    titles = {variant.name: variant.title for variant in variants if variant.fixed_tokens is None}
    by_variant = {each.name: [one for one in trained if one.variant == each.name] for each in variants}
    there = {name: by_variant[name] for name in titles if by_variant[name]}
    if not there:
        return "Nothing is trained yet."
    first = next(iter(there.values()))[0]
    count = statistics.mean(each.score(SHIPPED).mean_tokens for of_one in there.values() for each in of_one)
    full = first.score(FULL_RATE)
    parts = [
        f"{full.num_images:,} held-out photos; lower is better but for PSNR (dB); kernel and perceptual distances are "
        "times 1000. Several seeds: the mean, and the least and the most.",
        "",
        f"| what is changed | seeds | {_heads(f'{count:.1f} tokens')} | {_heads(f'{full.mean_tokens:.0f} tokens')} |",
        "|---" * (2 + 2 * len(_COLUMNS)) + "|",
        *(
            f"| {titles[name]} | {len(of_one)} | {_cells([each.score(SHIPPED) for each in of_one])} | "
            f"{_cells([each.score(FULL_RATE) for each in of_one])} |"
            for name, of_one in there.items()
        ),
    ]
    missing = [name for name, of_one in by_variant.items() if not of_one]
    if missing:
        parts += ["", f"Not trained: {', '.join(missing)}."]
    if WHOLE.name in there:
        rivals = [
            (each.title, by_variant[each.name]) for each in variants if each.fixed_tokens and by_variant[each.name]
        ]
        parts += ["", *_rivals(there[WHOLE.name], rivals), *_kept_sets(there[WHOLE.name])]
    return "\n".join(parts)


def _rivals(whole: Sequence[Trained], rivals: Sequence[tuple[str, Sequence[Trained]]]) -> list[str]:
    """TaTok beside fixed rates."""
    if not rivals:
        return []
    rows = [("TaTok, DTF as shipped", [each.score(SHIPPED) for each in whole])]
    rows += [(title, [each.scores[0] for each in trained]) for title, trained in rivals]
    return [
        "Fixed rates, trained alike:",
        "",
        f"| tokenizer | seeds | tokens | bits, with positions | {' | '.join(head for head, _, _ in _COLUMNS)} |",
        "|---" * (4 + len(_COLUMNS)) + "|",
        *(
            f"| {title} | {len(scores)} | {statistics.mean(score.mean_tokens for score in scores):.1f} | "
            f"{statistics.mean(score.bits_with_positions for score in scores):.0f} | {_cells(scores)} |"
            for title, scores in rows
        ),
        "",
    ]


def _kept_sets(whole: Sequence[Trained]) -> list[str]:
    names = [score.name for score in whole[0].scores if score.name not in (FULL_RATE, GLOBALS_ONLY)]
    return [
        f"Kept sets on the same weights, those of the whole recipe ({count_text(len(whole), 'seed')}):",
        "",
        f"| kept set | tokens | bits, with positions | {' | '.join(head for head, _, _ in _COLUMNS)} |",
        "|---" * (3 + len(_COLUMNS)) + "|",
        *(
            f"| {name} | {statistics.mean(score.mean_tokens for score in scores):.1f} | "
            f"{statistics.mean(score.bits_with_positions for score in scores):.0f} | {_cells(scores)} |"
            for name in (*names, GLOBALS_ONLY)
            for scores in [[each.score(name) for each in whole]]
        ),
    ]


def _heads(of: str) -> str:
    return " | ".join(f"{of}: {head}" if not number else head for number, (head, _, _) in enumerate(_COLUMNS))


def _cells(scores: Sequence[PolicyScore]) -> str:
    return " | ".join(_spread([value(score) for score in scores], digits) for _, value, digits in _COLUMNS)


def _spread(values: Sequence[float], digits: int) -> str:
    mean = f"{statistics.mean(values):.{digits}f}"
    if len(values) == 1:
        return mean
    return f"{mean} ({min(values):.{digits}f} to {max(values):.{digits}f})"
