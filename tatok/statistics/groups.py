"""Rows, tokens and entropy for each value of a column.

Shape suffixes: R rows read, G groups.
"""

from __future__ import annotations

from dataclasses import dataclass
from os import PathLike

import numpy as np
import pyarrow as pa

from tatok.dataset.parts import TokenizedData, numbers
from tatok.schemas.errors import ConfigError
from tatok.schemas.records import count_text
from tatok.statistics.distribution import percentile
from tatok.statistics.json_text import json_text
from tatok.statistics.row_sample import MAX_ROWS, RowBasis, all_row_groups, read_columns, row_basis, spread

__all__ = ["Group", "GroupedStatistics", "group_by"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Group:
    """The rows that share one value of a column; None is the value of rows that have none.

    `mean_entropy_bits` is None where any of them has no entropy.
    """

    value: str | int | float | bool | None
    num_rows: int
    num_tokens: int
    token_share: float
    mean_tokens: float
    p95_tokens: float
    mean_entropy_bits: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class GroupedStatistics:
    """The `groups` with most rows, most first, of `num_groups` in all."""

    column: str
    num_groups: int
    basis: RowBasis
    groups: tuple[Group, ...]

    def __repr__(self) -> str:
        return (
            f"GroupedStatistics(by {self.column}: {count_text(self.num_groups, 'group')}, "
            f"{count_text(self.basis.num_rows, 'row')})"
        )

    def to_json(self) -> str:
        """The groups as a JSON object."""
        return json_text(self)


def group_by(
    data: TokenizedData | str | PathLike[str],
    column: str,
    *,
    limit: int = 20,
    exact: bool = False,
    max_rows: int = MAX_ROWS,
) -> GroupedStatistics:
    """Rows, tokens and entropy for each value of a column of strings, numbers or booleans.

    Above `max_rows` rows or a thousand row groups the column is read in evenly spread ones; `exact` reads them all.
    Equally large groups come in the order of their first rows. Raises ConfigError where there is no such column, or it
    holds lists.
    """
    data = data if isinstance(data, TokenizedData) else TokenizedData.open(data)
    if limit < 1:
        raise ConfigError(f"limit is {limit}; it must be at least 1")
    _check_groupable(data, column)
    row_groups = all_row_groups(data)
    chosen = row_groups if exact else spread(row_groups, max_rows / max(data.num_rows, 1))
    table = read_columns(data, chosen, list(dict.fromkeys([column, "num_tokens", "entropy_bits"])))
    if table is None:
        return GroupedStatistics(column=column, num_groups=0, basis=row_basis(data, chosen), groups=())
    encoded = table.column(column).dictionary_encode().unify_dictionaries().combine_chunks()
    values = [*encoded.dictionary.to_pylist(), None]
    none = len(values) - 1
    indices = encoded.indices
    if indices.null_count:
        import pyarrow.compute as pc  # loads pandas, see `numbers`

        indices = pc.fill_null(indices, none)
    group_R = numbers(indices)
    num_tokens_R = numbers(table.column("num_tokens"))
    ordered_R = num_tokens_R[np.lexsort((num_tokens_R, group_R))]  # group after group, ascending within each
    num_rows_G = np.bincount(group_R, minlength=len(values))
    tokens_G = np.bincount(group_R, weights=num_tokens_R, minlength=len(values))
    bits_G = np.bincount(group_R, weights=numbers(table.column("entropy_bits")), minlength=len(values))
    starts_G = np.cumsum(num_rows_G) - num_rows_G
    largest = np.argsort(-num_rows_G, kind="stable")[:limit]
    groups = tuple(
        Group(
            value=values[g],
            num_rows=int(num_rows_G[g]),
            num_tokens=int(tokens_G[g]),
            token_share=float(tokens_G[g] / max(tokens_G.sum(), 1)),
            mean_tokens=float(tokens_G[g] / num_rows_G[g]),
            p95_tokens=percentile(ordered_R[starts_G[g] : starts_G[g] + num_rows_G[g]], 95),
            mean_entropy_bits=float(bits_G[g] / num_rows_G[g]) if np.isfinite(bits_G[g]) else None,
        )
        for g in largest.tolist()
        if num_rows_G[g]
    )
    return GroupedStatistics(
        column=column, num_groups=int(np.count_nonzero(num_rows_G)), basis=row_basis(data, chosen), groups=groups
    )


def _check_groupable(data: TokenizedData, column: str) -> None:
    if not data.parts:
        return
    schema = data.schema
    scalars = [field.name for field in schema if not pa.types.is_nested(field.type)]
    if column not in schema.names:
        raise ConfigError(f"{data.url} has no column {column!r} to group by; it has {', '.join(scalars)}")
    if column not in scalars:
        raise ConfigError(f"column {column!r} holds lists and cannot be grouped by; choose one of {', '.join(scalars)}")
