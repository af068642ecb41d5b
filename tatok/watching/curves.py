"""Figures over steps as one SVG: a panel a figure, and where stages begin."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

from tatok.watching.records import Record, steps_over_all

__all__ = ["curves"]

WIDTH, HEIGHT, COLUMNS = 420, 200, 2
LEFT, RIGHT, TOP, BOTTOM = 56, 12, 34, 28
_NOT_DRAWN = {"step", "hours"}
_FIRST = ("psnr_full_db", "psnr_dtf_db", "psnr_few_db", "psnr_globals_db", "surprisal_bits", "entropy_bits")
STYLE = """
svg { background: #fff; font: 12px system-ui, sans-serif; fill: #222 }
.curve { fill: none; stroke: #2563a8; stroke-width: 1.5 }
.dot { fill: #2563a8 }
.axis { stroke: #888; fill: none }
.stage { stroke: #bbb; stroke-dasharray: 3 3 }
.small { font-size: 10px; fill: #666 }
@media (prefers-color-scheme: dark) {
  svg { background: #16181d; fill: #e6e6e6 } .curve { stroke: #7db4f0 } .dot { fill: #7db4f0 }
  .small { fill: #a5a5a5 } .stage { stroke: #555 }
}
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Series:
    name: str
    steps: list[int]
    values: list[float]


def curves(records: Sequence[Record]) -> str:
    """The SVG's text; figures that are not finite are left out."""
    steps = steps_over_all(records)
    series = _series(records, steps)
    begins = [
        (0 if not number else steps[number - 1], record["stage"])
        for number, record in enumerate(records)
        if not number or record["stage"] != records[number - 1]["stage"]
    ]
    last = max(steps, default=1)
    panels = [
        f'<g transform="translate({number % COLUMNS * WIDTH} {number // COLUMNS * HEIGHT})">'
        f"{_panel(each, begins, last)}</g>"
        for number, each in enumerate(series)
    ]
    height = math.ceil(len(series) / COLUMNS) * HEIGHT
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH * COLUMNS}" height="{height}" '
        f'viewBox="0 0 {WIDTH * COLUMNS} {height}" role="img" aria-label="figures of the training over its steps">'
        f"<style>{STYLE}</style>{''.join(panels)}</svg>\n"
    )


def _series(records: Sequence[Record], steps: Sequence[int]) -> list[_Series]:
    names = dict.fromkeys(
        name
        for record in records
        for name, value in record.items()
        if isinstance(value, float) and name not in _NOT_DRAWN
    )
    ordered = [*(name for name in _FIRST if name in names), *(name for name in names if name not in _FIRST)]
    found = []
    for name in ordered:
        points = [
            (step, record[name])
            for step, record in zip(steps, records, strict=True)
            if name in record and math.isfinite(record[name])
        ]
        if points:
            found.append(_Series(name=name, steps=[step for step, _ in points], values=[value for _, value in points]))
    return found


def _panel(series: _Series, begins: Sequence[tuple[int, str]], last: int) -> str:
    low, high = min(series.values), max(series.values)
    if low == high:
        low, high = low - (abs(low) or 1) * 0.05, high + (abs(high) or 1) * 0.05

    def x(step: float) -> float:
        return LEFT + (WIDTH - LEFT - RIGHT) * step / last

    def y(value: float) -> float:
        return TOP + (HEIGHT - TOP - BOTTOM) * (high - value) / (high - low)

    floor = HEIGHT - BOTTOM
    parts = [f'<text x="{LEFT}" y="16">{escape(series.name)} {series.values[-1]:.4g}</text>']
    for step, stage in begins:
        parts.append(f'<path class="stage" d="M{x(step):.1f} {TOP}V{floor}"><title>{escape(stage)}</title></path>')
    parts.append(f'<path class="axis" d="M{LEFT} {TOP}V{floor}H{WIDTH - RIGHT}"/>')
    for value in (low, high):
        words = f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"
        parts.append(f'<text class="small" x="{LEFT - 4}" y="{y(value) + 4:.1f}" text-anchor="end">{words}</text>')
    parts.append(f'<text class="small" x="{LEFT}" y="{floor + 14}">0</text>')
    parts.append(f'<text class="small" x="{WIDTH - RIGHT}" y="{floor + 14}" text-anchor="end">{last:,} steps</text>')
    points = " ".join(f"{x(s):.1f},{y(v):.1f}" for s, v in zip(series.steps, series.values, strict=True))
    parts.append(f'<polyline class="curve" points="{points}"/>')
    if len(series.steps) == 1:
        parts.append(f'<circle class="dot" cx="{x(series.steps[0]):.1f}" cy="{y(series.values[0]):.1f}" r="2.5"/>')
    return "".join(parts)
