"""A dataset in figures: how long its sequences are, how surprising its images, what its codes and positions are.

Counts come from the manifest; the columns of per-row numbers are read whole up to `MAX_ROWS` rows, the token columns up
to `MAX_TOKENS` tokens, and above that in evenly spread row groups. Every result says how many rows it rests on.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from os import PathLike
from typing import Literal

import numpy as np
import pyarrow as pa

from tatok.dataset.parts import TokenizedData, numbers
from tatok.schemas.records import Grid, count_text
from tatok.schemas.tokens import ENTROPY_COLUMNS
from tatok.statistics.distribution import Distribution, describe
from tatok.statistics.json_text import LEAVE_OUT, json_text
from tatok.statistics.row_sample import (
    MAX_ROW_GROUPS,
    MAX_ROWS,
    RowBasis,
    RowGroup,
    all_row_groups,
    read_columns,
    row_basis,
    spread,
)
from tatok.statistics.token_counts import TokenCounts, count_tokens

__all__ = [
    "MAX_TOKENS",
    "CodebookUse",
    "DatasetStatistics",
    "GridCount",
    "KeptShare",
    "SizeOnDisk",
    "Throughput",
    "codebook_use",
    "summarize",
]

_MOST_COUNTED = 1 << 24  # codes of a codebook, each of which takes eight bytes to count
MAX_TOKENS = 5_000_000
"""Token columns are read whole up to so many tokens."""

_TOKEN_READS = MAX_ROW_GROUPS // 4

DISTRIBUTION_COLUMNS = ("num_tokens", "num_patch_tokens", *ENTROPY_COLUMNS)
_GRID_COLUMNS = ("grid_frames", "grid_height", "grid_width")


@dataclass(frozen=True, slots=True, kw_only=True)
class CodebookUse:
    """How one kind's codes are spread over its codebook, over the rows of `DatasetStatistics.token_basis`.

    `counts` is int64 [vocab_size]: how often each code occurs. `perplexity` is 2 to the entropy of the code
    frequencies: vocab_size where all codes are equally frequent, 0 where there are none.
    """

    kind: Literal["global", "patch"]
    vocab_size: int
    num_tokens: int
    num_codes_used: int
    perplexity: float
    counts: np.ndarray = field(metadata=LEAVE_OUT)

    @property
    def share_used(self) -> float:
        """The part of the codebook that occurs at all."""
        return self.num_codes_used / self.vocab_size

    def __repr__(self) -> str:
        return (
            f"CodebookUse({self.kind}: {self.num_codes_used:,} of {self.vocab_size:,} codes, "
            f"perplexity {self.perplexity:,.0f})"
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class GridCount:
    """Rows that have one patch grid, among the rows of `DatasetStatistics.row_basis`."""

    grid: Grid
    num_rows: int


@dataclass(frozen=True, slots=True, kw_only=True)
class KeptShare:
    """How often each position of the most frequent grid is kept.

    `share_THW` is float64 [frames, height, width], in 0 .. 1; `num_rows` counts the rows of that grid that it rests on.
    """

    grid: Grid
    num_rows: int
    share_THW: np.ndarray

    def __repr__(self) -> str:
        frames, height, width = self.grid
        return (
            f"KeptShare({frames} x {height} x {width}: {self.share_THW.mean():.1%} kept, "
            f"{count_text(self.num_rows, 'row')})"
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class SizeOnDisk:
    """Compressed bytes of the token parts.

    `column_bytes` maps a column to its bytes in `num_parts_measured` of the parts: those of `token_basis`.
    """

    num_bytes: int
    bytes_per_token: float
    bytes_per_row: float
    num_parts_measured: int
    column_bytes: Mapping[str, int]


@dataclass(frozen=True, slots=True, kw_only=True)
class Throughput:
    """What runs came to; `seconds` is wall time from each run's start to its end, set-up included."""

    started_at: str
    status: str
    seconds: float
    num_rows: int
    num_tokens: int
    rows_per_second: float
    tokens_per_second: float


@dataclass(frozen=True, slots=True, kw_only=True)
class DatasetStatistics:
    """The whole summary; `row_basis` is that of the distributions and grids, `token_basis` that of codes and positions.

    `distributions` is empty and `kept_share` None where there are no rows. `has_entropy` is false where the tokenizer
    says no entropies: then they have no distributions. `codebooks` is empty above 16,777,216 codes. `grids`
    comes most frequent first, `rejects` (reason -> count) and `left_out` (what no sample was made of -> count) too.
    `throughput` is over all runs, None where none left a record; `runs` is oldest first.
    """

    url: str
    complete: bool
    num_parts: int
    num_rows: int
    num_tokens: int
    num_rejects: int
    vocab_size: int
    has_entropy: bool
    row_basis: RowBasis
    token_basis: RowBasis
    distributions: tuple[Distribution, ...]
    codebooks: tuple[CodebookUse, ...]
    grids: tuple[GridCount, ...]
    kept_share: KeptShare | None
    rejects: Mapping[str, int]
    left_out: Mapping[str, int]
    size: SizeOnDisk
    runs: tuple[Throughput, ...]
    throughput: Throughput | None

    def __repr__(self) -> str:
        name = self.url.rstrip("/").rpartition("/")[2]
        mean = self.num_tokens / max(self.num_rows, 1)
        return (
            f"DatasetStatistics({name[:40]}: {count_text(self.num_rows, 'row')}, {self.num_tokens:,} tokens, "
            f"{mean:.1f} a row; {count_text(self.num_rejects, 'reject')})"
        )

    def distribution(self, column: str) -> Distribution:
        """The distribution of one column. Raises KeyError where the dataset has none of it."""
        for distribution in self.distributions:
            if distribution.column == column:
                return distribution
        raise KeyError(column)

    def to_json(self) -> str:
        """The summary as a JSON object, without the count of every single code."""
        return json_text(self)


def summarize(
    data: TokenizedData | str | PathLike[str],
    *,
    exact: bool = False,
    max_rows: int = MAX_ROWS,
    max_tokens: int = MAX_TOKENS,
) -> DatasetStatistics:
    """Everything that the manifest, the number columns and a sample of the tokens say about a dataset.

    Above `max_rows` rows, `max_tokens` tokens or a thousand row groups the columns concerned are read in evenly spread
    row groups, the same ones each time; `exact` reads them all. Raises SourceError where the dataset cannot be read or
    holds impossible codes or positions.
    """
    data = data if isinstance(data, TokenizedData) else TokenizedData.open(data)
    row_groups = all_row_groups(data)
    for_rows = row_groups if exact else spread(row_groups, max_rows / max(data.num_rows, 1))
    for_tokens = row_groups if exact else spread(row_groups, max_tokens / max(data.num_tokens, 1), at_most=_TOKEN_READS)
    table = read_columns(data, for_rows, [*DISTRIBUTION_COLUMNS, *_GRID_COLUMNS])
    grids = _count_grids(table) if table is not None else ()
    grid = grids[0].grid if grids else None
    with ThreadPoolExecutor(max_workers=1) as background:
        counting = background.submit(count_tokens, data, for_tokens, grid, codes=data.vocab_size <= _MOST_COUNTED)
        distributions = _distributions(table) if table is not None else ()
        counts = counting.result()
    runs = tuple(
        _throughput(run.started_at, run.status, run.seconds, run.num_rows, run.num_tokens) for run in data.runs()
    )
    codes_each = int(data.run.fingerprint.get("codes_per_position", "1"))
    rejects = Counter[str]()
    for part in data.parts:
        rejects.update(part.rejects)
    return DatasetStatistics(
        url=data.url,
        complete=data.complete,
        num_parts=len(data.parts),
        num_rows=data.num_rows,
        num_tokens=data.num_tokens,
        num_rejects=rejects.total(),
        vocab_size=data.vocab_size,
        has_entropy=data.run.fingerprint.get("entropy") != "none",
        row_basis=row_basis(data, for_rows),
        token_basis=row_basis(data, for_tokens),
        distributions=distributions,
        codebooks=_codebooks(counts) if data.vocab_size <= _MOST_COUNTED else (),
        grids=grids,
        kept_share=_kept_share(grid, counts, codes_each) if grid is not None and counts.num_grid_rows else None,
        rejects=dict(rejects.most_common()),
        left_out={str(each): count for each, count in Counter(data.left_out).most_common()},
        size=_size(data, for_tokens),
        runs=runs,
        throughput=_total(runs),
    )


def _distributions(table: pa.Table) -> tuple[Distribution, ...]:
    found = (describe(name, numbers(table.column(name))) for name in DISTRIBUTION_COLUMNS)
    return tuple(distribution for distribution in found if distribution is not None)


def _count_grids(table: pa.Table) -> tuple[GridCount, ...]:
    # One number a grid; Table.group_by would load pandas, see `numbers`.
    frames_R, height_R, width_R = (numbers(table.column(name)).astype(np.int64) for name in _GRID_COLUMNS)
    grid_G, num_rows_G = np.unique((frames_R << 42) | (height_R << 21) | width_R, return_counts=True)
    mask = (1 << 21) - 1
    grids = [
        GridCount(grid=Grid(grid >> 42, (grid >> 21) & mask, grid & mask), num_rows=num_rows)
        for grid, num_rows in zip(grid_G.tolist(), num_rows_G.tolist(), strict=True)
    ]
    return tuple(sorted(grids, key=lambda count: (-count.num_rows, count.grid)))


def codebook_use(kind: Literal["global", "patch"], counts: np.ndarray) -> CodebookUse:
    """How one kind's codes are spread, from how often each occurs: int64 [vocab_size]."""
    total = int(counts.sum())
    shares = counts[counts > 0] / max(total, 1)
    return CodebookUse(
        kind=kind,
        vocab_size=len(counts),
        num_tokens=total,
        num_codes_used=len(shares),
        perplexity=float(2 ** -(shares * np.log2(shares)).sum()) if total else 0.0,
        counts=counts,
    )


def _codebooks(counts: TokenCounts) -> tuple[CodebookUse, ...]:
    return codebook_use("global", counts.global_counts), codebook_use("patch", counts.patch_counts)


def _kept_share(grid: Grid, counts: TokenCounts, codes_each: int) -> KeptShare:
    share = counts.position_counts / (counts.num_grid_rows * codes_each)
    return KeptShare(grid=grid, num_rows=counts.num_grid_rows, share_THW=share.reshape(grid))


def _size(data: TokenizedData, row_groups: Sequence[RowGroup]) -> SizeOnDisk:
    num_bytes = sum(part.num_bytes for part in data.parts)
    names = list(dict.fromkeys(group.part for group in row_groups))
    column_bytes = Counter[str]()
    for name in names:
        footer = data.footer(name)
        for number in range(footer.num_row_groups):
            group = footer.row_group(number)
            for index in range(group.num_columns):
                chunk = group.column(index)
                column_bytes[chunk.path_in_schema.partition(".")[0]] += chunk.total_compressed_size
    return SizeOnDisk(
        num_bytes=num_bytes,
        bytes_per_token=num_bytes / max(data.num_tokens, 1),
        bytes_per_row=num_bytes / max(data.num_rows, 1),
        num_parts_measured=len(names),
        column_bytes=dict(column_bytes.most_common()),
    )


def _throughput(started_at: str, status: str, seconds: float, num_rows: int, num_tokens: int) -> Throughput:
    return Throughput(
        started_at=started_at,
        status=status,
        seconds=seconds,
        num_rows=num_rows,
        num_tokens=num_tokens,
        rows_per_second=num_rows / seconds if seconds > 0 else 0.0,
        tokens_per_second=num_tokens / seconds if seconds > 0 else 0.0,
    )


def _total(runs: Sequence[Throughput]) -> Throughput | None:
    if not runs:
        return None
    return _throughput(
        runs[0].started_at,
        runs[-1].status,
        sum(run.seconds for run in runs),
        sum(run.num_rows for run in runs),
        sum(run.num_tokens for run in runs),
    )
