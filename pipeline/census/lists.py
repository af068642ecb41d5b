"""The rows of a list of URIs, by its lines."""

from __future__ import annotations

from collections.abc import Iterator

from tatok.pipeline.census.forward import open_stored

__all__ = ["LIST_EXTENSIONS", "count_listed"]

LIST_EXTENSIONS = ("txt", "csv", "tsv", "jsonl", "ndjson")

_CHUNK_BYTES = 1 << 20
_BOM = b"\xef\xbb\xbf"


def count_listed(uri: str, extension: str) -> int:
    """How many rows a list has; raises SourceError if the store fails.

    What it is held against was parsed strictly, so that every quote of a .csv opens or closes a field, or is one of
    two: a row ends where a line does and the quotes so far are even. In all others a line is a row.
    """
    with open_stored(uri) as file:
        lines = _lines(iter(lambda: file.read(_CHUNK_BYTES), b""))
        match extension:
            case "txt":
                return sum(bool(line.strip()) and not line.strip().startswith(b"#") for line in lines)
            case "tsv":
                return max(sum(bool(line) for line in lines) - 1, 0)
            case "csv":
                return max(_csv_records(lines) - 1, 0)
            case _:
                return sum(bool(line.strip()) for line in lines)


def _csv_records(lines: Iterator[bytes]) -> int:
    records, quotes, is_open = 0, 0, False
    for line in lines:
        quotes += line.count(b'"')
        ends = quotes % 2 == 0
        records += ends and (is_open or bool(line))
        is_open = not ends
    return records + is_open


def _lines(chunks: Iterator[bytes]) -> Iterator[bytes]:
    """Lines without their ends, LF or CR LF."""
    rest, is_first = b"", True
    for chunk in chunks:
        *lines, rest = (rest + chunk).split(b"\n")
        for line in lines:
            yield (line.removeprefix(_BOM) if is_first else line).removesuffix(b"\r")
            is_first = False
    yield (rest.removeprefix(_BOM) if is_first else rest).removesuffix(b"\r")
