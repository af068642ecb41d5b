"""A key or a sample id -> the row that has it."""

from __future__ import annotations

import difflib
import re
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from tatok.dataset.parts import NUM_READERS, TokenizedData
from tatok.schemas.errors import ConfigError

__all__ = ["RowPlace", "find_rows", "read_rows"]

_SAMPLE_ID_PREFIX = re.compile(r"[0-9a-f]{8,32}")
_MOST_SHOWN = 10
_MOST_COMPARED = 20_000  # difflib takes about a second for so many


@dataclass(frozen=True, slots=True, kw_only=True, order=True)
class RowPlace:
    """A row of a dataset: the name of its part and its number there, from 0."""

    part: str
    row: int


def find_rows(data: TokenizedData, names: Sequence[str]) -> list[RowPlace]:
    """The row of each name, in order; a name is a `key`, else a `sample_id` or its first 8 or more digits.

    Reads the columns key and sample_id of every part. Raises ConfigError where names fit no row (with all of these, and
    the keys that come close) or one fits several (with the sample id and source of each).
    """
    with ThreadPoolExecutor(max_workers=NUM_READERS) as pool:
        matches = list(pool.map(lambda part: _matches(data, part.name, names), data.parts))
    hits_of: dict[str, list[RowPlace]] = {}
    for number, name in enumerate(names):
        by_key, by_id = ([place for match in matches for place in match[number][kind]] for kind in (0, 1))
        hits_of[name] = by_key or by_id
    unknown = [name for name, hits in hits_of.items() if not hits]
    if unknown:
        raise ConfigError(_unknown(data, unknown))
    for name, hits in hits_of.items():
        if len(hits) > 1:
            raise ConfigError(_ambiguous(data, name, hits))
    return [hits_of[name][0] for name in names]


def read_rows(data: TokenizedData, places: Sequence[RowPlace], columns: Sequence[str] | None = None) -> pa.Table:
    """The rows at `places`, in that order; each row group that holds one is read once."""
    starts = {part.name: np.cumsum([0, *part.row_group_rows]) for part in data.parts}
    groups = {place: int(np.searchsorted(starts[place.part], place.row, side="right")) - 1 for place in places}
    wanted = sorted({(place.part, group) for place, group in groups.items()})
    with ThreadPoolExecutor(max_workers=NUM_READERS) as pool:

        def take(part_and_group: tuple[str, int]) -> dict[RowPlace, pa.Table]:
            # Only the wanted rows are kept: many row groups at once would be much.
            name, group = part_and_group
            table = data.read(name, columns=columns, row_groups=[group])
            here = [place for place in groups if (place.part, groups[place]) == part_and_group]
            return {place: table.take([place.row - int(starts[name][group])]) for place in here}

        rows = {place: row for taken in pool.map(take, wanted) for place, row in taken.items()}
    return pa.concat_tables([rows[place] for place in places]) if places else data.schema.empty_table()


def _matches(data: TokenizedData, part: str, names: Sequence[str]) -> list[tuple[list[RowPlace], list[RowPlace]]]:
    table = data.read(part, columns=["key", "sample_id"])

    def rows(fits: pa.ChunkedArray) -> list[RowPlace]:
        return [RowPlace(part=part, row=int(row)) for row in np.flatnonzero(fits.to_numpy())]

    return [
        (
            rows(pc.equal(table.column("key"), name)),
            rows(pc.starts_with(table.column("sample_id"), name)) if _SAMPLE_ID_PREFIX.fullmatch(name) else [],
        )
        for name in names
    ]


def _ambiguous(data: TokenizedData, name: str, hits: list[RowPlace]) -> str:
    columns = [n for n in ("sample_id", "key", "source_uri", "source_index", "clip_index") if n in data.schema.names]
    shown = read_rows(data, hits[:_MOST_SHOWN], columns).to_pylist()
    lines = [f"{len(hits):,} rows of {data.url} fit {name!r}; name one by its sample id (8 digits or more do):"]
    lines += [
        f"  {row['sample_id']}  {row['key']!r}  {row['source_uri']} [{row['source_index']}]"
        + (f" clip {row['clip_index']}" if row.get("clip_index") else "")
        for row in shown
    ]
    if len(hits) > _MOST_SHOWN:
        lines.append(f"  and {len(hits) - _MOST_SHOWN:,} more")
    return "\n".join(lines)


def _unknown(data: TokenizedData, names: Sequence[str]) -> str:
    keys = data.read_all(["key"]).column("key") if data.parts else pa.chunked_array([[]], pa.string())
    compared = list(dict.fromkeys(islice((key.as_py() for key in keys), _MOST_COMPARED)))
    said = []
    for name in names[:_MOST_SHOWN]:
        containing = keys.filter(pc.match_substring(keys, name, ignore_case=True)).slice(0, 3).to_pylist()
        close = list(dict.fromkeys(containing + difflib.get_close_matches(name, compared, n=3)))[:3]
        said.append(repr(name) + (f"; close to it: {', '.join(map(repr, close))}" if close else ""))
    if len(names) == 1:
        return f"{data.url} has no row with the key or sample id {said[0]}"
    if len(names) > _MOST_SHOWN:
        said.append(f"and {len(names) - _MOST_SHOWN:,} more")
    return "\n  ".join([f"{data.url} has no rows with these {len(names):,} keys or sample ids:", *said])
