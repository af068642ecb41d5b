"""Arrow tables -> the bytes of one Parquet part: encodings, statistics, row groups, footer."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Self

import pyarrow as pa
import pyarrow.parquet as pq

__all__ = ["PartWriter"]

# Token columns are near-incompressible and nobody filters on them: no dictionary, no statistics.
_TOKEN_COLUMNS = ("tokens", "positions", "patch_entropy_bits", "patch_worth_bits")
_SPLIT_COLUMNS = ("tokens", "positions")  # not the float16 columns: DuckDB reads no byte-stream split of those
_DICTIONARY_COLUMNS = ("source_uri", "media", "label", "stage", "reason")
_BLOOM_COLUMNS = ("sample_id", "key")


class PartWriter:
    """Writes one part, row group by row group; the same rows give the same bytes.

    Codes and positions are byte-stream split + zstd; columns that queries filter on carry statistics and a page
    index, sample_id and key a Bloom filter. Holds at most `row_group_rows` rows plus one table in memory. Use as a
    context manager; on an exception the file is left unfinished, for the caller to delete.
    """

    def __init__(self, path: Path, schema: pa.Schema, *, row_group_rows: int) -> None:
        self.num_rows = 0
        self.row_group_rows: list[int] = []
        self._path = path
        self._schema = schema
        self._most_rows = row_group_rows
        self._buffered: list[pa.Table] = []
        self._num_buffered = 0
        self._writer: pq.ParquetWriter | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if kind is not None and self._writer is not None:
            self._writer.close()

    def write(self, table: pa.Table) -> None:
        """Append rows; they reach the disk when a row group is full."""
        self._buffered.append(table)
        self._num_buffered += len(table)
        self.num_rows += len(table)
        while self._num_buffered >= self._most_rows:
            self._write_row_group(self._most_rows)

    def finish(self, metadata: Mapping[str, str]) -> None:
        """Write the remaining rows and the footer with `metadata`; nothing can be written afterwards."""
        if self._num_buffered:
            self._write_row_group(self._num_buffered)
        writer = self._writer or self._open(0)
        writer.add_key_value_metadata(dict(metadata))
        writer.close()
        self._writer = None

    def _write_row_group(self, num_rows: int) -> None:
        table = pa.concat_tables(self._buffered)
        group, rest = table.slice(0, num_rows), table.slice(num_rows)
        self._buffered, self._num_buffered = [rest], len(rest)
        self._writer = self._writer or self._open(num_rows)
        # combine_chunks: page boundaries must not depend on how the rows came in.
        self._writer.write_table(group.combine_chunks(), row_group_size=num_rows)
        self.row_group_rows.append(num_rows)

    def _open(self, num_rows: int) -> pq.ParquetWriter:
        names = [name for name in self._schema.names if name not in _TOKEN_COLUMNS]
        leaves = [f"{name}.list.element" for name in _SPLIT_COLUMNS if name in self._schema.names]
        # The filter is sized by its number of distinct values; pyarrow's default of a million costs 800 KB a column.
        bloom = {name: {"ndv": max(num_rows, 1), "fpp": 0.01} for name in _BLOOM_COLUMNS}
        return pq.ParquetWriter(
            self._path,
            self._schema,
            compression="zstd",
            use_dictionary=[name for name in _DICTIONARY_COLUMNS if name in names],
            use_byte_stream_split=leaves,
            write_statistics=names,
            write_page_index=True,
            bloom_filter_options=bloom,
        )
