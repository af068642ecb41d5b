"""The rows of a query -> a table to look at, CSV, JSON or Parquet; on standard output or as one whole file."""

from __future__ import annotations

import csv
import json
import math
import os
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import date, time
from decimal import Decimal
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TextIO

from tatok.schemas.errors import CommitError, ConfigError
from tatok.schemas.urls import filesystem_of

if TYPE_CHECKING:
    from tatok.statistics.sql import QueryResult

__all__ = ["OutputFormat", "format_of", "print_result", "printable", "write_result"]

OutputFormat = Literal["table", "csv", "json", "parquet"]

_TABLE_ROWS = 1_000
_LIST_ITEMS = 6
_CELL_CHARACTERS = 60
_LEAST_CHARACTERS = 16  # to which cells are shortened before columns are left out
_ELIDED_CHARACTERS = 24  # of cells where columns are left out all the same
_NULL = "NULL"  # which an empty text is not
_SHORTENED = "long values are shortened; --format json shows them whole"
_GAP = "…"  # in place of the columns that have no room
_BETWEEN = 3  # characters that the table has between two columns, or at its edges


def format_of(wanted: OutputFormat | None, output: str | None) -> OutputFormat:
    """The format that was asked for, else what the output's name ends in, else a table.

    Raises ConfigError for Parquet on standard output.
    """
    suffix = "" if output is None else output.rpartition(".")[2].lower()
    by_suffix: dict[str, OutputFormat] = {"csv": "csv", "json": "json", "parquet": "parquet"}
    chosen = wanted or by_suffix.get(suffix, "table")
    if chosen == "parquet" and output is None:
        raise ConfigError("Parquet is not for the terminal; name a file with --output")
    return chosen


def print_result(result: QueryResult, wanted: OutputFormat) -> None:
    """Print the rows; a table says below what it does not show."""
    if wanted == "table" and sys.stdout.isatty():
        _print_rich(result)
    else:
        _WRITERS[wanted](result, sys.stdout)


def write_result(result: QueryResult, wanted: OutputFormat, output: str) -> None:
    """Write the rows to a path or URL; under that name the whole file appears, or nothing.

    Raises CommitError where it cannot be written, ConfigError where Parquet has no such type.
    """
    with _whole_file(output) as path:
        if wanted == "parquet":
            _write_parquet(result, path)
        else:
            with path.open("w", encoding="utf-8", newline="") as file:
                _WRITERS[wanted](result, file)


def printable(text: str) -> str:
    """A text that a terminal shows as it is: what captions and labels hold cannot move the cursor."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in text)


def _write_table(result: QueryResult, file: TextIO) -> None:
    names, rows, notes = _cells(result)
    widths = [max(map(len, column)) for column in zip(names, *rows, strict=True)]
    numeric = _numeric(result)
    for row in [names, *rows]:
        cells = (
            cell.rjust(width) if right else cell.ljust(width)
            for cell, width, right in zip(row, widths, numeric, strict=True)
        )
        file.write("  ".join(cells).rstrip() + "\n")
    for note in notes:
        file.write(f"({note})\n")


def _print_rich(result: QueryResult) -> None:
    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    names, rows, notes = _cells(result)
    console = Console(highlight=False)
    numeric = _numeric(result)
    most = _most_characters(names, rows, numeric, console.width)
    short = [[_shortened(row[index], most[index]) for index in range(len(names))] for row in rows]
    if short != rows and _SHORTENED not in notes:
        notes.append(_SHORTENED)
    rows = short
    widths = [max(map(len, column)) for column in zip(names, *rows, strict=True)]
    first, last = _fitting(widths, console.width)
    shown = [*range(first), *range(len(names) - last, len(names))]
    is_elided = len(shown) < len(names)
    table = Table(box=SIMPLE_HEAD, pad_edge=False)
    for index in shown:
        if is_elided and index == len(names) - last:
            table.add_column(Text(_GAP))
        table.add_column(Text(names[index]), justify="right" if numeric[index] else "left", no_wrap=True)
    if is_elided and not last:
        table.add_column(Text(_GAP))
    for row in rows:
        cells = [Text(row[index]) for index in shown]
        table.add_row(*cells[:first], *([Text(_GAP)] if is_elided else []), *cells[first:])
    console.print(table)
    if is_elided:
        hidden = names[first : len(names) - last]
        notes.append(f"no room for {', '.join(hidden)}; choose columns, or use --format json")
    for note in notes:
        console.print(Text(f"({note})"))


def _most_characters(names: list[str], rows: list[list[str]], numeric: list[bool], room: int) -> list[int]:
    """How many characters of a cell each column has room for; headings and numbers are never shortened."""
    columns = list(zip(names, *rows, strict=True))
    widest = [max(map(len, column)) for column in columns]

    def at_most(limit: int) -> list[int]:
        return [
            width if is_number else max(min(width, limit), len(name))
            for width, name, is_number in zip(widest, names, numeric, strict=True)
        ]

    for limit in range(max(widest, default=0), _LEAST_CHARACTERS - 1, -1):
        if sum(at_most(limit)) + _BETWEEN * len(names) <= room:
            return at_most(limit)
    return at_most(_ELIDED_CHARACTERS)


def _shortened(text: str, most: int) -> str:
    """Both ends of a text: paths differ in the last characters, sentences in the first."""
    if len(text) <= most:
        return text
    end = (most - 1) // 2
    return f"{text[: most - 1 - end]}…{text[len(text) - end :]}"


def _fitting(widths: Sequence[int], room: int) -> tuple[int, int]:
    """How many of the first and of the last columns fit side by side; at least the first one is shown."""
    if sum(widths) + _BETWEEN * len(widths) <= room:
        return len(widths), 0
    first, last, room = 1, 0, room - widths[0] - len(_GAP) - 2 * _BETWEEN
    is_open = [True, True]  # whether the next column fits, from the start and from the end; they take turns
    while any(is_open):
        for side, width in enumerate((widths[first], widths[-1 - last])):
            is_open[side] = is_open[side] and width + _BETWEEN <= room
            if is_open[side]:
                first, last, room = first + (side == 0), last + (side == 1), room - width - _BETWEEN
    return first, last


def _cells(result: QueryResult) -> tuple[list[str], list[list[str]], list[str]]:
    """Names, shortened cells of the first rows, and notes of what is left out."""
    rows = [list(row.values()) for row in islice(_rows(result, keep_nan=True), _TABLE_ROWS + 1)]
    notes = []
    if len(rows) > _TABLE_ROWS:
        notes.append(f"the first {_TABLE_ROWS:,} rows; use LIMIT, or --format csv or json for all")
    shortened = False
    cells = []
    for row in rows[:_TABLE_ROWS]:
        texts = [_cell(value) for value in row]
        shortened |= any(cut for _, cut in texts)
        cells.append([text for text, _ in texts])
    if shortened:
        notes.append(_SHORTENED)
    return [printable(name) for name in result.schema.names], cells, notes


def _cell(value: Any) -> tuple[str, bool]:
    """A value's text, and whether it was shortened."""
    if isinstance(value, list):
        items = ", ".join(_cell(item)[0] for item in value[:_LIST_ITEMS])
        more = len(value) - _LIST_ITEMS
        return (f"[{items}, … {more} more]", True) if more > 0 else (f"[{items}]", False)
    if value is None:
        return _NULL, False
    if isinstance(value, float):
        return f"{value:.0f}" if 1e6 <= abs(value) < 1e15 else f"{value:.6g}", False
    text = printable(json.dumps(value, ensure_ascii=False) if isinstance(value, dict) else str(value))
    return _shortened(text, _CELL_CHARACTERS), len(text) > _CELL_CHARACTERS


def _numeric(result: QueryResult) -> list[bool]:
    from pyarrow import types

    return [
        types.is_integer(field.type) or types.is_floating(field.type) or types.is_decimal(field.type)
        for field in result.schema
    ]


def _write_csv(result: QueryResult, file: TextIO) -> None:
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(result.schema.names)
    for row in _rows(result):
        writer.writerow([json.dumps(v) if isinstance(v, list | dict) else v for v in row.values()])


def _write_json(result: QueryResult, file: TextIO) -> None:
    """One array; a row a line, so that line tools can work with it too."""
    separator = "[\n"
    for row in _rows(result):
        file.write(separator + json.dumps(row, ensure_ascii=False, allow_nan=False))
        separator = ",\n"
    file.write("[]\n" if separator == "[\n" else "\n]\n")


def _write_parquet(result: QueryResult, path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    from tatok.statistics.sql import with_int64

    result = with_int64(result)
    try:
        with pq.ParquetWriter(path, result.schema, compression="zstd") as writer:
            for batch in result.batches:
                writer.write_batch(batch)
    except (pa.ArrowNotImplementedError, pa.ArrowInvalid) as error:
        raise ConfigError(f"the rows cannot be written as Parquet: {error}; cast that column in the query") from error


_WRITERS: dict[str, Callable[[QueryResult, TextIO], None]] = {
    "table": _write_table,
    "csv": _write_csv,
    "json": _write_json,
}


def _rows(result: QueryResult, *, keep_nan: bool = False) -> Iterator[dict[str, Any]]:
    names = _distinct(result.schema.names)
    for batch in result.batches:
        columns = [batch.column(index).to_pylist() for index in range(batch.num_columns)]
        for values in zip(*columns, strict=True):
            yield dict(zip(names, (_plain(value, keep_nan) for value in values), strict=True))


def _distinct(names: Sequence[str]) -> list[str]:
    """SELECT a.key, b.key gives two columns one name, and an object can have it once: the second becomes key_1."""
    found: list[str] = []
    for name in names:
        new, number = name, 0
        while new in found:
            number += 1
            new = f"{name}_{number}"
        found.append(new)
    return found


def _plain(value: Any, keep_nan: bool = False) -> Any:
    """What JSON can hold: sums are integers, NaN is null, dates are ISO 8601 text, bytes are hexadecimal.

    With `keep_nan` what is not finite stays, for tables.
    """
    if isinstance(value, list):
        return [_plain(item, keep_nan) for item in value]
    if isinstance(value, tuple):  # an entry of a map
        return [_plain(item, keep_nan) for item in value]
    if isinstance(value, dict):
        return {str(name): _plain(item, keep_nan) for name, item in value.items()}
    if isinstance(value, float):
        return value if keep_nan or math.isfinite(value) else None
    if isinstance(value, Decimal):
        return int(value) if value == value.to_integral_value() else float(value)
    if isinstance(value, bytes):
        return value.hex()
    if isinstance(value, date | time):  # a datetime is a date
        return value.isoformat()
    return value if value is None or isinstance(value, str | int | bool) else str(value)


@contextmanager
def _whole_file(output: str) -> Iterator[Path]:
    """A scratch file that takes the output's name, or is stored there, when the block ends without an error."""
    from fsspec.implementations.local import LocalFileSystem

    try:
        fs, place = filesystem_of(output)
    except (ImportError, ValueError) as error:
        raise ConfigError(f"cannot write to {output!r}: {error}; install the scheme's fsspec package") from error
    folder = Path(place).parent if isinstance(fs, LocalFileSystem) else None
    try:
        with tempfile.TemporaryDirectory(prefix=".tatok-", dir=folder) as scratch:
            path = Path(scratch) / "rows"
            yield path
            if folder is None:
                fs.put_file(str(path), place)
            else:
                os.replace(path, place)
    except OSError as error:
        raise CommitError(f"cannot write {output}: {error}") from error
