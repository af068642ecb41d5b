"""Blocks of a dataset -> the rows that an epoch takes from them: filters, shares, and a cache on a local disk."""

from __future__ import annotations

import hashlib
import os
import uuid
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from tatok.dataset.batches import RowArrays
from tatok.dataset.order import Blocks, permutation
from tatok.dataset.parts import TokenizedData, numbers
from tatok.schemas.errors import ConfigError, SourceError

__all__ = ["Filters", "WindowReader", "filter_clauses", "pick"]

Clause = tuple[str, str, Any]
Filters = Sequence[Clause] | Sequence[Sequence[Clause]]

_TOKENS = ("tokens", "positions", "num_tokens", "num_global_tokens", "grid_frames", "grid_height", "grid_width")
_ROW = "row"  # no column of the token table has this name


@dataclass(frozen=True, slots=True, kw_only=True)
class WindowReader:
    """Reads blocks of some datasets; pickles, and is safe in several threads.

    `filters` are alternatives of (column, op, value) clauses that must all hold; none lets every row pass. `columns`
    come along with the tokens. `cache` is a local folder that keeps each row group that was read from a bucket, in
    memory-mapped Arrow files; it may be shared by processes, and it may be deleted at any time.
    """

    sources: tuple[TokenizedData, ...]
    columns: tuple[str, ...]
    filters: tuple[tuple[Clause, ...], ...]
    cache: Path | None
    seed: int

    def filter_columns(self) -> tuple[str, ...]:
        """The columns that the filters look at."""
        return tuple(dict.fromkeys(name for clauses in self.filters for name, _, _ in clauses))

    def count(self, source: int, part: int, row_group: int) -> int:
        """Rows of a row group that pass the filters."""
        names = self.filter_columns()
        if not names:
            return self.sources[source].parts[part].row_group_rows[row_group]
        if not self._may_match(source, part, row_group):
            return 0
        return len(self._filtered(self._read(source, part, row_group, names)))

    def lengths(self, blocks: Blocks, epoch: int) -> np.ndarray:
        """Number of tokens of every row that the epoch takes, in block order, int64 [R]."""
        tables = [self._chosen(blocks, i, epoch, ("num_tokens",)).column("num_tokens") for i in range(len(blocks))]
        return np.concatenate([np.empty(0, dtype=np.int64), *(numbers(column) for column in tables)], dtype=np.int64)

    def load(self, blocks: Blocks, epoch: int, rows: np.ndarray) -> RowArrays:
        """Those of the rows that `lengths` is about which `rows` names by their indices, in its order."""
        return pick(pa.concat_tables([self.block(blocks, i, epoch) for i in range(len(blocks))]), rows, self.columns)

    def block(self, blocks: Blocks, index: int, epoch: int) -> pa.Table:
        """All rows that the epoch takes from one of the blocks, in their order, for `pick`."""
        return self._chosen(blocks, index, epoch, tuple(dict.fromkeys((*_TOKENS, *self.columns))))

    def row_group(self, source: int, part: int, row_group: int, first_row: int) -> pa.Table:
        """All rows of a row group that pass the filters, in their order, numbered from `first_row`; for `pick`."""
        names = tuple(dict.fromkeys((*_TOKENS, *self.columns, *self.filter_columns())))
        return _number(self._filtered(self._read(source, part, row_group, names)), first_row)

    def _chosen(self, blocks: Blocks, index: int, epoch: int, names: tuple[str, ...]) -> pa.Table:
        source, part, row_group = (int(a[index]) for a in (blocks.source_B, blocks.part_B, blocks.row_group_B))
        wanted = tuple(dict.fromkeys((*names, *self.filter_columns())))
        table = self._filtered(self._read(source, part, row_group, wanted))
        table = _number(table, int(blocks.first_row_B[index]))
        num_rows, copy = int(blocks.num_rows_B[index]), int(blocks.copy_B[index])
        if blocks.share_B[index] < 1:  # another part of the rows every epoch
            key = (self.seed, epoch, source, part, row_group, copy)
            table = table.take(_indices(np.sort(permutation(len(table), *key)[:num_rows])))
        if len(table) != num_rows:
            raise SourceError(
                f"{self.sources[source].path(self.sources[source].parts[part].name)} has {len(table)} matching rows in "
                f"row group {row_group}, expected {num_rows}; the part was replaced, open the dataset again"
            )
        return table.select([*names, _ROW])

    def _filtered(self, table: pa.Table) -> pa.Table:
        if not self.filters:
            return table
        try:
            return table.filter(pq.filters_to_expression([list(clauses) for clauses in self.filters]))
        except (pa.ArrowException, ValueError, TypeError) as error:
            raise ConfigError(f"filters {self.filters!r} cannot be applied: {error}") from error

    def _may_match(self, source: int, part: int, row_group: int) -> bool:
        """False where the row group's statistics rule every row out, so that it need not be read."""
        data = self.sources[source]
        described = data.parts[part]
        group = data.footer(described.name, num_bytes=described.num_bytes).row_group(row_group)
        bounds = {}
        for index in range(group.num_columns):
            chunk = group.column(index)
            statistics = chunk.statistics
            if statistics is not None and statistics.has_min_max:
                bounds[chunk.path_in_schema] = (statistics.min, statistics.max)
        try:
            return any(
                all(_possible(bounds.get(name), op, value) for name, op, value in clauses) for clauses in self.filters
            )
        except (TypeError, ValueError) as error:
            raise ConfigError(f"filters {self.filters!r} do not fit the columns: {error}") from error

    def _read(self, source: int, part: int, row_group: int, names: tuple[str, ...]) -> pa.Table:
        data, described = self.sources[source], self.sources[source].parts[part]

        def read() -> pa.Table:
            wants_most = len(described.row_group_rows) == 1 and "tokens" in names
            return data.read(
                described.name,
                columns=names,
                row_groups=[row_group],
                num_bytes=described.num_bytes,
                wants_most=wants_most,
            )

        if self.cache is None or data.is_local:
            return read()
        identity = repr((data.path(described.name), described.num_bytes, described.checksum, row_group, sorted(names)))
        path = self.cache / f"{hashlib.sha256(identity.encode()).hexdigest()[:32]}.arrow"
        try:
            table = pa.ipc.open_file(pa.memory_map(str(path))).read_all()
        except (FileNotFoundError, NotADirectoryError, pa.ArrowInvalid):  # not kept yet, or cut off by a full disk
            table = read()
            self._keep(path, table)
        return table.select(list(names))

    def _keep(self, path: Path, table: pa.Table) -> None:
        scratch = path.with_name(f"{path.name}.{uuid.uuid4().hex}.tmp")
        try:
            self.cache.mkdir(parents=True, exist_ok=True)  # type: ignore[union-attr]
            with pa.OSFile(str(scratch), "wb") as file, pa.ipc.new_file(file, table.schema) as writer:
                writer.write_table(table)
            os.replace(scratch, path)  # whole or not there, whoever else writes it
        except OSError as error:
            with suppress(OSError):
                scratch.unlink()
            raise ConfigError(f"cannot write to the cache {self.cache}: {error}; free space or name another") from error


def filter_clauses(filters: Filters | None) -> tuple[tuple[Clause, ...], ...]:
    """pyarrow's filters, one list of clauses or a list of such lists, as alternatives. Raises ConfigError."""
    if not filters:
        return ()
    flat = isinstance(filters[0], tuple) and isinstance(filters[0][0], str)
    alternatives: Any = [filters] if flat else filters
    clauses = tuple(tuple(tuple(clause) for clause in group) for group in alternatives)
    try:
        pq.filters_to_expression([list(group) for group in clauses])
    except (ValueError, TypeError, pa.ArrowException) as error:
        raise ConfigError(
            f"filters are {filters!r} ({error}); give a list of (column, operator, value), such as "
            '[("num_tokens", "<", 200)]'
        ) from error
    return clauses


def pick(table: pa.Table, rows: np.ndarray, columns: Sequence[str]) -> RowArrays:
    """Those rows of a table read by a WindowReader, in the order of `rows`, with these further columns."""
    indices = _indices(rows)
    lists = {name: _taken_lists(table.column(name), indices) for name in ("tokens", "positions")}
    table = table.drop_columns(list(lists)).combine_chunks().take(indices)

    def ints(name: str) -> np.ndarray:
        return numbers(table.column(name)).astype(np.int64)

    return RowArrays.of(
        tokens=lists["tokens"],
        places=lists["positions"],
        num_tokens_D=ints("num_tokens"),
        num_global_D=ints("num_global_tokens"),
        grids_D3=np.stack([ints(f"grid_{side}") for side in ("frames", "height", "width")], axis=1).astype(np.int32),
        rows_D=ints(_ROW),
        columns={name: table.column(name).to_pylist() for name in columns},
    )


def _taken_lists(column: pa.ChunkedArray, indices: pa.Array) -> np.ndarray:
    """The lists at some rows, end to end; taken as strings of bytes, which is seven times quicker than as lists."""
    lists = column.combine_chunks()
    values = lists.values
    num_bytes = values.type.bit_width // 8
    offsets = np.frombuffer(lists.buffers()[1], dtype=np.int32)[lists.offset : lists.offset + len(lists) + 1]
    starts = pa.py_buffer((offsets.astype(np.int64) + values.offset) * num_bytes)
    taken = pa.Array.from_buffers(pa.large_binary(), len(lists), [None, starts, values.buffers()[1]]).take(indices)
    _, ends, content = taken.buffers()
    count = int(np.frombuffer(ends, dtype=np.int64)[len(taken)]) // num_bytes
    return np.frombuffer(content or b"", dtype=values.type.to_pandas_dtype(), count=count)


def _number(table: pa.Table, first_row: int) -> pa.Table:
    return table.append_column(_ROW, _indices(np.arange(first_row, first_row + len(table))))


def _indices(rows: np.ndarray) -> pa.Array:
    # pa.array would load pandas where it is installed, a third of a second on the first batch.
    return pa.Array.from_buffers(pa.int64(), len(rows), [None, pa.py_buffer(rows.astype(np.int64, copy=False))])


def _possible(bounds: tuple[Any, Any] | None, op: str, value: Any) -> bool:
    if bounds is None:
        return True
    low, high = bounds
    match op:
        case "<":
            return bool(low < value)
        case "<=":
            return bool(low <= value)
        case ">":
            return bool(high > value)
        case ">=":
            return bool(high >= value)
        case "=" | "==":
            return bool(low <= value <= high)
        case "in":
            return any(low <= item <= high for item in value)
    return True
