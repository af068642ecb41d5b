"""Shards, clips and rejects out of nothing, and parts committed of them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np

from tatok.pipeline.cluster.leases import Attempt
from tatok.pipeline.output.commit import commit_shard
from tatok.pipeline.output.tables import TokenizedBatch
from tatok.pipeline.storage.store import OutputStore
from tatok.pipeline.tokenization.tokenize import tokenize_clips
from tatok.schemas.manifest import LAYOUT, LAYOUT_0_2, LOADING
from tatok.schemas.records import Clip, Crop, Reject, Shard, ShardReport
from tests.support.fake_tokenizer import FakeTokenizer

FAKE = FakeTokenizer()


def clip(index: int, side: int = 32) -> Clip:
    pixels = np.random.default_rng(index).integers(0, 256, (1, 3, side, side), dtype=np.uint8)
    return Clip(
        key=f"k{index}",
        uri="u",
        index=index,
        media="image",
        pixels=pixels,
        width=side,
        height=side,
        crop=Crop(left=0, top=0, width=side, height=side),
        sha256=f"{index:064}",
        caption=f"caption {index}" if index % 2 else None,
    )


def video_clip(index: int, num_frames: int = 3) -> Clip:
    pixels = np.concatenate([clip(100 * index + number).pixels for number in range(num_frames)])
    times = tuple(number / 8 for number in range(num_frames))
    return replace(clip(index), media="video", pixels=pixels, clip_start_s=0.0, fps=8.0, frame_pts_s=times)


def reject(index: int) -> Reject:
    return Reject(key=f"k{index}", uri="u", index=index, stage="decode", reason="corrupt", detail="d")


def shard(name: str = "s0") -> Shard:
    return Shard(uri=f"/{name}.tar", kind="webdataset", start=0, stop=None, num_bytes=1, shard_id=name)


def batches(first: int = 0, count: int = 7, num_videos: int = 0) -> Iterator[TokenizedBatch]:
    items: list[Clip | Reject] = [clip(i) for i in range(first, first + count)]
    items += [video_clip(first + count + number, 2 + number) for number in range(num_videos)]
    items.insert(2, reject(99))
    return tokenize_clips(items, FAKE.encode_clips, batch_size=3, vocab_size=1024, patch_entropy=True)


def commit(store: OutputStore, name: str = "s0", *, row_group_rows: int = 4, **options: int) -> ShardReport:
    return commit_shard(
        store,
        shard(name),
        batches(**options),
        fingerprint={"weights": "abc"},
        vocab_size=1024,
        patch_entropy=True,
        row_group_rows=row_group_rows,
    )


def give_old_names(folder: Path) -> None:
    """Make a dataset one of tatok 0.2, by its files' names."""
    for path in (*folder.glob("_rejects/*.pq"), *folder.glob("_dedup/*.pq")):
        path.rename(path.with_suffix(".parquet"))
    for name in ("run", "manifest", "runs", "rejects", "dedup"):
        if (path := folder / getattr(LAYOUT, name)).exists():
            path.rename(folder / getattr(LAYOUT_0_2, name))
    (folder / LOADING).unlink(missing_ok=True)


def report(attempt: Attempt, seconds: float = 0.0) -> ShardReport:
    return ShardReport(
        shard=attempt.shard,
        num_rows=1,
        num_tokens=1,
        rejects={"corrupt": 2},
        seconds=seconds,
        part_bytes=1,
        row_group_rows=(1,),
        part_sha256="x",
    )
