"""What a job's tokenizer process does with decoded photos, without Ray: batches, the device, rows, committed parts.

Several shards at a time, as in a job, each in a thread; with batches given to the device ahead and without. The share
is that of the time in which the device had a batch.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

from torch import Tensor

from benchmarks.gpu.measure import Section, synchronize
from benchmarks.gpu.pictures import crops
from benchmarks.gpu.precisions import Mode, modes, tokenizer_in
from tatok.pipeline.output.commit import commit_shard
from tatok.pipeline.storage.store import OutputStore
from tatok.pipeline.tokenization.ahead import EncodeAhead
from tatok.pipeline.tokenization.clip_chunk import ClipChunk
from tatok.pipeline.tokenization.tokenize import tokenize_clips
from tatok.schemas.records import Clip, Crop, Shard
from tatok.schemas.token_batch import TokenBatch
from tatok.tokenizer.tokenizer import Tokenizer

__all__ = ["rate_of", "run"]

_CHUNK = 16  # images, as decoders send them


class _OneAtATime:
    """The tokenizer without `encode_clips_async`."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer

    def encode_clips(self, pixels: Tensor) -> TokenBatch:
        return self._tokenizer.encode_clips(pixels)


def _chunks(pixels_B3HW: Tensor, num_images: int) -> Iterator[ClipChunk]:
    side = pixels_B3HW.shape[-1]
    crop = Crop(left=0, top=0, width=side, height=side)
    for first in range(0, num_images, _CHUNK):
        yield ClipChunk.of(
            [
                Clip(
                    key=f"photo-{number:06d}",
                    uri="photos.tar",
                    index=number,
                    media="image",
                    pixels=pixels_B3HW[number % len(pixels_B3HW)][None].numpy(),
                    width=side,
                    height=side,
                    crop=crop,
                    sha256=f"{number:064x}",
                )
                for number in range(first, min(first + _CHUNK, num_images))
            ]
        )


def rate_of(tokenizer: Tokenizer, pixels_B3HW: Tensor, *, shards: int, images: int, batch: int, is_ahead: bool) -> Any:
    """Images a second into committed parts of so many images each, the shards side by side."""
    encode = EncodeAhead(tokenizer if is_ahead else _OneAtATime(tokenizer))  # type: ignore[arg-type]  # all it asks for
    chunks = list(_chunks(pixels_B3HW, images))  # made beforehand: in a job decoders make them

    def shard(number: int, store: OutputStore) -> int:
        # All shards have the same chunks; in a job each has its own.
        batches = tokenize_clips(chunks, encode, batch_size=batch, vocab_size=tokenizer.vocab_size, patch_entropy=True)
        uri = f"photos-{number}.tar"
        whole = Shard(uri=uri, kind="webdataset", start=0, stop=None, num_bytes=1, shard_id=f"{number:032x}")
        report = commit_shard(
            store,
            whole,
            batches,
            fingerprint={},
            vocab_size=tokenizer.vocab_size,
            patch_entropy=True,
            row_group_rows=1000,
        )
        return report.num_rows

    with tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor(shards) as threads:
        store = OutputStore.open(folder)
        tokenizer.encode(pixels_B3HW[:batch])
        synchronize(tokenizer.device)
        started = time.perf_counter()
        rows = sum(threads.map(shard, range(shards), [store] * shards))
        seconds = time.perf_counter() - started
        parts = {path.name: path.stat().st_size for path in Path(folder, "data").iterdir()}
    assert rows == shards * images, rows
    return {
        "images_per_s": rows / seconds,
        "device_share": encode.encode_s / seconds,
        "parts": len(parts),
        "part_bytes": sum(parts.values()),
    }


def run(section: Section) -> None:
    """In float32 and, on a card, in bfloat16, with graphs where there are any."""
    batch, side, images = (4, 64, 24) if section.tiny else (256, 256, 4096)
    pixels = crops(section.photos, min(2 * batch, 256), side)
    named = {mode.name: mode for mode in modes(section.device)}
    wanted: list[Mode] = [named[name] for name in ("float32.graphs", "bfloat16.graphs") if name in named]
    for mode in wanted or [named["float32"]]:
        with tokenizer_in(mode, section.device) as tokenizer:
            for shards in (1, 2) if section.tiny else (1, 2, 4, 8):
                told = []
                for is_ahead in (False, True):
                    name = f"{mode.name}.shards_{shards}.{'ahead' if is_ahead else 'one_at_a_time'}"
                    work = partial(
                        rate_of, tokenizer, pixels, shards=shards, images=images, batch=batch, is_ahead=is_ahead
                    )
                    found = section.attempt(name, work, needs_s=1 if section.tiny else 4)
                    told += [f"{found['images_per_s']:.0f} ({found['device_share']:.2f})"] if found else []
                section.headline(
                    f"{mode.name}, {shards} shards: images/s into parts (share of the device's time), one batch at a "
                    f"time and ahead: {', '.join(told)}"
                )
