"""Several parts -> one: which go together, and their rows in one file with one footer."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import pyarrow as pa

from tatok.dataset.parts import TokenizedData
from tatok.pipeline.output.parquet import PartWriter
from tatok.schemas.errors import CommitError, SourceError
from tatok.schemas.manifest import Part, clips_of_footer, left_out_from_json, left_out_to_json
from tatok.schemas.records import LeftOut, count_text
from tatok.schemas.tokens import (
    FOOTER_CLIPS,
    FOOTER_FINGERPRINT,
    FOOTER_LEFT_OUT,
    FOOTER_NUM_REJECTS,
    FOOTER_NUM_TOKENS,
    FOOTER_SCHEMA_VERSION,
    FOOTER_SHARD,
    FOOTER_SHARDS,
    SCHEMA_VERSION,
)

__all__ = ["OnRows", "group_parts", "merged_footer", "write_merged"]

OnRows = Callable[[int], None]
"""Is told how many more rows were taken over; called from several threads, and what it raises stops the work."""


def group_parts(parts: Sequence[Part], target_bytes: int) -> tuple[tuple[Part, ...], ...]:
    """Consecutive parts, in order, in groups of between half and twice `target_bytes`.

    Smaller is a group only where all parts together are, or where it is next to a part that is itself larger than
    one and a half targets: parts are merged, never split.
    """
    groups: list[list[Part]] = []
    sizes: list[int] = []
    for part in parts:
        fits = bool(groups) and (
            sizes[-1] + part.num_bytes <= target_bytes
            or (sizes[-1] < target_bytes / 2 and sizes[-1] + part.num_bytes <= 2 * target_bytes)
        )
        if fits:
            groups[-1].append(part)
            sizes[-1] += part.num_bytes
        else:
            groups.append([part])
            sizes.append(part.num_bytes)
    if len(groups) > 1 and sizes[-1] < target_bytes / 2 and sizes[-2] + sizes[-1] <= 2 * target_bytes:
        last = groups.pop()
        groups[-1] += last
    return tuple(tuple(group) for group in groups)


def write_merged(
    data: TokenizedData,
    parts: Sequence[Part],
    path: Path,
    *,
    schema: pa.Schema,
    row_group_rows: int,
    footer: Mapping[str, str],
    folder: Literal["data", "rejects"] = "data",
    without: Collection[str] = (),
    on_rows: OnRows = lambda num_rows: None,
) -> None:
    """Write all rows of the parts, in order, to one file; holds about one row group of them in memory.

    `schema` is that of every part; the columns named in `without` are left out.

    Raises SourceError if a part cannot be read or does not hold the rows that the manifest promises; CommitError
    where its columns are not those of `schema`.
    """
    kept = pa.schema([field for field in schema if field.name not in without])
    with PartWriter(path, kept, row_group_rows=row_group_rows) as writer:
        for part in parts:
            for table in _row_groups(data, part, schema, folder, kept.names):
                writer.write(table)
                on_rows(len(table))
        writer.finish(footer)
    num_rows = sum(part.num_rows if folder == "data" else sum(part.rejects.values()) for part in parts)
    if writer.num_rows != num_rows:
        raise SourceError(
            f"{data.url}/{folder}: {parts[0].name} .. {parts[-1].name} hold "
            f"{count_text(writer.num_rows, 'row')}, the manifest says "
            f"{num_rows}; run `tatok tokenize` again, which rewrites the manifest"
        )


def merged_footer(data: TokenizedData, parts: Sequence[Part]) -> dict[str, str]:
    """The footer metadata of the parts' merger: counts are summed, their shards listed in order.

    Raises SourceError if a part's footer is not one that tatok wrote; CommitError if two were made under
    different settings.
    """
    shards: list[dict[str, Any]] = []
    rejects = Counter[str]()
    left_out = Counter[LeftOut]()
    num_tokens = num_clips = num_frames = 0
    fingerprint = dict(data.run.fingerprint)
    for part in parts:
        footer = data.footer(part.name)
        metadata = footer.metadata or {}
        try:
            num_clips, num_frames = map(sum, zip((num_clips, num_frames), clips_of_footer(footer), strict=True))
            version = metadata[FOOTER_SCHEMA_VERSION.encode()].decode()
            recorded = json.loads(metadata[FOOTER_FINGERPRINT.encode()])
            num_tokens += int(metadata[FOOTER_NUM_TOKENS.encode()])
            rejects.update(json.loads(metadata[FOOTER_NUM_REJECTS.encode()]))
            left_out.update(left_out_from_json(json.loads(metadata.get(FOOTER_LEFT_OUT.encode(), b"[]"))))
            if FOOTER_SHARDS.encode() in metadata:
                shards += json.loads(metadata[FOOTER_SHARDS.encode()])
            else:
                shards.append(json.loads(metadata[FOOTER_SHARD.encode()]))
        except (KeyError, ValueError) as error:
            raise SourceError(f"{data.path(part.name)} is not a part that tatok wrote ({error!r})") from error
        if version != SCHEMA_VERSION:
            raise CommitError(
                f"{data.path(part.name)} has schema version {version}, and this tatok merges version {SCHEMA_VERSION}; "
                "use the tatok that made it, or tokenize again"
            )
        if recorded != fingerprint:
            raise CommitError(
                f"{data.path(part.name)} was made under other settings than {data.url}/{data.layout.run} says; "
                "move the part away, or tokenize its shard again"
            )
    return {
        FOOTER_SCHEMA_VERSION: SCHEMA_VERSION,
        FOOTER_FINGERPRINT: json.dumps(fingerprint, sort_keys=True),
        FOOTER_SHARDS: json.dumps(shards, sort_keys=True),
        FOOTER_NUM_TOKENS: str(num_tokens),
        FOOTER_NUM_REJECTS: json.dumps(dict(sorted(rejects.items())), sort_keys=True),
        **({FOOTER_LEFT_OUT: json.dumps(left_out_to_json(left_out))} if left_out else {}),
        **({FOOTER_CLIPS: json.dumps([num_clips, num_frames])} if num_clips else {}),
    }


def _row_groups(
    data: TokenizedData,
    part: Part,
    schema: pa.Schema,
    folder: Literal["data", "rejects"],
    columns: list[str],
) -> Iterator[pa.Table]:
    footer = data.footer(part.name, folder)
    found = footer.schema.to_arrow_schema().remove_metadata()
    if not found.equals(schema):
        names = sorted(set(found.names) ^ set(schema.names)) or [
            field.name for field in schema if found.field(field.name) != field
        ]
        raise CommitError(
            f"{data.path(part.name, folder)} has other columns than the rest ({', '.join(names) or 'their order'}); "
            "move the part away, or tokenize its shard again"
        )
    for number in range(footer.num_row_groups):
        yield data.read(part.name, columns=columns, row_groups=[number], folder=folder)
