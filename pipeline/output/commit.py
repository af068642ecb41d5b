"""Rows of one shard -> one atomically published part, which also holds its rejects; a copy of those beside it.

One file is the commit, so an attempt that dies, or two that race, cannot leave rows of one beside rejects of another.
The rejects' own file is for queries: the winner writes it, and whoever finds it missing makes it again from the part.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import pyarrow as pa
import pyarrow.parquet as pq

from tatok.pipeline.output.parquet import PartWriter
from tatok.pipeline.output.tables import rejects_from_text, rejects_table, rejects_to_text
from tatok.pipeline.storage.store import OutputStore
from tatok.schemas.errors import CommitError
from tatok.schemas.manifest import clips_of_footer, left_out_from_json, left_out_to_json
from tatok.schemas.records import LeftOut, Reject, Shard, ShardReport
from tatok.schemas.tokens import (
    FOOTER_CLIPS,
    FOOTER_FINGERPRINT,
    FOOTER_LEFT_OUT,
    FOOTER_NUM_REJECTS,
    FOOTER_NUM_TOKENS,
    FOOTER_REJECTS,
    FOOTER_SCHEMA_VERSION,
    FOOTER_SHARD,
    REJECTS_SCHEMA,
    SCHEMA_VERSION,
    token_schema,
)

if TYPE_CHECKING:
    from tatok.pipeline.output.tables import TokenizedBatch

__all__ = [
    "commit_shard",
    "committed_report",
    "committed_shards",
    "part_name",
    "restore_rejects",
    "shards_of_parts",
]

_REJECTS_ROW_GROUP_ROWS = 50_000


def part_name(shard_id: str) -> str:
    """File name of a shard's part under data/."""
    return f"part-{shard_id}.parquet"


def committed_shards(store: OutputStore) -> frozenset[str]:
    """Ids of the shards whose token part is published, by one listing of data/."""
    names = store.list_files("data")
    return frozenset(
        name.removeprefix("part-").removesuffix(".parquet")
        for name in names
        if name.startswith("part-") and name.endswith(".parquet")
    )


def shards_of_parts(store: OutputStore, shard_ids: Iterable[str]) -> list[Shard]:
    """The shards of these parts, as their footers say.

    Raises CommitError if a part is not one that tatok wrote.
    """

    def shard(shard_id: str) -> Shard:
        name = part_name(shard_id)
        metadata = _footer(store, name).metadata or {}
        try:
            return Shard(**json.loads(metadata[FOOTER_SHARD.encode()]))
        except (KeyError, TypeError, ValueError) as error:
            raise CommitError(
                f"{store.url}/data/{name} does not say its shard ({error!r}); delete it and run again"
            ) from error

    with ThreadPoolExecutor(max_workers=16) as pool:
        return list(pool.map(shard, shard_ids))


def commit_shard(
    store: OutputStore,
    shard: Shard,
    batches: Iterable[TokenizedBatch],
    *,
    fingerprint: Mapping[str, str],
    vocab_size: int,
    patch_entropy: bool,
    patch_worth: bool = False,
    has_entropy: bool = True,
    row_group_rows: int,
    on_batch: Callable[[TokenizedBatch], None] = lambda batch: None,
) -> ShardReport:
    """Write the shard's rows and publish them as data/part-<shard id>.parquet, then a copy of its rejects.

    The token part's existence is the commit. It never replaces one: where another attempt has published the shard
    already, this one's rows are discarded, and the report (without a checksum) says what they were.

    An exception out of `batches` leaves nothing published. Raises CommitError if the store refuses.
    """
    started = time.monotonic()
    num_tokens = num_clips = num_frames = 0
    rejects: list[Reject] = []
    left_out = Counter[LeftOut]()
    name = part_name(shard.shard_id)
    schema = token_schema(vocab_size, patch_entropy=patch_entropy, patch_worth=patch_worth, has_entropy=has_entropy)
    with store.scratch_file() as path:
        with PartWriter(path, schema, row_group_rows=row_group_rows) as writer:
            for batch in batches:
                writer.write(batch.rows)
                rejects += batch.rejects
                left_out.update(batch.left_out)
                num_tokens += batch.num_tokens
                num_clips, num_frames = map(sum, zip((num_clips, num_frames), batch.clip_lengths, strict=True))
                on_batch(batch)
            counts = dict(sorted(Counter(reject.reason for reject in rejects).items()))
            of_rejects = rejects_table(rejects)
            footer = {
                FOOTER_SCHEMA_VERSION: SCHEMA_VERSION,
                FOOTER_FINGERPRINT: json.dumps(dict(fingerprint), sort_keys=True),
                FOOTER_SHARD: json.dumps(dataclasses.asdict(shard), sort_keys=True),
                FOOTER_NUM_TOKENS: str(num_tokens),
                FOOTER_NUM_REJECTS: json.dumps(counts, sort_keys=True),
            }
            of_left_out = {FOOTER_LEFT_OUT: json.dumps(left_out_to_json(left_out))} if left_out else {}
            of_clips = {FOOTER_CLIPS: json.dumps([num_clips, num_frames])} if num_clips else {}
            writer.finish(footer | of_left_out | of_clips | {FOOTER_REJECTS: rejects_to_text(of_rejects)})
        num_bytes = path.stat().st_size
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        won = store.publish(path, f"data/{name}", create=True)
    if won:
        _publish_rejects(store, name, of_rejects, footer)
    return ShardReport(
        shard=shard,
        num_rows=writer.num_rows,
        num_tokens=num_tokens,
        rejects=counts,
        seconds=time.monotonic() - started,
        part_bytes=num_bytes,
        row_group_rows=tuple(writer.row_group_rows),
        part_sha256=digest if won else None,
        left_out=dict(left_out),
        num_clips=num_clips,
        num_frames=num_frames,
    )


def committed_report(store: OutputStore, shard: Shard) -> ShardReport | None:
    """The report of a shard that another attempt or another run has committed meanwhile; None where none has.

    Raises CommitError if its part is not one that tatok wrote.
    """
    name = part_name(shard.shard_id)
    num_bytes = store.size(f"data/{name}")
    if num_bytes is None:
        return None
    footer = _footer(store, name)
    num_clips, num_frames = clips_of_footer(footer)
    return ShardReport(
        shard=shard,
        num_rows=footer.num_rows,
        num_tokens=int(footer.metadata[FOOTER_NUM_TOKENS.encode()]),
        rejects=json.loads(footer.metadata[FOOTER_NUM_REJECTS.encode()]),
        seconds=0.0,
        part_bytes=num_bytes,
        row_group_rows=tuple(footer.row_group(i).num_rows for i in range(footer.num_row_groups)),
        part_sha256=None,
        left_out=left_out_from_json(json.loads(footer.metadata.get(FOOTER_LEFT_OUT.encode(), b"[]"))),
        num_clips=num_clips,
        num_frames=num_frames,
    )


def restore_rejects(store: OutputStore) -> int:
    """Write every rejects part that is missing, from its token part, and return how many those were.

    They are missing where an attempt died between the two. Parts written before footers held the rejects are left
    alone: `tatok verify` names them.
    """
    present = {f"{store.layout.rejects}/{name}" for name in store.list_files(store.layout.rejects)}
    parts = (name for name in store.list_files("data") if name.endswith(".parquet"))
    missing = sorted(name for name in parts if store.layout.rejects_of(name) not in present)

    def restore(name: str) -> bool:
        metadata = dict(_footer(store, name).metadata or {})
        text = metadata.pop(FOOTER_REJECTS.encode(), None)
        for of_rows in (FOOTER_LEFT_OUT, FOOTER_CLIPS):
            metadata.pop(of_rows.encode(), None)
        if text is None:
            return False
        footer = {key.decode(): value.decode() for key, value in metadata.items() if key.startswith(b"tatok.")}
        return _publish_rejects(store, name, rejects_from_text(text), footer)

    with ThreadPoolExecutor(max_workers=16) as pool:
        return sum(pool.map(restore, missing))


def _publish_rejects(store: OutputStore, name: str, table: pa.Table, footer: Mapping[str, str]) -> bool:
    with store.scratch_file() as path:
        with PartWriter(path, REJECTS_SCHEMA, row_group_rows=_REJECTS_ROW_GROUP_ROWS) as writer:
            writer.write(table)
            writer.finish(dict(sorted(footer.items())))  # equal bytes, whoever writes it
        return store.publish(path, store.layout.rejects_of(name), create=False)


def _footer(store: OutputStore, name: str) -> pq.FileMetaData:
    try:
        with store.open_input(f"data/{name}") as file:
            return pq.read_metadata(file)
    except (OSError, pa.ArrowException) as error:
        raise CommitError(
            f"{store.url}/data/{name} is not a part that tatok wrote ({error}); delete it and run again"
        ) from error
