"""Tokenized datasets of any size without a tokenizer: real columns, real parts and manifest, made-up tokens.

Lengths follow a clipped log-normal around 60 tokens, as real photos do; codes are skewed; entropies rise with length.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import typer

from tatok.pipeline.output.manifest import mark_success, update_manifest
from tatok.pipeline.output.parquet import PartWriter
from tatok.pipeline.output.tables import rejects_table
from tatok.pipeline.storage.store import OutputStore
from tatok.schemas.manifest import RunDocument
from tatok.schemas.records import Reject
from tatok.schemas.tokens import (
    FOOTER_FINGERPRINT,
    FOOTER_NUM_REJECTS,
    FOOTER_NUM_TOKENS,
    FOOTER_SCHEMA_VERSION,
    FOOTER_SHARD,
    SCHEMA_VERSION,
    token_schema,
)

VOCAB_SIZE, NUM_GLOBAL, SIDE = 4096, 16, 16
REASONS = ("corrupt", "truncated", "too_large")


def synthetic_rows(
    rng: np.random.Generator, first: int, count: int, *, patch_entropy: bool = False, patch_worth: bool = False
) -> pa.Table:
    """`count` rows of one source; row i has key "row-<first + i>" and label (first + i) % 10."""
    num_positions = SIDE * SIDE
    num_patches = np.clip(rng.lognormal(3.5, 0.8, count), 0, num_positions).astype(np.int32)
    ranks = rng.random((count, num_positions), dtype=np.float32).argsort(1)
    kept = ranks < num_patches[:, None]
    positions = np.nonzero(kept)[1].astype(np.uint16)
    num_tokens = num_patches + NUM_GLOBAL
    codes = (rng.random(int(num_tokens.sum()), dtype=np.float32) ** 2 * VOCAB_SIZE).astype(np.uint16)
    bits = rng.gamma(9.0, 1.2, (count, num_positions)).astype(np.float32)
    bits[kept] += 4
    entropy, kept_entropy = bits.sum(1), (bits * kept).sum(1)
    schema = token_schema(VOCAB_SIZE, patch_entropy=patch_entropy, patch_worth=patch_worth)
    numbers = np.arange(first, first + count)

    def lists(name: str, values: np.ndarray, lengths: np.ndarray) -> pa.Array:
        offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32)
        kind = schema.field(name).type
        return pa.ListArray.from_arrays(pa.array(offsets), pa.array(values, type=kind.value_type), type=kind)

    columns = {
        "sample_id": [f"{number:032x}" for number in numbers],
        "key": [f"row-{number:09}" for number in numbers],
        "source_uri": [f"s3://photos/shard-{first:09}.tar"] * count,
        "source_index": np.arange(count),
        "clip_index": np.zeros(count, np.int32),
        "media": ["image"] * count,
        "sha256": [f"{number:064x}" for number in numbers],
        "width": rng.integers(200, 2000, count).astype(np.int32),
        "height": rng.integers(200, 2000, count).astype(np.int32),
        "flipped": np.zeros(count, bool),
        "num_frames": np.ones(count, np.int32),
        "tokens": lists("tokens", codes, num_tokens),
        "positions": lists("positions", positions, num_patches),
        "num_tokens": num_tokens,
        "num_global_tokens": np.full(count, NUM_GLOBAL, np.int32),
        "num_patch_tokens": num_patches,
        "grid_frames": np.ones(count, np.int32),
        "grid_height": np.full(count, SIDE, np.int32),
        "grid_width": np.full(count, SIDE, np.int32),
        "entropy_bits": entropy,
        "kept_entropy_bits": kept_entropy,
        "residual_bits": entropy - kept_entropy,
        "surprisal_bits": entropy * rng.normal(1, 0.05, count).astype(np.float32),
        "entropy_mean_bits": entropy / num_positions,
        "entropy_max_bits": bits.max(1),
        "caption": [f"photo number {number}" for number in numbers],
        "label": [str(number % 10) for number in numbers],
    }
    if patch_entropy:
        columns["patch_entropy_bits"] = lists(
            "patch_entropy_bits", bits.astype(np.float16).ravel(), np.full(count, num_positions)
        )
    if patch_worth:
        columns["patch_worth_bits"] = lists(
            "patch_worth_bits", (bits * kept).astype(np.float16).ravel(), np.full(count, num_positions)
        )
    for name in ("crop_left", "crop_top", "crop_width", "crop_height"):
        columns[name] = np.zeros(count, np.int32)
    arrays = [
        value if isinstance(value, pa.Array) else pa.array(value, type=field.type)
        for field in schema
        for value in [columns.get(field.name, pa.nulls(count, field.type))]
    ]
    return pa.Table.from_arrays(arrays, schema=schema)


def write_synthetic(
    url: str,
    num_rows: int,
    *,
    rows_per_part: int = 10_000,
    row_group_rows: int = 50_000,
    patch_entropy: bool = False,
    patch_worth: bool = False,
    rejects_per_part: int = 0,
    seed: int = 0,
) -> None:
    """Write a complete dataset of `num_rows` rows, deterministic in its arguments."""
    store = OutputStore.open(url)
    fingerprint = {
        "schema": SCHEMA_VERSION,
        "vocab_size": str(VOCAB_SIZE),
        "preprocessing.image_size": "256",
        "tokenizer.weights_sha256": "synthetic",
    }
    for number, first in enumerate(range(0, num_rows, rows_per_part)):
        count = min(rows_per_part, num_rows - first)
        rows = synthetic_rows(
            np.random.default_rng([seed, number]), first, count, patch_entropy=patch_entropy, patch_worth=patch_worth
        )
        uri = f"s3://photos/shard-{first:09}.tar"
        rejects = [
            Reject(
                key=f"bad-{number}-{i}",
                uri=uri,
                index=rows_per_part + i,
                stage="decode",
                reason=REASONS[i % len(REASONS)],
                detail="made up",
            )
            for i in range(rejects_per_part)
        ]
        counts = {reason: sum(reject.reason == reason for reject in rejects) for reason in REASONS}
        footer = {
            FOOTER_SCHEMA_VERSION: SCHEMA_VERSION,
            FOOTER_FINGERPRINT: _json(fingerprint),
            FOOTER_SHARD: _json({"uri": uri, "shard_id": f"{first:020}"}),
            FOOTER_NUM_TOKENS: str(int(np.sum(rows.column("num_tokens").to_numpy()))),
            FOOTER_NUM_REJECTS: _json({reason: count for reason, count in counts.items() if count}),
        }
        for folder, table in (("rejects", rejects_table(rejects)), ("data", rows)):
            with store.scratch_file() as path:
                with PartWriter(path, table.schema, row_group_rows=row_group_rows) as writer:
                    writer.write(table)
                    writer.finish(footer)
                part = f"part-{first:020}.parquet"
                name = f"data/{part}" if folder == "data" else store.layout.rejects_of(part)
                store.publish(path, name, create=False)
    config = {"source": ["s3://photos/shard-*.tar"], "output": url, "preprocessing": {"image_size": 256}}
    run = RunDocument(schema_version=SCHEMA_VERSION, fingerprint=fingerprint, config=config)
    store.write_text(store.layout.run, run.to_json())
    update_manifest(store, [])
    mark_success(store)
    store.sweep_scratch()


def _json(document: object) -> str:
    return json.dumps(document, sort_keys=True)


def main(output: Path, rows: int = 1_000_000, patch_entropy: bool = False) -> None:
    """Write a synthetic tokenized dataset."""
    write_synthetic(str(output), rows, patch_entropy=patch_entropy, rejects_per_part=20)


if __name__ == "__main__":
    typer.run(main)
