"""One column of numbers -> count, mean, spread, percentiles and a histogram with round edges."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

__all__ = ["Distribution", "Histogram", "describe", "histogram_of", "percentile"]

_MAX_BINS = 20
_SAME = 1e-10  # of values that differ by less of themselves all are one
_WIDTH_OF_ONE = 1e-3  # of such a value: its only bin has an edge that people can read


@dataclass(frozen=True, slots=True, kw_only=True)
class Histogram:
    """Counts of equally wide bins: bin i holds the values in [edges[i], edges[i + 1]); one more edge than counts."""

    edges: tuple[float, ...]
    counts: tuple[int, ...]

    def __repr__(self) -> str:
        return (
            f"Histogram({sum(self.counts):,} values, {len(self.counts)} bins, {self.edges[0]:g} to {self.edges[-1]:g})"
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Distribution:
    """One column's values; `std` is that of the population, percentiles interpolate between values.

    NaN and infinite values are counted in `num_not_finite` and nowhere else.
    """

    column: str
    num_values: int
    num_not_finite: int
    mean: float
    std: float
    min: float
    p5: float
    p25: float
    median: float
    p75: float
    p95: float
    max: float
    histogram: Histogram

    def __repr__(self) -> str:
        return (
            f"Distribution({self.column}: {self.num_values:,} values, {self.min:.6g} to {self.max:.6g}, "
            f"mean {self.mean:.6g}, median {self.median:.6g})"
        )


def describe(column: str, values: np.ndarray) -> Distribution | None:
    """The distribution of a column's values [rows], integer or float; None where none is finite."""
    finite = values if np.issubdtype(values.dtype, np.integer) else values[np.isfinite(values)]
    if not len(finite):
        return None
    ordered = np.sort(finite)  # once, for all percentiles and the histogram
    mean, *percentiles = ordered.mean(dtype=np.float64), *(percentile(ordered, q) for q in (5, 25, 50, 75, 95))
    spread = np.subtract(ordered, mean, dtype=np.float64)
    p5, p25, median, p75, p95 = percentiles
    return Distribution(
        column=column,
        num_values=len(ordered),
        num_not_finite=len(values) - len(ordered),
        mean=float(mean),
        std=math.sqrt(np.dot(spread, spread) / len(ordered)),
        min=float(ordered[0]),
        p5=p5,
        p25=p25,
        median=median,
        p75=p75,
        p95=p95,
        max=float(ordered[-1]),
        histogram=histogram_of(ordered),
    )


def histogram_of(ordered: np.ndarray) -> Histogram:
    """At most 20 bins over ascending, finite values; the edges are multiples of 1, 2 or 5 times a power of ten.

    Few values get few bins: twice the root of their number, and never more than there are values. Equal ones get one
    bin, and so do those that differ by less than their ten-billionth. Integers get bins at least 1 wide.
    """
    low, high = float(ordered[0]), float(ordered[-1])
    is_whole = np.issubdtype(ordered.dtype, np.integer)
    largest = max(abs(low), abs(high))
    if is_whole and high == low and largest < 1 / _SAME:
        width = 1.0
    elif high - low <= _SAME * largest:
        width = _round_width(_WIDTH_OF_ONE * largest)
    else:
        most = min(_MAX_BINS, math.ceil(2 * math.sqrt(len(ordered))), len(ordered))
        width = max(_round_width((high - low) / (most - 1)), 1.0 if is_whole else 0.0)

    def edge(number: int) -> float:
        return float(f"{number * width:.12g}")  # 3 x 0.1 shall be 0.3

    first, last = math.floor(low / width), math.floor(high / width) + 1
    first -= edge(first) > low  # the division has rounding errors of its own
    last += edge(last) <= high
    edges = [edge(number) for number in range(first, last + 1)]
    below = np.searchsorted(ordered, np.array(edges))  # as doubles: 0.1 is another number as a float32
    return Histogram(edges=tuple(edges), counts=tuple(np.diff(below).tolist()))


def _round_width(at_least: float) -> float:
    """The smallest of 1, 2 and 5 times a power of ten that is not below a width; 1 for no width at all."""
    if at_least <= 0:
        return 1.0
    power = 10.0 ** math.floor(math.log10(at_least))
    return next((power * factor for factor in (1, 2, 5) if power * factor >= at_least), power * 10)


def percentile(ordered: np.ndarray, percent: float) -> float:
    """Of ascending values, at least one; interpolated between the two nearest."""
    place = (len(ordered) - 1) * percent / 100
    below = math.floor(place)
    above = min(below + 1, len(ordered) - 1)
    low, high = float(ordered[below]), float(ordered[above])
    return low + (high - low) * (place - below)
