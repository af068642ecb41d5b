"""A dataset in figures and by SQL: what `tatok stats` and `tatok query` show, for Python.

summary          lengths, entropies, codebook use, sizes
groups           the same by label or another column
distribution     one column: mean, percentiles, histogram
token_counts     how often each code and position occurs
row_sample       evenly spread row groups of a large dataset
sql              SQL over the rows
read_only_files  what a query may open
json_text        figures as JSON
units            numbers of bytes, and what rows are called, for people
"""

from __future__ import annotations

from tatok.statistics.distribution import Distribution, Histogram
from tatok.statistics.groups import Group, GroupedStatistics, group_by
from tatok.statistics.row_sample import MAX_ROWS, RowBasis
from tatok.statistics.sql import QueryResult, open_query, query
from tatok.statistics.summary import (
    MAX_TOKENS,
    CodebookUse,
    DatasetStatistics,
    GridCount,
    KeptShare,
    SizeOnDisk,
    Throughput,
    codebook_use,
    summarize,
)

__all__ = [
    "MAX_ROWS",
    "MAX_TOKENS",
    "CodebookUse",
    "DatasetStatistics",
    "Distribution",
    "GridCount",
    "Group",
    "GroupedStatistics",
    "Histogram",
    "KeptShare",
    "QueryResult",
    "RowBasis",
    "SizeOnDisk",
    "Throughput",
    "codebook_use",
    "group_by",
    "open_query",
    "query",
    "summarize",
]
