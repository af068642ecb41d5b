"""Which row groups to read for figures about a dataset: all, or an evenly spread sample."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import pyarrow as pa

from tatok.dataset.parts import NUM_READERS, TokenizedData

__all__ = [
    "MAX_ROWS",
    "MAX_ROW_GROUPS",
    "RowBasis",
    "RowGroup",
    "all_row_groups",
    "num_readers",
    "read_columns",
    "row_basis",
    "spread",
]

MAX_ROWS = 20_000_000
"""Columns of numbers are read whole up to so many rows."""

MAX_ROW_GROUPS = 1_000
"""... and so many row groups: each costs a millisecond or two on a disk and a request in a bucket."""

_LOCAL_READERS = 4  # more only wait for one another


@dataclass(frozen=True, slots=True, kw_only=True)
class RowBasis:
    """How many rows a figure rests on, of how many; `exact` where it is all of them."""

    num_rows: int
    num_rows_total: int

    @property
    def exact(self) -> bool:
        """Whether every row was read."""
        return self.num_rows == self.num_rows_total


@dataclass(frozen=True, slots=True, kw_only=True)
class RowGroup:
    """One row group of one part: the least that can be read of a dataset."""

    part: str
    number: int
    num_rows: int


def all_row_groups(data: TokenizedData) -> list[RowGroup]:
    """Every row group, in canonical order."""
    return [
        RowGroup(part=part.name, number=number, num_rows=num_rows)
        for part in data.parts
        for number, num_rows in enumerate(part.row_group_rows)
    ]


def spread(row_groups: Sequence[RowGroup], fraction: float, *, at_most: int = MAX_ROW_GROUPS) -> list[RowGroup]:
    """About this fraction of the row groups, evenly spread and the same each time; at least one of any there are."""
    chosen = min(max(round(len(row_groups) * fraction), 1), at_most)
    if chosen >= len(row_groups):
        return list(row_groups)
    return [row_groups[(2 * i + 1) * len(row_groups) // (2 * chosen)] for i in range(chosen)]


def row_basis(data: TokenizedData, row_groups: Sequence[RowGroup]) -> RowBasis:
    """What figures over these row groups rest on."""
    return RowBasis(num_rows=sum(group.num_rows for group in row_groups), num_rows_total=data.num_rows)


def read_columns(data: TokenizedData, row_groups: Sequence[RowGroup], columns: Sequence[str]) -> pa.Table | None:
    """Some columns of some row groups, in the order given; None where there are no row groups.

    Row groups of one part must be together.
    """
    by_part: dict[str, list[int]] = {}
    for group in row_groups:
        by_part.setdefault(group.part, []).append(group.number)
    with ThreadPoolExecutor(max_workers=num_readers(data)) as pool:
        tables = list(pool.map(lambda it: data.read(it[0], columns=columns, row_groups=it[1]), by_part.items()))
    return pa.concat_tables(tables) if tables else None


def num_readers(data: TokenizedData) -> int:
    """Threads that read at a time."""
    return _LOCAL_READERS if data.is_local else NUM_READERS
