"""Markdown tables of the claims bench's report, and means over seeds with their spread."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from statistics import mean

__all__ = ["spread", "table"]


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    return [f"| {' | '.join(head)} |", "|---" * len(head) + "|", *(f"| {' | '.join(row)} |" for row in rows)]


def spread(values: Sequence[float | None], form: str = "{:.2f}") -> str:
    """Mean (least to most) over seeds; one value alone is without."""
    numbers = [value for value in values if value is not None]
    if not numbers:
        return "-"
    show: Callable[[float], str] = form.format
    text = show(mean(numbers))
    return text if len(numbers) == 1 else f"{text} ({show(min(numbers))} to {show(max(numbers))})"
