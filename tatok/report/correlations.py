"""What goes with the number of tokens: rank correlations over a dataset's rows, with how sure they are."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from tatok.dataset.parts import TokenizedData, numbers
from tatok.report.rebuilt import criterion_of
from tatok.statistics.row_sample import all_row_groups, read_columns, spread

__all__ = ["TokenCorrelation", "correlation_words", "rank_correlation", "token_correlation", "token_correlations"]

MAX_ROWS = 1_000_000
MAX_WORTH_ROWS = 20_000
"""Rows whose lists of worth are read: each has a number for every patch."""

_DECIDED = "the filter went by it"
_LEAST_ROWS = 4  # an interval needs them
_WORDS = ((0.1, "hardly"), (0.3, "weakly"), (0.6, "moderately"), (0.9, "strongly"), (2.0, "almost in step"))


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenCorrelation:
    """Spearman's correlation of `num_tokens` with something else, over `num_rows` rows.

    `low` .. `high` is about where that of all such rows lies, 95 times in 100, by Fisher's transformation. `note` says
    where the two go together by what they are.
    """

    name: str
    meaning: str
    num_rows: int
    rho: float
    low: float
    high: float
    note: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Measure:
    meaning: str
    columns: tuple[str, ...]
    values: Callable[[Mapping[str, np.ndarray]], np.ndarray]


_MEASURES = {
    "entropy": _Measure(
        meaning="what the prior left open, all patches", columns=("entropy_bits",), values=lambda of: of["entropy_bits"]
    ),
    "highest entropy": _Measure(
        meaning="the patch that it left most open",
        columns=("entropy_max_bits",),
        values=lambda of: of["entropy_max_bits"],
    ),
    "surprise": _Measure(
        meaning="surprisal beyond entropy, how unlike what it expected",
        columns=("surprisal_bits", "entropy_bits"),
        values=lambda of: of["surprisal_bits"] - of["entropy_bits"],
    ),
    "source size": _Measure(
        meaning="pixels of the source image",
        columns=("width", "height"),
        values=lambda of: of["width"].astype(np.int64) * of["height"],
    ),
    "patches": _Measure(
        meaning="positions of the grid",
        columns=("grid_frames", "grid_height", "grid_width"),
        values=lambda of: of["grid_frames"].astype(np.int64) * of["grid_height"] * of["grid_width"],
    ),
}


def token_correlations(
    data: TokenizedData, *, max_rows: int = MAX_ROWS, max_worth_rows: int = MAX_WORTH_ROWS
) -> tuple[TokenCorrelation, ...]:
    """What goes with `num_tokens`, closest first; without what all rows share, and what the dataset does not hold.

    Above so many rows evenly spread row groups are read. There are none where all rows have as many tokens.
    """
    if not data.parts:
        return ()
    found = []
    wanted = sorted({column for measure in _MEASURES.values() for column in measure.columns})
    table = _read(data, ["num_tokens", *wanted], max_rows)
    if table is not None:
        of = {name: numbers(table.column(name)) for name in table.column_names}
        for name, measure in _MEASURES.items():
            note = _DECIDED if name == criterion_of(data) else ""
            found.append(token_correlation(name, measure.meaning, measure.values(of), of["num_tokens"], note))
    if "patch_worth_bits" in data.schema.names:
        lists = _read(data, ["num_tokens", "patch_worth_bits"], max_worth_rows)
        if lists is not None:
            worth = _sums(lists.column("patch_worth_bits"))
            meaning = "bits by which the filter ranked, all patches"
            found.append(token_correlation("worth", meaning, worth, numbers(lists.column("num_tokens")), _DECIDED))
    return tuple(sorted((each for each in found if each is not None), key=lambda each: -abs(each.rho)))


def correlation_words(correlation: TokenCorrelation) -> str:
    """How closely the two go together; "not clear" where the interval holds both directions."""
    if correlation.low < 0 < correlation.high:
        return "not clear"
    closely = next(word for limit, word in _WORDS if abs(correlation.rho) < limit)
    return f"{closely}{', the other way' if correlation.rho < 0 else ''}"


def rank_correlation(first_R: np.ndarray, second_R: np.ndarray) -> float | None:
    """Spearman's; None where one of them is the same in all rows, or there are fewer than three."""
    ranks = [_ranks(first_R), _ranks(second_R)]
    if len(first_R) < 3 or any(np.ptp(rank) == 0 for rank in ranks):
        return None
    return float(np.clip(np.corrcoef(ranks)[0, 1], -1, 1))


def token_correlation(
    name: str, meaning: str, values_R: np.ndarray, tokens_R: np.ndarray, note: str = ""
) -> TokenCorrelation | None:
    """How the values of some rows go with their tokens, over finite values; None where there is nothing to compare."""
    finite = np.isfinite(values_R)
    num_rows = int(finite.sum())
    rho = rank_correlation(values_R[finite], tokens_R[finite]) if num_rows >= _LEAST_ROWS else None
    if rho is None:
        return None
    # Ranks vary a little more than Fisher's normal numbers: 1.06 (Fieller, Hartley and Pearson, 1957).
    middle, reach = math.atanh(min(max(rho, -0.999999), 0.999999)), 1.96 * math.sqrt(1.06 / (num_rows - 3))
    return TokenCorrelation(
        name=name,
        meaning=meaning,
        num_rows=num_rows,
        rho=rho,
        low=math.tanh(middle - reach),
        high=math.tanh(middle + reach),
        note=note,
    )


def _read(data: TokenizedData, columns: list[str], max_rows: int) -> pa.Table | None:
    return read_columns(data, spread(all_row_groups(data), max_rows / max(data.num_rows, 1)), columns)


def _sums(lists: pa.ChunkedArray) -> np.ndarray:
    """The sum of each row's list, float64 [rows]; NaN of a row that has none."""
    sums = []
    for chunk in lists.chunks:
        lengths = pc.list_value_length(chunk).fill_null(0).to_numpy()
        rows = np.repeat(np.arange(len(chunk)), lengths)
        total = np.bincount(rows, chunk.flatten().to_numpy(zero_copy_only=False).astype(float), len(chunk))
        sums.append(np.where(chunk.is_valid().to_numpy(zero_copy_only=False), total, np.nan))
    return np.concatenate([*sums, np.empty(0)])


def _ranks(values_R: np.ndarray) -> np.ndarray:
    _, inverse, counts = np.unique(values_R, return_inverse=True, return_counts=True)
    return (np.cumsum(counts) - (counts - 1) / 2)[inverse]  # equal values share their mean rank
