"""Rows of a Parquet file -> samples: bytes, {bytes, path}, or what a column of URIs leads to."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import IO, Any

import pyarrow as pa
import pyarrow.parquet as pq

from tatok.pipeline.readers.columns import SourceColumns, is_byte_list, parquet_columns, row_attachments
from tatok.pipeline.readers.fetch import Fetcher, public_uri, resolve_uri
from tatok.pipeline.readers.formats import HEAD_BYTES, extension_of, media_of
from tatok.pipeline.readers.inline_data import InlineData, inline_data
from tatok.pipeline.readers.unreadable import Unreadable, unreadable_reject
from tatok.pipeline.storage.source_file import open_source, source_error
from tatok.schemas.records import Reject, Sample, Shard

__all__ = ["open_parquet", "read_parquet", "read_parquet_keys"]

_BATCH_BYTES = 16 << 20
_MAX_BATCH_ROWS = 256
_BUFFER_BYTES = 1 << 20  # of each column, instead of a row group's whole column


@dataclass(frozen=True, slots=True, kw_only=True)
class _Row:
    """One row, taken apart; `media` is its bytes, or the address that it names."""

    index: int
    key: str
    name: str
    media: bytes | str | Unreadable
    attachments: Mapping[str, bytes]


class StoredParquet:
    """A Parquet file in a store; `file` is None where it is none, for the reason `unreadable`."""

    def __init__(self, stored: IO[bytes], uri: str) -> None:
        self._stored, self._uri = _Stored(stored), uri
        self.file: pq.ParquetFile | None = None
        try:
            file = pq.ParquetFile(self._stored, buffer_size=_BUFFER_BYTES)
            str(file.schema_arrow)  # raises where a column's name is no UTF-8
            self.file = file
        except Exception as error:  # Arrow's, or whatever the store's file raised
            self.unreadable = self.damage(error, "not_parquet", "not a Parquet file")

    def damage(self, error: Exception, reason: str, what: str) -> Unreadable:
        """What Arrow's error says of the file; raises SourceError if it was the store that failed."""
        failure = self._stored.failure
        if failure is not None:
            raise source_error(f"cannot read {self._uri}", failure, self._uri) from failure
        if not isinstance(error, pa.ArrowException | OSError | UnicodeDecodeError):
            raise error
        return Unreadable(
            reason=reason, detail=f"{what}: {(str(error).strip() or type(error).__name__).splitlines()[0]}"
        )


@contextmanager
def open_parquet(uri: str) -> Iterator[StoredParquet]:
    """Open a Parquet file and read its footer; raises SourceError if the store fails."""
    with open_source(uri) as stored:
        yield StoredParquet(stored, uri)


def read_parquet(shard: Shard, *, max_sample_bytes: int, image_field: str | None = None) -> Iterator[Sample | Reject]:
    """Yield the rows [start, stop) of a file as samples, `index` being the row's number in the file.

    The key is the column `__key__`, `key`, `id` or `image_id`; else the path beside the bytes, or the URI; else the
    file's name and the row. A text, or the path beside the bytes, may also be the data itself, as a data URI or base64;
    it is never the key. Columns named like a caption and a label become these, all others the metadata, except
    for other columns of bytes, which are not read. A row group is read by batches of about 16 MiB, which is held twice,
    beside 1 MiB of each column, a page, and what is fetched ahead.

    Rejects, all of stage "read": "no_image" (a null), "too_large", "not_parquet", "corrupt_parquet" (once for
    the rest of a row group; the following ones are read); of texts also "inline_data", "missing", "forbidden",
    "unreachable", "unreadable_uri" and "signed_uri".

    Raises SourceError if the store fails.
    """
    fetcher = Fetcher(max_bytes=max_sample_bytes)

    def sample(row: _Row | Reject) -> Sample | Reject:
        if isinstance(row, Reject):
            return row
        media = fetcher.fetch(row.media) if isinstance(row.media, str) else row.media
        if isinstance(media, bytes) and len(media) > max_sample_bytes:
            detail = f"{len(media)} bytes; at most {max_sample_bytes} are read (limits.max_sample_bytes)"
            media = Unreadable(reason="too_large", detail=detail)
        if isinstance(media, Unreadable):
            return unreadable_reject(shard.uri, row.index, row.key, media)
        return Sample(
            key=row.key,
            uri=shard.uri,
            index=row.index,
            media=media_of(row.name, media[:HEAD_BYTES]),
            extension=extension_of(row.name),
            payload=media,
            attachments=row.attachments,
        )

    def give_up(row: _Row | Reject, unreadable: Unreadable) -> Sample | Reject:
        assert isinstance(row, _Row), "a reject was not fetched"
        return unreadable_reject(shard.uri, row.index, row.key, unreadable)

    with open_parquet(shard.uri) as parquet:
        if parquet.file is None:
            yield unreadable_reject(shard.uri, shard.start, shard.uri.rpartition("/")[2], parquet.unreadable)
            return
        columns = parquet_columns(parquet.file.schema_arrow, image_field, shard.uri)
        rows = _rows(parquet, parquet.file, shard, columns)
        if columns.holds_bytes:
            yield from map(sample, rows)
        else:
            yield from fetcher.map(rows, sample, num_bytes=_bytes_held, give_up=give_up)


def read_parquet_keys(shard: Shard, *, image_field: str | None = None) -> Iterator[tuple[int, str]]:
    """(index, key) of every row in a shard, as `read_parquet` gives them; what URIs name is not fetched.

    Raises SourceError if the store fails.
    """
    with open_parquet(shard.uri) as parquet:
        if parquet.file is None:
            yield shard.start, shard.uri.rpartition("/")[2]
            return
        columns = parquet_columns(parquet.file.schema_arrow, image_field, shard.uri)
        for row in _rows(parquet, parquet.file, shard, columns):
            yield row.index, row.key


def _rows(
    parquet: StoredParquet, file: pq.ParquetFile, shard: Shard, columns: SourceColumns
) -> Iterator[_Row | Reject]:
    end = 0
    for group in range(file.num_row_groups):
        at, end = end, end + file.metadata.row_group(group).num_rows
        stop = end if shard.stop is None else min(end, shard.stop)
        if end <= shard.start or at >= stop:
            continue
        mean_bytes = file.metadata.row_group(group).total_byte_size // max(end - at, 1)
        batch_rows = min(max(_BATCH_BYTES // max(mean_bytes, 1), 1), _MAX_BATCH_ROWS)
        batches = file.iter_batches(batch_rows, row_groups=[group], columns=columns.names, use_threads=False)
        try:
            for batch in batches:
                first, last = max(at, shard.start), min(at + len(batch), stop)
                if first < last:
                    rows = _rows_of(_with_bytes(batch.slice(first - at, last - first), columns.media))
                    yield from (_row(row, columns, shard.uri, index) for index, row in enumerate(rows, first))
                at += len(batch)
                if at >= stop:
                    break
            else:  # damaged pages may end the batches early, without a word
                if at < stop:
                    raise pa.ArrowInvalid(f"{end - at} rows fewer than the footer says")
        except (pa.ArrowException, OSError) as error:
            index = max(at, shard.start)
            what = f"rows {index} to {stop - 1} are lost in a damaged row group"
            unreadable = parquet.damage(error, "corrupt_parquet", what)
            yield unreadable_reject(shard.uri, index, f"{_stem(shard.uri)}/{index:08}", unreadable)


def _bytes_held(row: _Row | Reject) -> int | None:
    """How much of a row is in memory already; None where it has to be fetched."""
    return len(row.media) if isinstance(row, _Row) and isinstance(row.media, bytes) else None


def _with_bytes(batch: pa.RecordBatch, media: str) -> pa.RecordBatch:
    """The batch with bytes where the image is lists of numbers; a list with nulls is null."""
    place = batch.schema.names.index(media)
    if not is_byte_list(batch.schema.field(place).type):
        return batch
    cells = [
        cell.values.to_numpy().tobytes() if cell.is_valid and cell.values.null_count == 0 else None
        for cell in batch.column(place)
    ]
    return batch.set_column(place, media, pa.array(cells, pa.large_binary()))


def _rows_of(batch: pa.RecordBatch) -> list[dict[str, Any]]:
    """The rows as Python values; bytes of a text that are no UTF-8 become \\xNN, as in the names of a tar."""
    try:
        return batch.to_pylist()
    except UnicodeDecodeError:
        columns = [[_cell(scalar) for scalar in column] for column in batch.columns]
        return [dict(zip(batch.schema.names, cells, strict=True)) for cells in zip(*columns, strict=True)]


def _cell(scalar: pa.Scalar) -> Any:
    try:
        return scalar.as_py()
    except UnicodeDecodeError:
        if isinstance(scalar, pa.BinaryScalar):
            return scalar.as_buffer().to_pybytes().decode("utf-8", errors="backslashreplace")
        if isinstance(scalar, pa.DictionaryScalar):
            return _cell(scalar.value)
        if isinstance(scalar, pa.StructScalar):
            return {name: _cell(scalar[name]) for name in scalar.type.names}
        assert isinstance(scalar, pa.ListScalar), f"{scalar.type} holds text"
        return [_cell(inner) for inner in scalar.values]


def _row(row: Mapping[str, Any], columns: SourceColumns, uri: str, index: int) -> _Row:
    cell, path = row[columns.media], None
    if isinstance(cell, Mapping):
        cell, path = cell["bytes"], cell.get("path")
        if cell is None and path:  # Hugging Face's way to name a file instead of holding it
            cell = path
    name = (cell if isinstance(cell, str) else path) or ""
    public = public_uri(name)  # "" where it is data
    extension = columns.media
    media: bytes | str | Unreadable
    if cell is None:
        media = Unreadable(reason="no_image", detail=f"the column {columns.media} is null")
    elif isinstance(cell, str):
        held = inline_data(cell)
        if isinstance(held, InlineData):
            media, extension = held.content, held.extension or extension
        else:
            media = held or resolve_uri(cell, uri)
    else:
        media = bytes(cell)
    key = row.get(columns.key) if columns.key is not None else None
    texts = row_attachments(columns, row)
    return _Row(
        index=index,
        key=str(key) if key is not None else public or f"{_stem(uri)}/{index:08}",
        name=name if public else f".{extension}",
        media=media,
        attachments={extension: text.encode() for extension, text in texts.items()},
    )


def _stem(uri: str) -> str:
    return os.path.splitext(uri.rpartition("/")[2])[0]


class _Stored:
    """A stored file for Arrow, which remembers whether it was the store that failed."""

    closed = False

    def __init__(self, file: Any) -> None:
        self.failure: Exception | None = None
        self._file = file

    def read(self, size: int = -1) -> bytes:
        return self._remember(self._file.read, size)

    def seek(self, offset: int, whence: int = 0) -> int:
        return self._remember(self._file.seek, offset, whence)

    def tell(self) -> int:
        return self._file.tell()

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def writable(self) -> bool:
        return False

    def flush(self) -> None:
        pass

    def close(self) -> None:
        pass  # whoever opened it closes it

    def _remember(self, call: Any, *arguments: Any) -> Any:
        try:
            return call(*arguments)
        except Exception as error:
            self.failure = error
            raise
