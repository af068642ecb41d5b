"""What an image costs beside its model and its decoding, in microseconds of CPU time: made-up pixels and codes.

    python -m benchmarks.speed.python_cost --side 64 --side 256

In the tokenizer's process: `receive` unpickles chunks as they come from a decoder (without Ray's own part), `unpack`
makes token batches of what the device gives, `rows` puts clips into batches and makes the rows (copying pixels, too),
`parquet` writes the part, `commit` hashes and publishes it. In the decoder's: `sample` is what a sample takes beside
the decoding of its image, `send` packs the chunks and `copy` stands for their way into shared memory, which is Ray's.
Steps take turns, and the first turn warms up.
"""

from __future__ import annotations

import json
import pickle
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import cycle
from pathlib import Path
from typing import Annotated, Any
from unittest import mock

import numpy as np
import torch
import typer

from tatok.allocator import keep_freed_memory
from tatok.pipeline.decode import sample as decoding
from tatok.pipeline.images.decode import View
from tatok.pipeline.output.commit import commit_shard
from tatok.pipeline.output.parquet import PartWriter
from tatok.pipeline.output.tables import RowFormat
from tatok.pipeline.storage.store import OutputStore
from tatok.pipeline.tokenization.clip_chunk import ClipChunk
from tatok.pipeline.tokenization.tokenize import tokenize_clips
from tatok.schemas.job import Limits
from tatok.schemas.preprocessing import Preprocessing
from tatok.schemas.records import Clip, Crop, Sample, Shard
from tatok.schemas.token_batch import TokenBatch
from tatok.tokenizer.encoding import batch

__all__ = ["DECODER", "TOKENIZER", "Shares", "cost"]

TOKENIZER = ("receive", "unpack", "rows", "parquet", "commit")
DECODER = ("sample", "send", "copy")

_VOCAB, _GLOBALS, _GRID = 4096, 16, (16, 16)
_KEPT = 0.16  # of the patches, as the bundled checkpoint keeps of photos
_CHUNK_BYTES, _SMALLEST_CHUNK = 1 << 20, 16
_FORMAT = RowFormat(vocab_size=_VOCAB, patch_entropy=True)

Shares = Mapping[str, Sequence[float]]
"""Step -> microseconds an image, turn by turn."""


@dataclass(frozen=True, kw_only=True)
class _Made:
    """Samples, clips and what a device would say of a batch of them; all of it alike from run to run."""

    samples: Sequence[Sample]
    views: Sequence[View]  # of a chunk: pickle sends no memory twice
    packed_BR: np.ndarray
    chunk_images: int

    @property
    def chunks(self) -> Iterator[Sequence[Sample]]:
        return (
            self.samples[first : first + self.chunk_images] for first in range(0, len(self.samples), self.chunk_images)
        )

    def clips(self, samples: Sequence[Sample]) -> list[Clip]:
        views = cycle(self.views)

        def decoded(*_: object, **__: object) -> list[View]:
            return [next(views)]

        with mock.patch.object(decoding, "decode_image", decoded):
            clips = [clip for each in samples for clip in decoding.decode_sample(each, Preprocessing(), Limits())]
        return [clip for clip in clips if isinstance(clip, Clip)]


def _made(num_images: int, batch_size: int, side: int) -> _Made:
    random = np.random.default_rng(0)
    num_positions = _GRID[0] * _GRID[1]
    codes = random.integers(0, _VOCAB, (batch_size, num_positions))
    kept = random.random(codes.shape) < _KEPT
    packed_BR = np.concatenate(
        [
            random.integers(0, _VOCAB, (batch_size, _GLOBALS)),
            np.where(kept, codes, -1 - codes),
            random.random((batch_size, 4 * num_positions), np.float32).view(np.int32),
        ],
        axis=1,
    ).astype(np.int32)
    samples = [
        Sample(
            key=f"photo-{index:06d}",
            uri="/data/photos-0000.tar",
            index=index,
            media="image",
            extension="jpg",
            payload=b"not decoded" * 400,
            attachments={"txt": b"a caption of some words", "cls": b"7"},
        )
        for index in range(num_images)
    ]
    crop = Crop(left=0, top=0, width=side, height=side)
    chunk_images = max(_SMALLEST_CHUNK, _CHUNK_BYTES // (3 * side * side))
    views = [
        View(
            pixels=random.integers(0, 256, (1, 3, side, side), np.uint8),
            width=side,
            height=side,
            crop=crop,
            flipped=False,
        )
        for _ in range(chunk_images)
    ]
    return _Made(samples=samples, views=views, packed_BR=packed_BR, chunk_images=chunk_images)


def cost(num_images: int, batch_size: int, side: int, *, turns: int) -> Shares:
    """The cost of each step."""
    made = _made(num_images, batch_size, side)
    found: dict[str, list[float]] = {step: [] for step in (*TOKENIZER, *DECODER)}
    for turn in range(-1, turns):
        with tempfile.TemporaryDirectory() as folder:
            taken = _turn(made, batch_size, Path(folder))
        for step, seconds in taken.items():
            if turn >= 0:
                found[step].append(1e6 * seconds / num_images)
    return found


def _turn(made: _Made, batch_size: int, folder: Path) -> Mapping[str, float]:
    seconds: dict[str, float] = {}

    def timed(step: str, work: Callable[[], Any]) -> Any:
        started = time.process_time()
        result = work()
        seconds[step] = time.process_time() - started
        return result

    clips = timed("sample", lambda: [made.clips(samples) for samples in made.chunks])
    sent = timed("send", lambda: [_sent(some) for some in clips])
    copied = timed("copy", lambda: [(text, [bytes(buffer.raw()) for buffer in buffers]) for text, buffers in sent])
    chunks = timed("receive", lambda: [pickle.loads(text, buffers=buffers) for text, buffers in copied])
    timed("unpack", lambda: [_tokens(made, batch_size) for _ in range(0, len(made.samples), batch_size)])
    ready = _tokens(made, batch_size)

    def encode(pixels_BTCHW: torch.Tensor) -> TokenBatch:
        return ready[: len(pixels_BTCHW)]

    batches = timed(
        "rows",
        lambda: list(tokenize_clips(chunks, encode, batch_size=batch_size, vocab_size=_VOCAB, patch_entropy=True)),
    )

    def parquet() -> None:
        with PartWriter(folder / "part.parquet", _FORMAT.schema, row_group_rows=1000) as writer:
            for each in batches:
                writer.write(each.rows)
            writer.finish({})

    shard = Shard(uri="/data/photos-0000.tar", kind="webdataset", start=0, stop=None, num_bytes=1, shard_id=f"{0:032x}")
    store = OutputStore.open(str(folder / "output"))
    timed("parquet", parquet)
    timed(
        "commit",
        lambda: commit_shard(
            store, shard, batches, fingerprint={}, vocab_size=_VOCAB, patch_entropy=True, row_group_rows=1000
        ),
    )
    seconds["commit"] = max(0.0, seconds["commit"] - seconds["parquet"])
    return seconds


def _sent(clips: Sequence[Clip]) -> tuple[bytes, list[pickle.PickleBuffer]]:
    """A chunk as Ray takes it apart: what is pickled, and the memory beside it."""
    buffers: list[pickle.PickleBuffer] = []
    return pickle.dumps(ClipChunk.of(clips), 5, buffer_callback=buffers.append), buffers


def _tokens(made: _Made, num_images: int) -> TokenBatch:
    return batch(made.packed_BR[:num_images], num_global=_GLOBALS, grid=_GRID, vocab_size=_VOCAB)


def main(
    side: Annotated[list[int] | None, typer.Option(help="Of the images, in pixels; may be given again.")] = None,
    images: int = 2048,
    batch_size: int = 256,
    turns: int = 9,
    json_path: Annotated[Path | None, typer.Option("--json")] = None,
) -> None:
    """Print the median, the least and the most of each step, as JSON."""
    torch.set_num_threads(1)
    keep_freed_memory()
    told: dict[str, dict[str, list[float]]] = {}
    for each in side or [64]:
        found = cost(images, batch_size, each, turns=turns)
        sums = {
            name: [sum(found[step][turn] for step in steps) for turn in range(turns)]
            for name, steps in (("tokenizer", TOKENIZER), ("decoder", DECODER))
        }
        told[f"{each} pixels"] = {
            name: [round(value, 1) for value in (statistics.median(of), min(of), max(of))]
            for name, of in {**found, **sums}.items()
        }
    text = json.dumps(told)
    if json_path is not None:
        json_path.write_text(f"{text}\n", encoding="utf-8")
    print(text)


if __name__ == "__main__":
    typer.run(main)
