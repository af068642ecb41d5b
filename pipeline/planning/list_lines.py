"""Lines of a list -> rows of fields, strictly: what cannot be read for sure is an error that names the line.

CSV is RFC 4180's: a field is quoted as a whole, with quotes in it doubled, or holds no quote at all; a quoted field may
hold line breaks. A lone quote would make one field of all lines up to the next one; such a field is told from a caption
of several lines by what stands in it: a line that is a row by itself, with an address where rows have theirs, is an
error.

TSV has no standard that its writers keep: there a row is a line, never more. A field that is quoted as a whole, by
CSV's rules, is what the quotes hold; any other quote is a character.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from typing import IO, NoReturn

from tatok.pipeline.readers.formats import is_media
from tatok.schemas.errors import ConfigError

__all__ = ["csv_rows", "numbered_lines", "plain_lines", "tsv_rows"]

Lines = Iterator[tuple[int, str]]

_CSV_FIELD = re.compile(r'(?:"([^"]*(?:""[^"]*)*)"|([^",\r\n]*))(,|\Z)')
_QUOTED = re.compile(r'"([^"]*(?:""[^"]*)*)"')
_PLAIN = re.compile(r"[^,\r\n]*")
_COMMA = re.compile(",")
_REMEDY = (
    "write the list as .jsonl, or put fields with quotes, commas or line breaks into quotes and double those within"
)


def numbered_lines(text: IO[str], uri: str) -> Lines:
    """The lines, from 1, without their LF; `text` has been decoded with "surrogateescape".

    Raises ConfigError for what is not UTF-8, and for bytes of zero.
    """
    for number, line in enumerate(text, 1):
        if "\0" in line or (number == 1 and line.startswith(("\udcff\udcfe", "\udcfe\udcff"))):
            _refuse(uri, number, "is not UTF-8: it has bytes of zero, as UTF-16 has", "save the list as UTF-8")
        if not line.isascii():
            try:
                line.encode()
            except UnicodeEncodeError as error:
                byte = ord(line[error.start]) & 0xFF
                _refuse(uri, number, f"is not UTF-8: it has the byte {byte:#04x}", "save the list as UTF-8")
        yield number, line.removesuffix("\n")


def plain_lines(lines: Lines, uri: str) -> Lines:
    """The lines without a CR at their end, where each is by itself; raises ConfigError for one elsewhere."""
    for number, line in lines:
        line = line.removesuffix("\r")
        if "\r" in line:
            _refuse(uri, number, "holds a carriage return alone", "end lines with LF or CR LF")
        yield number, line


def tsv_rows(lines: Lines, uri: str) -> Iterator[list[str]]:
    """The header, then each row; empty lines are nothing. Raises ConfigError."""
    header: list[str] | None = None
    for number, line in plain_lines(lines, uri):
        if not line:
            continue
        row = [_unquoted(field) for field in line.split("\t")]
        header = header or _checked_header(row, uri, number)
        _check_count(row, header, uri, number)
        yield row


def csv_rows(lines: Lines, uri: str, address_column: Callable[[Sequence[str]], int]) -> Iterator[list[str]]:
    """The header, then each row; empty lines are nothing. `address_column` finds the addresses' place in a header.

    Raises ConfigError.
    """
    header: list[str] | None = None
    place, num_fields = 0, 0
    first, pending, is_open = 0, list[str](), False
    for number, line in lines:
        if not pending:
            if not line.removesuffix("\r"):
                continue
            first = number
        elif header and '"' not in line and _addresses(line, num_fields, place):
            _refuse_row_within(uri, first, number)  # at once: the rest of the list may be large
        pending.append(line)
        is_open ^= line.count('"') % 2 == 1
        if is_open:
            continue
        record, pending = "\n".join(pending).removesuffix("\r"), []
        row = _csv_fields(record, uri, first)
        if header is None:
            header, place, num_fields = _checked_header(row, uri, first), address_column(row), len(row)
        elif "\n" in record:
            _check_no_row_within(record, num_fields, place, uri, first)
        _check_count(row, header, uri, first)
        yield row
    if pending:
        _csv_fields("\n".join(pending), uri, first)  # which the open quote makes an error


def _csv_fields(record: str, uri: str, first: int) -> list[str]:
    if '"' not in record and "\r" not in record:
        return record.split(",")
    fields, at = list[str](), 0
    while True:
        match = _CSV_FIELD.match(record, at)
        if match is None:
            number = first + record.count("\n", 0, at)
            where = f"in field {len(fields) + 1}" + (f", on line {number}" if number > first else "")
            if record[at] == '"' and not _QUOTED.match(record, at):
                _refuse(uri, first, f"opens a quote that is never closed, {where}", _REMEDY)
            if '"' in _PLAIN.match(record, at)[0]:  # type: ignore[index]  # it matches anything
                _refuse(uri, first, f"has a quote that is neither around a field nor doubled, {where}", _REMEDY)
            _refuse(uri, first, f"holds a carriage return alone, {where}", "end lines with LF or CR LF")
        fields.append(match[2] if match[1] is None else match[1].replace('""', '"'))
        if not match[3]:
            return fields
        at = match.end()


def _addresses(line: str, num_fields: int, place: int) -> list[tuple[int, int]]:
    """Where addresses are in a line that is a row, whatever its quotes mean; none where it is no row.

    A caption with commas makes more fields of a line: the address is then in its place from the left or from the right.
    """
    commas = [-1, *(match.start() for match in _COMMA.finditer(line)), len(line)]
    num_more = len(commas) - 1 - num_fields
    if num_more < 0:
        return []
    spans = [(commas[at] + 1, commas[at + 1]) for at in {place, place + num_more}]
    texts = [line[start:stop].strip(' "\r') for start, stop in spans]
    return [span for span, text in zip(spans, texts, strict=True) if is_media(text) or "://" in text]


def _check_no_row_within(record: str, num_fields: int, place: int, uri: str, first: int) -> None:
    """Refuse a row in whose quoted fields there is a line that is a row by itself, its address within the quotes."""
    quoted = [match.span() for match in _QUOTED.finditer(record)]
    at = 0
    for number, line in enumerate(record.split("\n"), first):
        for start, stop in _addresses(line, num_fields, place):
            if any(opened < at + start and at + stop < closed for opened, closed in quoted):
                _refuse_row_within(uri, first, number)
        at += len(line) + 1


def _refuse_row_within(uri: str, first: int, number: int) -> NoReturn:
    _refuse(uri, first, f"opens a quote within which line {number} is a row by itself", _REMEDY)


def _unquoted(field: str) -> str:
    match = _QUOTED.fullmatch(field) if field.startswith('"') else None
    return field if match is None else match[1].replace('""', '"')


def _checked_header(header: list[str], uri: str, number: int) -> list[str]:
    named = [name for name in header if name]
    twice = next((name for name in named if named.count(name) > 1), None)
    if twice is not None:
        _refuse(uri, number, f"names the column {twice} twice", "rename one of the two")
    return header


def _check_count(row: Sequence[str], header: Sequence[str], uri: str, number: int) -> None:
    if len(row) != len(header):
        what = f"begins a row of {len(row)} fields, and the header has {len(header)} ({', '.join(header)})"
        _refuse(uri, number, what, _REMEDY)


def _refuse(uri: str, number: int, what: str, remedy: str) -> NoReturn:
    raise ConfigError(f"{uri}, line {number}, {what}; {remedy}")
