"""Rows of one shard -> one atomically published part, with its rejects beside it."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING

from pipeline.columns import rejects_table
from pipeline.parquet import PartWriter
from pipeline.store import OutputStore
from schemas.records import Reject, Shard, ShardReport
from schemas.tokens import (
    FOOTER_FINGERPRINT,
    FOOTER_NUM_REJECTS,
    FOOTER_NUM_TOKENS,
    FOOTER_SCHEMA_VERSION,
    FOOTER_SHARD,
    REJECTS_SCHEMA,
    SCHEMA_VERSION,
    token_schema,
)

if TYPE_CHECKING:
    from pipeline.tokenize import TokenizedBatch  # imports torch, which planning a run does not need

__all__ = ["commit_shard", "committed_shards", "part_name"]


def part_name(shard_id: str) -> str:
    """File name of a shard's part, under data/ and under rejects/ alike."""
    return f"part-{shard_id}.parquet"


def committed_shards(store: OutputStore) -> frozenset[str]:
    """Ids of the shards whose token part is published, by one listing of data/."""
    names = store.list_files("data")
    return frozenset(
        name.removeprefix("part-").removesuffix(".parquet")
        for name in names
        if name.startswith("part-") and name.endswith(".parquet")
    )


def commit_shard(
    store: OutputStore,
    shard: Shard,
    batches: Iterable[TokenizedBatch],
    *,
    fingerprint: Mapping[str, str],
    vocab_size: int,
    patch_entropy: bool,
    row_group_rows: int,
    on_batch: Callable[[TokenizedBatch], None] = lambda batch: None,
) -> ShardReport:
    """Write the shard's rows and publish them as data/part-<shard id>.parquet, rejects first.

    The token part's existence is the commit. It never replaces one: where another attempt has published the shard
    already, this one's rows are discarded, and the report (without a checksum) tells what they were. A rejects part
    of an attempt that died before its commit is replaced; every committed shard has one, empty or not.

    An exception out of `batches` leaves nothing published. Raises CommitError where the store refuses.
    """
    started = time.monotonic()
    num_tokens = 0
    rejects: list[Reject] = []
    name = part_name(shard.shard_id)
    schema = token_schema(vocab_size, patch_entropy=patch_entropy)
    with store.scratch_file() as rows_path, store.scratch_file() as rejects_path:
        with PartWriter(rows_path, schema, row_group_rows=row_group_rows) as writer:
            for batch in batches:
                writer.write(batch.rows)
                rejects += batch.rejects
                num_tokens += batch.num_tokens
                on_batch(batch)
            counts = dict(sorted(Counter(reject.reason for reject in rejects).items()))
            footer = {
                FOOTER_SCHEMA_VERSION: SCHEMA_VERSION,
                FOOTER_FINGERPRINT: json.dumps(dict(fingerprint), sort_keys=True),
                FOOTER_SHARD: json.dumps(dataclasses.asdict(shard), sort_keys=True),
                FOOTER_NUM_TOKENS: str(num_tokens),
                FOOTER_NUM_REJECTS: json.dumps(counts, sort_keys=True),
            }
            writer.finish(footer)
        with PartWriter(rejects_path, REJECTS_SCHEMA, row_group_rows=row_group_rows) as writer_of_rejects:
            writer_of_rejects.write(rejects_table(rejects))
            writer_of_rejects.finish(footer)
        if not store.exists(f"data/{name}"):
            store.publish(rejects_path, f"rejects/{name}", create=False)
        num_bytes = rows_path.stat().st_size
        with rows_path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        won = store.publish(rows_path, f"data/{name}", create=True)
        return ShardReport(
            shard=shard,
            num_rows=writer.num_rows,
            num_tokens=num_tokens,
            rejects=counts,
            seconds=time.monotonic() - started,
            part_bytes=num_bytes,
            row_group_rows=tuple(writer.row_group_rows),
            part_sha256=digest if won else None,
        )
