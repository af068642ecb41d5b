"""A Parquet file -> ranges of rows, whole row groups each, by its footer."""

from __future__ import annotations

from tatok.pipeline.planning.shard_ids import stretch_shard
from tatok.pipeline.readers.columns import media_columns, parquet_columns
from tatok.pipeline.readers.formats import extension_of
from tatok.pipeline.readers.parquet import open_parquet
from tatok.schemas.records import LeftOut, Shard

__all__ = ["split_parquet"]


_NO_IMAGES = "no column of images"
_URIS = "a table of URIs: name it by itself"


def split_parquet(
    uri: str,
    *,
    file_bytes: int,
    etag: str,
    image_field: str | None,
    range_bytes: int,
    range_rows: int,
    in_folder: bool = False,
) -> list[Shard] | LeftOut:
    """The shards of a file: consecutive row groups of at most `range_bytes` and `range_rows` together, or one that has
    more. A row group counts as its share of the file's bytes, by its size before compression.

    With `in_folder` nobody named this very file: it is left out, with the reason, where no column is the image's, or
    one that says where the images are. A file whose footer cannot be read is one shard, which becomes a reject.

    Raises ConfigError if no column is the image's, or if several may be it, SourceError if the store fails.
    """
    with open_parquet(uri) as parquet:
        if parquet.file is None:
            return [stretch_shard(uri, "parquet", num_bytes=file_bytes, file_bytes=file_bytes, etag=etag)]
        schema = parquet.file.schema_arrow
        if in_folder and not media_columns(schema, image_field):
            return LeftOut(_NO_IMAGES, extension_of(uri))
        if not parquet_columns(schema, image_field, uri).holds_bytes and in_folder:
            return LeftOut(_URIS, extension_of(uri))
        footer = parquet.file.metadata
    # Not the compressed sizes of the columns: asked for a column of a damaged footer, pyarrow 26 ends the process.
    groups = [footer.row_group(number) for number in range(footer.num_row_groups)]
    total = sum(max(group.total_byte_size, 1) for group in groups)
    ranges: list[tuple[int, int, int]] = []  # first row, row after the last, bytes
    row = 0
    for group in groups:
        size = file_bytes * max(group.total_byte_size, 1) // total
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
