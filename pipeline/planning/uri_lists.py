"""A list of URIs, as text, CSV or JSON lines -> the files that it names, streamed."""

from __future__ import annotations

import io
import json
import re
from collections.abc import Iterator, Sequence
from typing import IO, Any

from tatok.pipeline.planning.list_lines import csv_rows, numbered_lines, plain_lines, tsv_rows
from tatok.pipeline.readers.columns import SourceColumns, row_attachments, table_columns
from tatok.pipeline.readers.fetch import public_uri, resolve_uri
from tatok.pipeline.storage.source_file import open_source, source_error
from tatok.schemas.errors import ConfigError
from tatok.schemas.records import SourceFile

__all__ = ["listed_files"]

_ONE_URI = SourceColumns(media="uri", holds_bytes=False, key=None, caption=None, label=None, metadata=())
_SURROGATE = re.compile(r"\\u[dD][89a-fA-F]")
_SPACE = " \t\r\v\f"  # what is more than that, such as a no-break space, is no empty line


def listed_files(uri: str, image_field: str | None = None) -> Iterator[SourceFile]:
    """The files that a list names, in its order; `index` is the row's number, from 0.

    A .txt has one URI a line; empty lines, and those that start with "#", name nothing. A .csv or .tsv has a header;
    a .jsonl or .ndjson has an object a line. Their columns are found by name (pipeline/readers/columns.py); the key is
    the key column, else the URI as written; data instead of a URI is no key. Relative paths start at the list's folder.
    What a row names is not looked for: that is reading's business. How fields are quoted says
    pipeline/planning/list_lines.py.

    Raises ConfigError, which names the line, if anything in the list cannot be understood for sure, SourceError if it
    cannot be read.
    """
    with open_source(uri) as stored:
        # Lines end with LF or CR LF; what is not UTF-8 is looked for line by line, to be named by its line.
        text = io.TextIOWrapper(stored, encoding="utf-8-sig", errors="surrogateescape", newline="\n")
        try:
            for index, (row, columns) in enumerate(_rows(text, uri, image_field)):
                yield _file(row, columns, uri, index)
        except OSError as error:
            raise source_error(f"cannot read {uri}", error, uri) from error


def _rows(text: IO[str], uri: str, image_field: str | None) -> Iterator[tuple[dict[str, Any], SourceColumns]]:
    name, lines = uri.lower(), numbered_lines(text, uri)
    if name.endswith(".csv"):
        yield from _table(
            csv_rows(lines, uri, lambda names: _address_column(names, image_field, uri)), image_field, uri
        )
    elif name.endswith(".tsv"):
        yield from _table(tsv_rows(lines, uri), image_field, uri)
    elif name.endswith((".jsonl", ".ndjson")):
        known: dict[tuple[str, ...], SourceColumns] = {}
        for number, line in lines:
            if line.strip(_SPACE):
                row = _object(line, uri, number)
                names = tuple(row)
                if names not in known:
                    known[names] = table_columns(names, image_field, f"{uri}, line {number},")
                named = row.get(known[names].media)
                if named is not None and not isinstance(named, str):
                    raise ConfigError(
                        f"{uri}, line {number}: {known[names].media} is no text; a list names files by it"
                    )
                yield row, known[names]
    else:
        for _, line in plain_lines(lines, uri):
            if line.strip(_SPACE) and not line.lstrip(_SPACE).startswith("#"):
                yield {"uri": line.strip()}, _ONE_URI


def _table(
    rows: Iterator[Sequence[str]], image_field: str | None, uri: str
) -> Iterator[tuple[dict[str, Any], SourceColumns]]:
    header = next(rows, ())
    columns = table_columns(header, image_field, uri)
    for row in rows:
        yield {name: cell for name, cell in zip(header, row, strict=True) if name and cell}, columns


def _address_column(names: Sequence[str], image_field: str | None, uri: str) -> int:
    return list(names).index(table_columns(names, image_field, uri).media)


def _object(line: str, uri: str, number: int) -> dict[str, Any]:
    try:
        row = json.loads(line, object_pairs_hook=_without_doubles)
        if _SURROGATE.search(line):
            json.dumps(row, ensure_ascii=False).encode()
    except UnicodeEncodeError as error:
        raise ConfigError(
            f"{uri}, line {number}, holds half a surrogate pair ({error.object[error.start : error.end]!r}), "
            "which is no character; write U+FFFD for it"
        ) from error
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{uri}, line {number}, is not JSON: {error}") from error
    if not isinstance(row, dict):
        raise ConfigError(f"{uri}, line {number}, is no JSON object; write one object a line")
    return row


def _without_doubles(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    row = dict(pairs)
    if len(row) < len(pairs):
        raise ValueError("a name comes twice in an object")
    return row


def _file(row: dict[str, Any], columns: SourceColumns, uri: str, index: int) -> SourceFile:
    named = (row.get(columns.media) or "").strip()
    key = row.get(columns.key) if columns.key is not None else None
    return SourceFile(
        uri=resolve_uri(named, uri),
        key=str(key) if key is not None else public_uri(named) or f"row {index}",
        index=index,
        attachments=tuple(row_attachments(columns, row).items()),
    )
