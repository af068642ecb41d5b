"""A list of URIs, as text, CSV or JSON lines -> the files that it names, streamed."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator
from typing import IO, Any

from tatok.pipeline.readers.columns import SourceColumns, row_attachments, table_columns
from tatok.pipeline.readers.fetch import public_uri, resolve_uri
from tatok.pipeline.storage.source_file import open_source, source_error
from tatok.schemas.errors import ConfigError
from tatok.schemas.records import SourceFile

__all__ = ["listed_files"]

_ONE_URI = SourceColumns(media="uri", holds_bytes=False, key=None, caption=None, label=None, metadata=())


def listed_files(uri: str, image_field: str | None = None) -> Iterator[SourceFile]:
    """The files that a list names, in its order; `index` is the row's number, from 0.

    A .txt has one URI a line; empty lines, and those that start with "#", name nothing. A .csv or .tsv has a header;
    a .jsonl or .ndjson has an object a line. Their columns are found by name (pipeline/readers/columns.py); the key is
    the key column, else the URI as written. Relative paths start at the list's folder. What a row names is not looked
    for: that is reading's business.

    Raises ConfigError, which names the line, if the list itself cannot be understood, SourceError if it cannot
    be read.
    """
    with open_source(uri) as stored:
        text = io.TextIOWrapper(stored, encoding="utf-8-sig", newline="")
        try:
            for index, (row, columns) in enumerate(_rows(text, uri, image_field)):
                yield _file(row, columns, uri, index)
        except (UnicodeDecodeError, csv.Error) as error:
            raise ConfigError(f"{uri} is no list of URIs in UTF-8: {error}") from error
        except OSError as error:
            raise source_error(f"cannot read {uri}", error, uri) from error


def _rows(text: IO[str], uri: str, image_field: str | None) -> Iterator[tuple[dict[str, Any], SourceColumns]]:
    name = uri.lower()
    if name.endswith((".csv", ".tsv")):
        reader = csv.DictReader(text, delimiter="\t" if name.endswith(".tsv") else ",", restkey="")
        columns = table_columns(reader.fieldnames or (), image_field, uri)
        for row in reader:
            yield {key: value for key, value in row.items() if key and value}, columns
    elif name.endswith((".jsonl", ".ndjson")):
        known: dict[tuple[str, ...], SourceColumns] = {}
        for number, line in enumerate(text, 1):
            if line.strip():
                row = _object(line, uri, number)
                names = tuple(row)
                if names not in known:
                    known[names] = table_columns(names, image_field, f"{uri}, line {number},")
                yield row, known[names]
    else:
        for line in text:
            if line.strip() and not line.startswith("#"):
                yield {"uri": line.strip()}, _ONE_URI


def _object(line: str, uri: str, number: int) -> dict[str, Any]:
    try:
        row = json.loads(line)
    except ValueError as error:
        raise ConfigError(f"{uri}, line {number}, is not JSON: {error}") from error
    if not isinstance(row, dict):
        raise ConfigError(f"{uri}, line {number}, is no JSON object; write one object a line")
    return row


def _file(row: dict[str, Any], columns: SourceColumns, uri: str, index: int) -> SourceFile:
    named = str(row.get(columns.media) or "").strip()
    key = row.get(columns.key) if columns.key is not None else None
    return SourceFile(
        uri=resolve_uri(named, uri),
        key=str(key) if key is not None else public_uri(named) or f"row {index}",
        index=index,
        attachments=tuple(row_attachments(columns, row).items()),
    )
