"""What the report takes from single rows: entropy against tokens, which images to show, which rejects."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from tatok.dataset.lookup import RowPlace
from tatok.dataset.parts import TokenizedData
from tatok.report.correlations import rank_correlation
from tatok.statistics.row_sample import MAX_ROWS, RowBasis, all_row_groups, read_columns, row_basis, spread

__all__ = ["EntropyAgainstTokens", "Examples", "RejectExample", "look_at_rows", "reject_examples"]

MOST_BINS = 40
MOST_POINTS = 300
_MOST_REJECT_PARTS = 24


@dataclass(frozen=True, slots=True, kw_only=True)
class EntropyAgainstTokens:
    """How the entropy of images and their numbers of tokens go together.

    `counts_XY` is int64 [entropy bins, token bins]; the edges ascend, one more than bins. `mean_tokens_X` is NaN in
    bins without images. `points` holds (bits, tokens) of every image where there are at most 300, else nothing.
    `correlation` is Spearman's, of ranks; None where it is not defined.
    """

    basis: RowBasis
    counts_XY: np.ndarray
    bits_edges: np.ndarray
    tokens_edges: np.ndarray
    mean_tokens_X: np.ndarray
    points: tuple[tuple[float, int], ...]
    correlation: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Examples:
    """Rows worth a look: with most tokens, around the median, with fewest; no row is in two of them.

    Images with equal counts are taken from the start of their sources, so that few bytes need to be streamed.
    """

    richest: tuple[RowPlace, ...]
    typical: tuple[RowPlace, ...]
    poorest: tuple[RowPlace, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class RejectExample:
    """One row of the rejects table."""

    key: str
    source_uri: str
    source_index: int
    stage: str
    reason: str
    detail: str


def look_at_rows(
    data: TokenizedData, *, each: int = 4, max_rows: int = MAX_ROWS
) -> tuple[EntropyAgainstTokens | None, Examples]:
    """One pass over three columns of numbers, of evenly spread row groups above `max_rows` rows.

    `each` bounds the images of each kind of example. The first is None where no row has a finite entropy.
    """
    groups = spread(all_row_groups(data), max_rows / max(data.num_rows, 1))
    table = read_columns(data, groups, ["num_tokens", "entropy_bits", "source_index"])
    if table is None or not len(table):
        return None, Examples(richest=(), typical=(), poorest=())
    tokens_R, bits_R, index_R = (column.to_numpy() for column in table.columns)
    starts = {part.name: np.cumsum([0, *part.row_group_rows]) for part in data.parts}
    ends = np.cumsum([group.num_rows for group in groups])

    def place(row: int) -> RowPlace:
        number = int(np.searchsorted(ends, row, side="right"))
        group = groups[number]
        within = row - (int(ends[number]) - group.num_rows)
        return RowPlace(part=group.part, row=int(starts[group.part][group.number]) + within)

    count = min(each, -(-len(tokens_R) // 3))
    chosen: dict[str, list[int]] = {}
    taken = np.zeros(len(tokens_R), bool)
    distance_R = np.abs(tokens_R - np.median(tokens_R))
    for name, rank_R in (("richest", -tokens_R.astype(np.int64)), ("poorest", tokens_R), ("typical", distance_R)):
        chosen[name] = _least(rank_R, index_R, taken, count)
        taken[chosen[name]] = True
    chosen["typical"].sort(key=lambda row: -tokens_R[row])
    chosen["poorest"].reverse()
    examples = Examples(**{name: tuple(map(place, rows)) for name, rows in chosen.items()})
    finite = np.isfinite(bits_R)
    if not finite.any():
        return None, examples
    return _against(tokens_R[finite], bits_R[finite].astype(float), row_basis(data, groups)), examples


def reject_examples(data: TokenizedData, each: int = 3) -> Mapping[str, tuple[RejectExample, ...]]:
    """Reason -> its first rejects, at most `each`; looks into at most 24 parts.

    Raises SourceError where a rejects part cannot be read.
    """
    found: defaultdict[str, list[RejectExample]] = defaultdict(list)
    num_read = 0
    for part in data.parts:
        if num_read == _MOST_REJECT_PARTS or not any(len(found[reason]) < each for reason in part.rejects):
            continue
        num_read += 1
        columns = ["key", "source_uri", "source_index", "stage", "reason", "detail"]
        rows = data.read(part.name, columns=columns, folder="rejects")
        # By batches: a shard may hold millions of rejects, all of them of one reason.
        for batch in rows.to_batches(max_chunksize=1000):
            for row in batch.to_pylist():
                if len(found[row["reason"]]) < each:
                    found[row["reason"]].append(RejectExample(**row))
            if all(len(found[reason]) >= each for reason in part.rejects):
                break
    return {reason: tuple(rows) for reason, rows in found.items() if rows}


def _least(rank_R: np.ndarray, index_R: np.ndarray, taken_R: np.ndarray, count: int) -> list[int]:
    """The rows of least rank, then of least index in their source, that are not taken."""
    rows = np.flatnonzero(~taken_R)
    if not len(rows) or not count:
        return []
    limit = np.partition(rank_R[rows], min(count, len(rows)) - 1)[min(count, len(rows)) - 1]
    rows = rows[rank_R[rows] <= limit]
    return [int(row) for row in rows[np.lexsort((index_R[rows], rank_R[rows]))[:count]]]


def _against(tokens_R: np.ndarray, bits_R: np.ndarray, basis: RowBasis) -> EntropyAgainstTokens:
    num_tokens = int(tokens_R.max() - tokens_R.min()) + 1
    width = -(-num_tokens // MOST_BINS)  # whole tokens, lest some bins hold more counts than others
    tokens_edges = tokens_R.min() - 0.5 + width * np.arange(-(-num_tokens // width) + 1)
    low, high = bits_R.min(), bits_R.max()
    bits_edges = np.linspace(low, high if high > low else low + 1, MOST_BINS + 1)
    counts_XY, _, _ = np.histogram2d(bits_R, tokens_R, bins=(bits_edges, tokens_edges))
    bin_R = np.clip(np.searchsorted(bits_edges, bits_R, side="right") - 1, 0, MOST_BINS - 1)
    sums_X, counts_X = np.bincount(bin_R, tokens_R, MOST_BINS), np.bincount(bin_R, minlength=MOST_BINS)
    few = len(tokens_R) <= MOST_POINTS
    return EntropyAgainstTokens(
        basis=basis,
        counts_XY=counts_XY.astype(np.int64),
        bits_edges=bits_edges,
        tokens_edges=tokens_edges,
        mean_tokens_X=np.divide(sums_X, counts_X, out=np.full(MOST_BINS, np.nan), where=counts_X > 0),
        points=tuple(zip(bits_R.tolist(), tokens_R.tolist(), strict=True)) if few else (),
        correlation=rank_correlation(bits_R, tokens_R),
    )
