"""Chunks of columns are a matter of speed: batches, rows and their order are those of one clip at a time."""

from __future__ import annotations

import pickle
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tatok.pipeline.output.tables import TokenizedBatch, token_table
from tatok.pipeline.tokenization.clip_chunk import ClipChunk, ClipRun
from tatok.pipeline.tokenization.tokenize import TooLarge, tokenize_clips
from tatok.schemas.errors import TatokError
from tatok.schemas.records import Clip, Reject, TokenSequence
from tatok.schemas.token_batch import TokenBatch
from tests.support.parts import FAKE, clip, reject

BATCH = 3
WINDOW = 8 * BATCH


def encoded_together(items: Sequence[Clip | Reject], max_bytes: int) -> list[list[str]]:
    """The keys of each batch, by the rules as `tokenize_clips` states them, one item after the other."""
    batches: list[list[str]] = []
    waiting: dict[tuple[int, ...], list[tuple[int, Clip]]] = {}

    def encode(shape: tuple[int, ...]) -> None:
        batches.append([each.key for _, each in waiting.pop(shape)])

    def oldest() -> tuple[int, ...]:
        return min(waiting, key=lambda shape: waiting[shape][0][0])

    def is_heavy() -> bool:
        sizes = [each.pixels.nbytes for of_shape in waiting.values() for _, each in of_shape]
        return sum(sizes) > max(max_bytes // 4, min(2 * BATCH * max(sizes), max_bytes))

    for number, item in enumerate(items):
        if isinstance(item, Clip):
            waiting.setdefault(item.pixels.shape, []).append((number, item))
            if len(waiting[item.pixels.shape]) == BATCH:
                encode(item.pixels.shape)
        while waiting and (number + 1 - waiting[oldest()][0][0] >= WINDOW or is_heavy()):
            encode(oldest())
    while waiting:
        encode(oldest())
    return batches


@st.composite
def sources(draw: st.DrawFn) -> list[Clip | Reject]:
    """Images and clips of a few shapes, with rejects, alike for a while or not."""
    kinds = draw(st.lists(st.tuples(st.sampled_from([0, 16, 32, 48]), st.integers(1, 12)), max_size=12))
    sides = [side for side, count in kinds for _ in range(count)]
    frames = draw(st.sampled_from([1, 1, 2]))
    items: list[Clip | Reject] = []
    for index, side in enumerate(sides):
        pixels = np.full((frames if side == 16 else 1, 3, side, side), index, np.uint8)
        items.append(replace(clip(index), pixels=pixels) if side else reject(index))
    return items


@st.composite
def chunked(draw: st.DrawFn, items: Sequence[Clip | Reject]) -> list[ClipChunk]:
    """Cut anywhere; some as they come from another process."""
    cuts = sorted(draw(st.lists(st.integers(0, len(items)), max_size=6)))
    chunks = [ClipChunk.of(items[a:b]) for a, b in zip([0, *cuts], [*cuts, len(items)], strict=True)]
    return [pickle.loads(pickle.dumps(chunk, 5)) if draw(st.booleans()) else chunk for chunk in chunks]


@settings(deadline=None, max_examples=60)
@given(st.data(), sources(), st.sampled_from([1, 20_000, 1 << 20]), st.booleans())
def test_whatever_the_chunks_batches_and_rows_are_the_same(
    data: st.DataObject, items: list[Clip | Reject], max_bytes: int, has_columns: bool
) -> None:
    seen: list[list[int]] = []

    def encode(pixels: torch.Tensor) -> Sequence[TokenSequence]:
        seen.append(pixels[:, 0, 0, 0, 0].tolist())
        sequences = FAKE.encode_clips(pixels)
        return TokenBatch.of(sequences) if has_columns else sequences

    batches = list(
        tokenize_clips(
            data.draw(chunked(items)),
            encode,
            batch_size=BATCH,
            vocab_size=FAKE.vocab_size,
            patch_entropy=True,
            patch_worth=True,
            max_waiting_bytes=max_bytes,
        )
    )
    assert [[f"k{number}" for number in batch] for batch in seen] == encoded_together(items, max_bytes)
    clips = [item for item in items if isinstance(item, Clip)]
    expected = token_table(
        clips,
        [sequence for each in clips for sequence in FAKE.encode_clips(torch.from_numpy(each.pixels)[None])],
        vocab_size=FAKE.vocab_size,
        patch_entropy=True,
        patch_worth=True,
    )
    rows = pa.concat_tables([expected.slice(0, 0), *(batch.rows for batch in batches)])
    assert rows.combine_chunks().equals(expected.combine_chunks())
    assert [each for batch in batches for each in batch.rejects] == [each for each in items if isinstance(each, Reject)]
    assert sum(batch.num_tokens for batch in batches) == sum(expected["num_tokens"].to_pylist())
    assert in_order(batches) == [item.index for item in items]


def in_order(batches: Sequence[TokenizedBatch]) -> list[int]:
    """Indices of rows and rejects: those of a batch follow those of the one before."""
    of_batches = [
        sorted([*batch.rows["source_index"].to_pylist(), *(reject.index for reject in batch.rejects)])
        for batch in batches
    ]
    return [index for of_batch in of_batches for index in of_batch]


@settings(deadline=None, max_examples=30)
@given(sources(), st.integers(0, 1 << 20))
def test_clips_that_are_too_large_are_rejects_in_their_places(items: list[Clip | Reject], seed: int) -> None:
    chosen = np.random.default_rng(seed).random(len(items) + 1) < 0.3

    def encode(pixels: torch.Tensor) -> list[TokenSequence | TooLarge]:
        sequences = FAKE.encode_clips(pixels)
        numbers = pixels[:, 0, 0, 0, 0].tolist()
        return [TooLarge(detail=f"of {n}") if chosen[n] else s for n, s in zip(numbers, sequences, strict=True)]

    batches = list(
        tokenize_clips([ClipChunk.of(items)], encode, batch_size=BATCH, vocab_size=1024, patch_entropy=False)
    )
    fits = [item for item in items if isinstance(item, Clip) and not chosen[item.index]]
    rows = [row for batch in batches for row in batch.rows.to_pylist()]
    assert [(row["key"], row["num_frames"]) for row in rows] == [(each.key, len(each.pixels)) for each in fits]
    for row, each in zip(rows, fits, strict=True):
        assert row["tokens"] == FAKE.encode_clips(torch.from_numpy(each.pixels)[None])[0].codes.tolist()
    rejects = [each for batch in batches for each in batch.rejects]
    assert [each.index for each in rejects] == [
        item.index for item in items if isinstance(item, Reject) or chosen[item.index]
    ]
    for each in rejects:
        if each.stage == "tokenize":
            assert (each.key, each.uri, each.detail) == (f"k{each.index}", clip(0).uri, f"of {each.index}")
    assert in_order(batches) == [item.index for item in items]


def told(chunk: ClipChunk) -> list[object]:
    return [
        (run.shape, np.stack(run.pixels).tolist()) if isinstance(run, ClipRun) else run for run in chunk.runs()
    ] + chunk.facts.to_pylist()


@given(sources())
def test_a_chunk_arrives_as_it_was_sent(items: list[Clip | Reject]) -> None:
    chunk = ClipChunk.of(items)
    buffers: list[pickle.PickleBuffer] = []
    text = pickle.dumps(chunk, 5, buffer_callback=buffers.append)
    arrived = pickle.loads(text, buffers=buffers)
    assert told(arrived) == told(chunk)
    assert len(arrived) == len(chunk) == len(items)
    assert arrived.nbytes == chunk.nbytes == sum(each.pixels.nbytes for each in items if isinstance(each, Clip))
    # Rows wait for long: what holds them must not be the memory that holds the pixels.
    assert len(buffers) == len({each.pixels.shape for each in items if isinstance(each, Clip)})


@pytest.mark.parametrize("number", [0, 4, 6])
def test_the_clip_whose_tokens_do_not_fit_is_named(number: int) -> None:
    def encode(pixels: torch.Tensor) -> Sequence[TokenSequence]:
        sequences = FAKE.encode_clips(pixels)
        wrong = [
            replace(each, codes=each.codes + FAKE.vocab_size) if pixels[row, 0, 0, 0, 0] == number else each
            for row, each in enumerate(sequences)
        ]
        return TokenBatch.of(wrong)

    sides = [16, 32, 0, 16, 32, 16, 16]
    items = [
        replace(clip(i), pixels=np.full((1, 3, side, side), i, np.uint8)) if side else reject(i)
        for i, side in enumerate(sides)
    ]
    with pytest.raises(TatokError, match=rf"^k{number}: codes .* exceed the codebook of {FAKE.vocab_size}"):
        list(tokenize_clips([ClipChunk.of(items)], encode, batch_size=2, vocab_size=1024, patch_entropy=False))


def test_a_batch_that_somebody_keeps_is_not_overwritten() -> None:
    kept: list[torch.Tensor] = []

    def encode(pixels: torch.Tensor) -> Sequence[TokenSequence]:
        kept.append(pixels[:, :, 1:])
        return FAKE.encode_clips(pixels)

    items = [replace(clip(i), pixels=np.full((1, 3, 16, 16), i, np.uint8)) for i in range(20)]
    batches = tokenize_clips([ClipChunk.of(items)], encode, batch_size=4, vocab_size=1024, patch_entropy=False)
    assert sum(len(batch.rows) for batch in batches) == 20
    assert [part[:, 0, 0, 0, 0].tolist() for part in kept] == [list(range(i, i + 4)) for i in range(0, 20, 4)]


def test_batches_that_nobody_keeps_share_memory() -> None:
    seen: list[int] = []

    def encode(pixels: torch.Tensor) -> Sequence[TokenSequence]:
        seen.append(pixels.data_ptr())
        return FAKE.encode_clips(pixels)

    items = [clip(i) for i in range(20)]
    list(tokenize_clips([ClipChunk.of(items)], encode, batch_size=4, vocab_size=1024, patch_entropy=False))
    list(tokenize_clips([ClipChunk.of(items)], encode, batch_size=4, vocab_size=1024, patch_entropy=False))
    assert len(seen) == 10
    assert len(set(seen)) == 1, "in the next shard, too"


def test_large_clips_are_sent_as_they_lie_in_memory() -> None:
    sides = [128, 16, 128, 16]
    items = [replace(clip(i), pixels=np.full((1, 3, side, side), i, np.uint8)) for i, side in enumerate(sides)]
    # What a mirrored view, or a part of one, is: pixels that do not follow each other.
    items.append(
        replace(clip(4), pixels=np.arange(1 * 3 * 128 * 128, dtype=np.uint8).reshape(1, 3, 128, 128)[..., ::-1])
    )
    chunk = ClipChunk.of(items)
    buffers: list[pickle.PickleBuffer] = []
    text = pickle.dumps(chunk, 5, buffer_callback=buffers.append)
    assert sorted(buffer.raw().nbytes for buffer in buffers) == [2 * 3 * 16 * 16, *[3 * 128 * 128] * 3]
    arrived = pickle.loads(text, buffers=[bytes(buffer.raw()) for buffer in buffers])
    assert told(arrived) == told(chunk) == told(pickle.loads(pickle.dumps(chunk, 5)))
