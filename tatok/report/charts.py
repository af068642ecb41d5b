"""Numbers -> charts as plain geometry, each with a table of its numbers; templates/charts.html.j2 draws them as SVG."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from tatok.report.heat import heat_colours
from tatok.report.rows import EntropyAgainstTokens
from tatok.statistics.distribution import Distribution
from tatok.statistics.summary import CodebookUse, KeptShare
from tatok.statistics.units import Noun

__all__ = [
    "Chart",
    "Line",
    "Note",
    "Rectangle",
    "Scale",
    "Table",
    "Tick",
    "codebook_chart",
    "entropy_chart",
    "histogram_chart",
    "kept_chart",
    "short_number",
]

WIDTH, HEIGHT = 460.0, 300.0
LEFT, RIGHT, TOP, BOTTOM = 52.0, 442.0, 34.0, 248.0
MOST_CELLS = 32
MOST_TABLE_ROWS = 10
FAINTEST = 0.2  # of the colour scale: the darkest colours would not stand out from a dark page
LEAST_RANGE = 0.1  # of shares: a narrower scale would paint chance in strong colours


@dataclass(frozen=True, slots=True, kw_only=True)
class Tick:
    """A mark on an axis, in the chart's units."""

    place: float
    label: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Rectangle:
    """A filled rectangle; `fill` is a CSS colour, or empty for the colour of `kind`."""

    x: float
    y: float
    width: float
    height: float
    kind: str
    fill: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Line:
    """A polyline through `points`, styled by its kind."""

    points: tuple[tuple[float, float], ...]
    kind: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Note:
    """Words within a chart; `anchor` is start, middle or end."""

    x: float
    y: float
    text: str
    anchor: str
    kind: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Scale:
    """What the colours of a chart mean: the ends of the colour scale, of which `start` .. 1 is used."""

    low: str
    high: str
    unit: str
    start: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Table:
    """The same numbers for those who do not see the chart; the first cell of each row heads it."""

    headings: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Chart:
    """One chart of width x height units; `name` is unique on the page, `description` says what it shows."""

    name: str
    title: str
    description: str
    table: Table
    width: float = WIDTH
    height: float = HEIGHT
    plot: tuple[float, float, float, float] = (LEFT, TOP, RIGHT, BOTTOM)
    x_label: str = ""
    y_label: str = ""
    x_ticks: tuple[Tick, ...] = ()
    y_ticks: tuple[Tick, ...] = ()
    rectangles: tuple[Rectangle, ...] = ()
    lines: tuple[Line, ...] = ()
    dots: tuple[tuple[float, float], ...] = ()
    notes: tuple[Note, ...] = ()
    scale: Scale | None = None


def short_number(value: float) -> str:
    """At most four characters or so: 950, 1.2k, 34M."""
    for size, letter in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= size * 0.9995:
            return f"{value / size:.3g}{letter}"
    return f"{value:.3g}"


def histogram_chart(name: str, title: str, unit: str, distribution: Distribution, *, noun: Noun = "image") -> Chart:
    """Rows a bin, with the median and the middle 90% marked."""
    edges, counts = distribution.histogram.edges, distribution.histogram.counts
    x, x_ticks = _axis(edges[0], edges[-1], LEFT, RIGHT)
    y, y_ticks = _axis(0, max(counts), BOTTOM, TOP, num_ticks=4, whole=True)
    gap = 1.5 if len(counts) > 1 else 0
    bars = [
        Rectangle(x=x(low) + gap / 2, y=y(count), width=x(high) - x(low) - gap, height=BOTTOM - y(count), kind="bar")
        for low, high, count in zip(edges[:-1], edges[1:], counts, strict=True)
        if count
    ]
    band = Rectangle(
        x=x(distribution.p5), y=TOP, width=x(distribution.p95) - x(distribution.p5), height=BOTTOM - TOP, kind="band"
    )
    median = x(distribution.median)
    anchor = "start" if median < LEFT + 60 else "end" if median > RIGHT - 60 else "middle"
    rows = [
        (f"{low:,g} to {high:,g}", f"{count:,}") for low, high, count in zip(edges, edges[1:], counts, strict=False)
    ]
    figures = [
        ("mean", distribution.mean),
        ("standard deviation", distribution.std),
        ("least", distribution.min),
        ("5th percentile", distribution.p5),
        ("median", distribution.median),
        ("95th percentile", distribution.p95),
        ("greatest", distribution.max),
    ]
    return Chart(
        name=name,
        title=title,
        description=f"Histogram of {distribution.num_values:,} {noun}s: from {distribution.min:,.4g} to "
        f"{distribution.max:,.4g} {unit}, median {distribution.median:,.4g}, nine in ten between "
        f"{distribution.p5:,.4g} and {distribution.p95:,.4g}.",
        table=Table(headings=(unit, f"{noun}s"), rows=(*rows, *((label, f"{value:,.1f}") for label, value in figures))),
        x_label=unit,
        y_label=f"{noun}s",
        x_ticks=x_ticks,
        y_ticks=y_ticks,
        rectangles=(band, *bars),
        lines=(Line(points=((median, TOP), (median, BOTTOM)), kind="median"),),
        notes=(Note(x=median, y=TOP - 8, text=f"median {distribution.median:,.4g}", anchor=anchor, kind="strong"),),
    )


def entropy_chart(name: str, title: str, against: EntropyAgainstTokens, *, noun: Noun = "image") -> Chart:
    """Entropy of a row against its tokens: a dot a row where they are few, else rows a cell, by colour."""
    bits, tokens = against.bits_edges, against.tokens_edges
    margins = [0.05 * float(edges[-1] - edges[0]) if against.points else 0.0 for edges in (bits, tokens)]
    x, x_ticks = _axis(bits[0] - margins[0], bits[-1] + margins[0], LEFT, RIGHT)
    y, y_ticks = _axis(tokens[0] - margins[1], tokens[-1] + margins[1], BOTTOM, TOP, num_ticks=5, whole=True)
    most = int(against.counts_XY.max())
    cells: list[Rectangle] = []
    if not against.points:
        shade = FAINTEST + (1 - FAINTEST) * np.log(np.maximum(against.counts_XY, 1)) / max(math.log(most), 1e-9)
        colours = heat_colours(shade, 0, 1)
        for i, j in np.argwhere(against.counts_XY):
            cells.append(
                Rectangle(
                    x=x(bits[i]),
                    y=y(tokens[j + 1]),
                    width=x(bits[i + 1]) - x(bits[i]),
                    height=y(tokens[j]) - y(tokens[j + 1]),
                    kind="cell",
                    fill=_hex(colours[i, j]),
                )
            )
    together = "" if against.correlation is None else f" Rank correlation {against.correlation:.2f}."
    return Chart(
        name=name,
        title=title,
        description=f"Entropy against tokens of {against.basis.num_rows:,} {noun}s: from {bits[0]:,.4g} to "
        f"{bits[-1]:,.4g} bits, from {math.ceil(tokens[0]):,} to {math.floor(tokens[-1]):,} tokens.{together}",
        table=_entropy_table(against, noun),
        x_label="bits of entropy, all patches",
        y_label="tokens",
        x_ticks=x_ticks,
        y_ticks=y_ticks,
        rectangles=tuple(cells),
        dots=tuple((x(bit), y(token)) for bit, token in against.points),
        scale=None if against.points else Scale(low="1", high=f"{most:,}", unit=f"{noun}s a cell", start=FAINTEST),
    )


def kept_chart(name: str, title: str, kept: KeptShare, *, noun: Noun = "image") -> Chart:
    """How often each position of the grid is kept, by colour; grids above 32 cells a side are averaged in blocks."""
    share_HW = kept.share_THW.mean(0)
    block = -(-max(share_HW.shape) // MOST_CELLS)
    height, width = (-(-side // block) for side in share_HW.shape)
    pooled = np.array(
        [
            [share_HW[i * block : (i + 1) * block, j * block : (j + 1) * block].mean() for j in range(width)]
            for i in range(height)
        ]
    )
    low, high = float(pooled.min()), float(pooled.max())
    dark, light = low, high
    if high - low < LEAST_RANGE:
        dark = min(max((low + high - LEAST_RANGE) / 2, 0), 1 - LEAST_RANGE)
        light = dark + LEAST_RANGE
    colours = heat_colours(pooled, dark, light)
    cell = 320 / max(height, width)
    cells = tuple(
        Rectangle(x=j * cell, y=i * cell, width=cell, height=cell, kind="cell", fill=_hex(colours[i, j]))
        for i in range(height)
        for j in range(width)
    )
    rows = tuple((f"row {i + 1}", *(f"{100 * share:.0f}%" for share in pooled[i])) for i in range(height))
    return Chart(
        name=name,
        title=title,
        description=f"Grid of {kept.grid.height} by {kept.grid.width} positions, over {kept.num_rows:,} {noun}s: "
        f"kept in {_percent(low)} to {_percent(high)} of them, on average in {_percent(float(share_HW.mean()))}.",
        table=Table(headings=("position", *(str(j + 1) for j in range(width))), rows=rows),
        width=width * cell,
        height=height * cell,
        plot=(0, 0, width * cell, height * cell),
        rectangles=cells,
        scale=Scale(low=_percent(dark), high=_percent(light), unit=f"of the {noun}s keep the position"),
    )


def codebook_chart(name: str, title: str, codebooks: Sequence[CodebookUse]) -> Chart:
    """The share of tokens that the most used codes make up, for each kind of token."""
    x, x_ticks = _axis(0, 100, LEFT, RIGHT)
    y, y_ticks = _axis(0, 100, BOTTOM, TOP)
    lines = [Line(points=((x(0), y(0)), (x(100), y(100))), kind="even")]
    notes = [Note(x=x(74), y=y(62), text="all codes alike", anchor="start", kind="faint")]
    shares = (1, 5, 10, 25, 50, 75, 100)
    rows, words = [], []
    for codebook in codebooks:
        if not codebook.num_tokens:
            continue
        covered = np.cumsum(np.sort(codebook.counts)[::-1]) / codebook.num_tokens * 100
        at = np.unique(np.round(np.geomspace(1, codebook.vocab_size, 80)).astype(int))
        points = [(x(0), y(0)), *((x(100 * k / codebook.vocab_size), y(covered[k - 1])) for k in at)]
        lines.append(Line(points=tuple(points), kind=codebook.kind))
        rows.append(
            (
                codebook.kind,
                f"{codebook.num_tokens:,}",
                f"{codebook.num_codes_used:,} of {codebook.vocab_size:,}",
                f"{codebook.perplexity:,.0f}",
                *(f"{covered[max(codebook.vocab_size * share // 100, 1) - 1]:.0f}%" for share in shares),
            )
        )
        words.append(f"{codebook.num_codes_used:,} of {codebook.vocab_size:,} {codebook.kind} codes occur")
    return Chart(
        name=name,
        title=title,
        description="Share of the tokens against the share of the codebook, most used codes first. "
        f"{'; '.join(words)}.",
        table=Table(
            headings=("kind", "tokens", "codes used", "perplexity", *(f"top {share}%" for share in shares)),
            rows=tuple(rows),
        ),
        x_label="% of the codebook, most used codes first",
        y_label="% of tokens",
        x_ticks=x_ticks,
        y_ticks=y_ticks,
        lines=tuple(lines),
        notes=tuple(notes),
    )


def _entropy_table(against: EntropyAgainstTokens, noun: Noun) -> Table:
    step = -(-len(against.mean_tokens_X) // MOST_TABLE_ROWS)
    rows = []
    images_X = against.counts_XY.sum(1)
    for first in range(0, len(images_X), step):
        bins = slice(first, first + step)
        images = int(images_X[bins].sum())
        if images:
            mean = float(np.nansum(against.mean_tokens_X[bins] * images_X[bins]) / images)
            low, high = against.bits_edges[first], against.bits_edges[min(first + step, len(images_X))]
            rows.append((f"{low:,.0f} to {high:,.0f}", f"{images:,}", f"{mean:,.1f}"))
    return Table(headings=("bits", f"{noun}s", "mean tokens"), rows=tuple(rows))


class _Place:
    """A value -> its place on an axis."""

    def __init__(self, low: float, high: float, start: float, stop: float) -> None:
        self._low, self._start = low, start
        self._units = (stop - start) / (high - low)

    def __call__(self, value: float) -> float:
        return self._start + (float(value) - self._low) * self._units


def _axis(
    low: float, high: float, start: float, stop: float, *, num_ticks: int = 6, whole: bool = False
) -> tuple[_Place, tuple[Tick, ...]]:
    """An axis from low to high, with ticks at round numbers; `whole` asks for no fractions."""
    low, high = float(low), float(high)
    high = high if high > low else low + 1
    step = 10.0 ** math.floor(math.log10((high - low) / num_ticks))
    step = next(step * factor for factor in (1, 2, 5, 10) if (high - low) / (step * factor) <= num_ticks)
    if whole:
        step = max(step, 1.0)
    place = _Place(low, high, start, stop)
    numbers = range(math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9) + 1)
    return place, tuple(Tick(place=place(number * step), label=short_number(number * step)) for number in numbers)


def _hex(colour: np.ndarray) -> str:
    return "#" + bytes(colour.tolist()).hex()


def _percent(share: float) -> str:
    return f"{100 * share:.1f}%" if share < 0.0995 else f"{100 * share:.0f}%"
