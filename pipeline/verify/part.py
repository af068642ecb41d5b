"""One published part, looked at row by row: footer, schema, checksum, codes, positions, sample ids, rejects."""

from __future__ import annotations

import hashlib
import json
import sys
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from tatok.pipeline.output.tables import rejects_from_text
from tatok.pipeline.readers.file_groups import unpack_group
from tatok.pipeline.storage.store import OutputStore
from tatok.schemas.identity import sample_id
from tatok.schemas.manifest import Part
from tatok.schemas.records import Shard, count_text, is_or_are
from tatok.schemas.tokens import (
    ENTROPY_COLUMNS,
    FOOTER_FINGERPRINT,
    FOOTER_NUM_REJECTS,
    FOOTER_NUM_TOKENS,
    FOOTER_REJECTS,
    FOOTER_SCHEMA_VERSION,
    FOOTER_SHARD,
    FOOTER_SHARDS,
    REJECTS_SCHEMA,
    SCHEMA_VERSION,
    recorded_schema,
)

__all__ = ["CHECKS", "OF_SOURCE", "CheckName", "Finding", "VerifiedPart", "verify_part"]

CheckName = Literal[
    "run", "manifest", "footer", "schema", "checksum", "codes", "positions", "rows", "rejects", "duplicates", "shards",
    "keys", "count",
]  # fmt: skip

CHECKS: Mapping[CheckName, str] = {
    "run": "the run document can be read, and _SUCCESS is there",
    "manifest": "the manifest lists the parts under data/, no more and no fewer, with their counts",
    "footer": "every footer is whole, of this run's settings, and counts its own rows, tokens and rejects",
    "schema": "every part has the declared columns",
    "checksum": "every part has the bytes that the manifest recorded",
    "codes": "codes are inside the codebook; counts of tokens, globals and patches agree",
    "positions": "positions ascend inside the grid; clips place their globals",
    "rows": "sample ids name their source; clips count from 0; entropies are finite, or none; crops are inside",
    "rejects": "every part has its rejects part; no clip is in both",
    "duplicates": "no clip is in two rows, no sample in two parts",
    "shards": "every shard of the source has a part, and no part is of another source",
    "keys": "every sample of the source is a row or a reject, and nothing else is",
    "count": "of every source file there are as many as counted without the readers",
}
"""What each check says of a dataset that passes it, in the order of reports."""

OF_SOURCE: frozenset[CheckName] = frozenset(["shards", "keys", "count"])
"""The checks that need the source."""

# What Arrow and this module's own reading of footers raise on bytes that are not what they should be.
_DAMAGE = (OSError, pa.ArrowException, ValueError, KeyError, TypeError, AttributeError)

_REST_OF_ROW_GROUP = "corrupt_parquet"  # the reason of a reject that stands for more than one row

_OF_PATCHES: Mapping[str, str] = {"patch_entropy_bits": "an entropy", "patch_worth_bits": "a worth"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """Something wrong: the check that found it, the file, and what and where in it."""

    check: CheckName
    file: str
    message: str


@dataclass(slots=True, kw_only=True)
class VerifiedPart:
    """What a part and its rejects part hold; `places` maps a source file to the (index, clip_index) found there.

    A place is in `places` as often as it was found, rows and rejects together; `keys` has the key of each, in the
    same order. `rests` are the indices of rejects that stand for the rest of a table's damaged row group. `rejects` is
    where the rejects part lies.
    """

    name: str
    rejects: str
    num_rows: int = 0
    num_rejects: int = 0
    shards: list[Shard] = field(default_factory=list)
    places: dict[str, list[tuple[int, int]]] = field(default_factory=dict)
    keys: dict[str, list[str]] = field(default_factory=dict)
    rests: dict[str, list[int]] = field(default_factory=dict)
    findings: list[Finding] = field(default_factory=list)

    def report(self, check: CheckName, message: str, *, file: str | None = None) -> None:
        """Note a finding in this part, or in its rejects part."""
        self.findings.append(Finding(check=check, file=file or f"data/{self.name}", message=message))


def verify_part(
    store: OutputStore, name: str, *, fingerprint: Mapping[str, str], recorded: Part | None, has_rejects: bool
) -> VerifiedPart:
    """Read a part and its rejects part, a row group at a time, and note everything that is not as it should be.

    `fingerprint` is the run document's, `recorded` the manifest's entry (None: it has none, which is noted elsewhere).
    Whatever is wrong with the files becomes a finding; only a store that cannot be read at all raises (OSError).
    """
    part = VerifiedPart(name=name, rejects=store.layout.rejects_of(name))
    schema = recorded_schema(fingerprint)
    footer_rejects: Mapping[str, int] = {}
    committed_rejects: pa.Table | None = None
    with store.local_copy(f"data/{name}") as path:  # what fails from here on is the file's fault, not the store's
        if recorded is not None:
            _check_checksum(store, part, path, recorded.checksum)
        try:
            with pq.ParquetFile(path) as file:
                footer_tokens, footer_rejects = _check_footer(part, file, fingerprint, recorded)
                text = file.metadata.metadata.get(FOOTER_REJECTS.encode())
                committed_rejects = None if text is None else rejects_from_text(text)
                if _check_schema(part, file, schema):
                    num_tokens = sum(_check_rows(part, table, fingerprint) for table in _row_groups(file))
                    if num_tokens != footer_tokens:
                        part.report("footer", f"the footer counts {footer_tokens} tokens, the rows hold {num_tokens}")
        except _DAMAGE as error:
            part.report("footer", f"cannot be read: {_damage(error)}; delete the part and tokenize again")
    if not has_rejects:
        part.report("rejects", "is missing; run the same job again, which makes it from the part", file=part.rejects)
        return part
    with store.local_copy(part.rejects) as path:
        try:
            with pq.ParquetFile(path) as file:
                if _check_schema(part, file, REJECTS_SCHEMA, part.rejects):
                    _check_rejects(part, file, footer_rejects, committed_rejects)
        except _DAMAGE as error:
            message = f"cannot be read: {_damage(error)}; delete both parts and tokenize again"
            part.report("rejects", message, file=part.rejects)
    _check_places(part)
    return part


def _row_groups(file: pq.ParquetFile) -> Iterator[pa.Table]:
    for number in range(file.num_row_groups):
        yield file.read_row_group(number, use_threads=False).combine_chunks()


def _damage(error: Exception) -> str:
    """What is wrong with a file; an error of the operating system is raised instead."""
    if isinstance(error, OSError) and error.errno is not None:  # Arrow's own, for damaged bytes, have none
        raise error
    return f"{error}".partition("\n")[0]


def _check_checksum(store: OutputStore, part: VerifiedPart, path: Path, checksum: str) -> None:
    kind, _, expected = checksum.partition(":")
    found: str | None
    if kind == "etag":
        found = store.etag(f"data/{part.name}")
    elif kind == "sha256":
        with path.open("rb") as file:
            found = hashlib.file_digest(file, "sha256").hexdigest()
    else:
        part.report("checksum", f"the manifest has no checksum that can be compared ({checksum!r})")
        return
    if found != expected:
        part.report("checksum", f"its {kind} is {found}, the manifest recorded {expected}; restore it or delete it")


def _check_footer(
    part: VerifiedPart, file: pq.ParquetFile, fingerprint: Mapping[str, str], recorded: Part | None
) -> tuple[int, Mapping[str, int]]:
    """The counts of tokens and rejects that the footer says."""
    footer = file.metadata
    metadata = footer.metadata or {}
    version = metadata[FOOTER_SCHEMA_VERSION.encode()].decode()
    if version != SCHEMA_VERSION:
        part.report(
            "footer",
            f"schema version {version}, this tatok checks {SCHEMA_VERSION}: tokenize again, or use an older tatok",
        )
    of_part = json.loads(metadata[FOOTER_FINGERPRINT.encode()])
    if of_part != fingerprint:
        differing = sorted(k for k in {*of_part, *fingerprint} if of_part.get(k) != fingerprint.get(k))
        part.report("footer", f"made under other settings than the run document says: {', '.join(differing)}")
    if FOOTER_SHARDS.encode() in metadata:
        part.shards = [Shard(**shard) for shard in json.loads(metadata[FOOTER_SHARDS.encode()])]
    else:
        part.shards = [Shard(**json.loads(metadata[FOOTER_SHARD.encode()]))]
        if part.name != f"part-{part.shards[0].shard_id}.parquet":
            part.report("footer", f"is named otherwise than its shard, {part.shards[0].shard_id}")
    num_tokens = int(metadata[FOOTER_NUM_TOKENS.encode()])
    rejects = {str(k): int(v) for k, v in json.loads(metadata[FOOTER_NUM_REJECTS.encode()]).items()}
    groups = tuple(footer.row_group(number).num_rows for number in range(footer.num_row_groups))
    if recorded is not None:
        told = (recorded.num_rows, recorded.num_tokens, dict(recorded.rejects), recorded.row_group_rows)
        found = (footer.num_rows, num_tokens, rejects, groups)
        if told != found:
            part.report("manifest", f"rows, tokens, rejects, row groups: the manifest has {told}, the part {found}")
    return num_tokens, rejects


def _check_schema(part: VerifiedPart, file: pq.ParquetFile, schema: pa.Schema, name: str | None = None) -> bool:
    found = file.schema_arrow.remove_metadata()
    if found.equals(schema):
        return True
    names = sorted(set(found.names) ^ set(schema.names)) or [
        name for name in schema.names if found.field(name) != schema.field(name)
    ]
    part.report("schema", f"differs in {', '.join(names) or 'the order of its columns'}", file=name)
    return False


def _check_rows(part: VerifiedPart, table: pa.Table, fingerprint: Mapping[str, str]) -> int:
    """Note what is wrong in some rows; the number of their tokens."""
    vocab_size, codes_each = int(fingerprint["vocab_size"]), int(fingerprint.get("codes_per_position", "1"))
    has_entropy = fingerprint.get("entropy") != "none"
    first = part.num_rows
    part.num_rows += len(table)

    def note(check: CheckName, wrong: np.ndarray, what: str) -> None:
        if wrong.any():
            row = int(np.argmax(wrong))
            key = table["key"][row].as_py()
            part.report(check, f"{what} in {count_text(int(wrong.sum()), 'row')}, first in row {first + row} ({key!r})")

    number = {name: table[name].to_numpy() for name in table.schema.names if _is_number(table.schema.field(name).type)}
    if not has_entropy:
        given = [name for name in (*ENTROPY_COLUMNS, *_OF_PATCHES) if name in table.schema.names]
        told = {name: pc.is_valid(table[name]).to_numpy() for name in given}
        note("rows", np.any(list(told.values()), axis=0), "entropies, which the dataset's tokenizer does not have,")
    tokens, positions = table["tokens"].combine_chunks(), table["positions"].combine_chunks()
    lengths, kept = _lengths(tokens), _lengths(positions)
    codes = tokens.flatten().to_numpy(zero_copy_only=False)
    note("codes", _any_in_row(codes >= vocab_size, lengths), f"a code of {vocab_size} or more")
    note("codes", lengths != number["num_tokens"], "num_tokens is not the number of tokens")
    note("codes", kept != number["num_patch_tokens"], "num_patch_tokens is not the number of positions")
    num_global = number["num_global_tokens"]
    note("codes", lengths != num_global + kept, "tokens are not the globals and a code for each position")

    flat = positions.flatten().to_numpy(zero_copy_only=False).astype(np.int64)
    num_positions = number["grid_frames"].astype(np.int64) * number["grid_height"] * number["grid_width"]
    note("positions", _any_in_row(flat >= np.repeat(num_positions, kept), kept), "a position outside the grid")
    # Of a position's codes the first is at the next position, and the others stay there.
    is_first = (np.arange(len(flat)) - np.repeat(np.cumsum(kept) - kept, kept)) % codes_each == 0
    step = np.diff(flat, prepend=-1)
    starts = np.cumsum(kept) - kept
    step[starts[kept > 0]] = 1  # the first position of a row follows another row's last
    wrong = _any_in_row(np.where(is_first, step <= 0, step != 0), kept) | (kept % codes_each != 0)
    several = "" if codes_each == 1 else f", each with {codes_each} codes"
    note("positions", wrong, f"positions that do not ascend{several}")
    note("positions", _misplaced_globals(table, number["grid_frames"], num_global), "globals without their places")
    for name, what in _OF_PATCHES.items():
        if name in table.schema.names and has_entropy:
            of_patches = _lengths(table[name].combine_chunks())
            note("rows", of_patches != num_positions, f"not {what} for every position")

    for name in ENTROPY_COLUMNS if has_entropy else ():
        note("rows", ~(np.isfinite(number[name]) & (number[name] >= 0)), f"{name} is not a finite number of bits")
    inside = (number["crop_left"] >= 0) & (number["crop_top"] >= 0)
    inside &= number["crop_left"] + number["crop_width"] <= number["width"]
    inside &= number["crop_top"] + number["crop_height"] <= number["height"]
    note("rows", ~inside, "a crop outside the image")
    note("rows", _foreign_ids(part, table), "a sample_id that is not of its source_uri, source_index, key, clip_index")
    return int(lengths.sum())


def _misplaced_globals(table: pa.Table, num_frames: np.ndarray, num_global: np.ndarray) -> np.ndarray:
    """Which rows do not say the frame and cell of each global, ascending: clips must, images must not."""
    frames, cells = (table[name].combine_chunks() for name in ("global_frames", "global_cells"))
    wrong = np.zeros(len(table), dtype=bool)
    for places in (frames, cells):
        wrong |= pc.is_valid(places).to_numpy(zero_copy_only=False) != (num_frames > 1)
        wrong |= (num_frames > 1) & (_lengths(places) != num_global)
    if wrong.any():
        return wrong  # the lists do not belong together
    lengths = _lengths(frames)
    frame, cell = (places.flatten().to_numpy(zero_copy_only=False).astype(np.int64) for places in (frames, cells))
    outside = frame >= np.repeat(num_frames, lengths)
    falls = np.zeros(len(frame), dtype=bool)
    falls[1:] = np.diff((frame << 16) + cell) <= 0
    falls[(np.cumsum(lengths) - lengths)[lengths > 0]] = False
    return _any_in_row(outside | falls, lengths)


def _check_rejects(
    part: VerifiedPart, file: pq.ParquetFile, footer_rejects: Mapping[str, int], committed: pa.Table | None
) -> None:
    """`committed` are the rejects that the token part itself holds; None where it holds none (a merged part)."""
    reasons = Counter[str]()
    for table in _row_groups(file):
        if committed is not None and not table.equals(committed.slice(part.num_rejects, len(table)).combine_chunks()):
            part.report(
                "rejects", "differs from the rejects in its token part; delete it and run again", file=part.rejects
            )
        part.num_rejects += len(table)
        reasons.update(table["reason"].to_pylist())
        for reason, uri, index in zip(
            *(table[name].to_pylist() for name in ("reason", "source_uri", "source_index")), strict=True
        ):
            if reason == _REST_OF_ROW_GROUP:
                part.rests.setdefault(uri, []).append(index)
        foreign = _foreign_ids(part, table)
        if foreign.any():
            part.report("rejects", f"{int(foreign.sum())} sample_ids are not of their source", file=part.rejects)
    if reasons != Counter(footer_rejects):
        part.report(
            "rejects",
            f"holds {dict(reasons)}, the token part's footer counts {dict(footer_rejects)}",
            file=part.rejects,
        )


def _foreign_ids(part: VerifiedPart, table: pa.Table) -> np.ndarray:
    """Which rows have an id that their source does not give; takes note of every row's place."""
    foreign = np.zeros(len(table), dtype=bool)
    columns = (table[name].to_pylist() for name in ("sample_id", "source_uri", "source_index", "key", "clip_index"))
    for row, (identity, uri, index, key, clip) in enumerate(zip(*columns, strict=True)):
        foreign[row] = identity != sample_id(uri, index, key, clip)
        part.places.setdefault(uri, []).append((index, clip))
        part.keys.setdefault(uri, []).append(key)
    return foreign


def _check_places(part: VerifiedPart) -> None:
    inside = _places_of(part.shards)
    for uri, places in part.places.items():
        counts = Counter(places)
        twice = [index for (index, _), count in counts.items() if count > 1]
        if twice:
            part.report(
                "duplicates",
                f"{count_text(len(twice), 'sample')} of {uri} {is_or_are(len(twice))} here twice, first index "
                f"{min(twice)}",
            )
        clips = Counter(index for index, _ in counts)
        gaps = [index for index, clip in counts if clip >= clips[index]]
        if gaps:
            part.report(
                "rows",
                f"{count_text(len(gaps), 'sample')} of {uri} {'lacks' if len(gaps) == 1 else 'lack'} clips "
                f"before the last, first index {min(gaps)}",
            )
        if not part.shards:
            continue  # the footer could not be read, which is a finding already
        ranges = inside.get(uri, [])
        strays = [index for index in clips if not any(index in indices for indices in ranges)]
        if strays:
            part.report(
                "rows",
                f"{count_text(len(strays), 'sample')} of {uri} {is_or_are(len(strays))} outside the part's "
                f"shards, first {strays[0]}",
            )


def _places_of(shards: Sequence[Shard]) -> dict[str, list[range]]:
    """Source file -> the indices that shards hold of it."""
    places: dict[str, list[range]] = {}
    for shard in shards:
        if shard.kind == "files":
            for file in unpack_group(shard):
                places.setdefault(file.uri, []).append(range(file.index, file.index + 1))
        else:
            stop = sys.maxsize if shard.stop is None else shard.stop
            places.setdefault(shard.uri, []).append(range(shard.start, stop))
    return places


def _is_number(kind: Any) -> bool:
    return bool(pa.types.is_integer(kind) or pa.types.is_floating(kind))


def _lengths(lists: pa.ListArray) -> np.ndarray:
    return pc.fill_null(pc.list_value_length(lists), 0).to_numpy(zero_copy_only=False).astype(np.int64)


def _any_in_row(wrong: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """Whether any element of each row's stretch is true; rows may be empty."""
    ends = np.cumsum(lengths)
    total = np.concatenate([[0], np.cumsum(wrong)])
    return np.asarray(total[ends] - total[ends - lengths] > 0)
