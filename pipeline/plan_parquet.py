"""A Parquet file -> ranges of rows, whole row groups each, by its footer."""

from __future__ import annotations

from pipeline.read_parquet import open_parquet
from pipeline.shard_ids import stretch_shard
from pipeline.source_columns import parquet_columns
from schemas.records import Shard

__all__ = ["split_parquet"]


def split_parquet(
    uri: str, *, file_bytes: int, etag: str, image_field: str | None, range_bytes: int, range_rows: int
) -> list[Shard]:
    """The shards of a file: consecutive row groups of at most `range_bytes`, as stored, of the columns that are
    read, and `range_rows` together, or one that has more.

    A file whose footer cannot be read is one shard, which becomes a reject. Raises ConfigError where no column is the
    image's, SourceError where the store fails.
    """
    with open_parquet(uri) as parquet:
        if parquet.file is None:
            return [stretch_shard(uri, "parquet", num_bytes=file_bytes, file_bytes=file_bytes, etag=etag)]
        columns = frozenset(parquet_columns(parquet.file.schema_arrow, image_field, uri).names)
        footer = parquet.file.metadata
    paths = [footer.schema.column(column).path.partition(".")[0] for column in range(footer.num_columns)]
    read = [column for column, path in enumerate(paths) if path in columns]
    ranges: list[tuple[int, int, int]] = []  # first row, row after the last, bytes
    row = 0
    for number in range(footer.num_row_groups):
        group = footer.row_group(number)
        size = sum(group.column(column).total_compressed_size for column in read)
        first, stop, row = row, row + group.num_rows, row + group.num_rows
        fits = bool(ranges) and ranges[-1][2] + size <= range_bytes and stop - ranges[-1][0] <= range_rows
        if fits:
            ranges[-1] = (ranges[-1][0], stop, ranges[-1][2] + size)
        else:
            ranges.append((first, stop, size))
    return [
        stretch_shard(uri, "parquet", start=first, stop=stop, num_bytes=size, file_bytes=file_bytes, etag=etag)
        for first, stop, size in ranges or [(0, 0, 0)]
    ]
