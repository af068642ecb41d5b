from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pytest
import torch
from fake_tokenizer import FakeTokenizer, encode_nothing

from pipeline.columns import rejects_table, sample_id, token_table
from pipeline.tokenize import FittingEncode, TokenizedBatch, tokenize_clips
from schemas.errors import TatokError
from schemas.records import Clip, Crop, Reject, TokenSequence
from tatok.rows import token_sequences

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


def reject(index: int) -> Reject:
    return Reject(key=f"k{index}", uri="u", index=index, stage="decode", reason="corrupt", detail="d")


def tokenize(items: list[Clip | Reject], batch_size: int = 4) -> list[TokenizedBatch]:
    batches = tokenize_clips(
        items, FAKE.encode_clips, batch_size=batch_size, vocab_size=FAKE.vocab_size, patch_entropy=True
    )
    return list(batches)


def test_rows_are_what_the_tokenizer_said() -> None:
    clips = [clip(i) for i in range(5)]
    table = pa.concat_tables(batch.rows for batch in tokenize(list(clips)))
    expected = FAKE.encode(torch.from_numpy(np.concatenate([clip.pixels for clip in clips])))
    rows = table.to_pylist()
    assert [row["key"] for row in rows] == ["k0", "k1", "k2", "k3", "k4"]
    for row, sequence in zip(rows, expected, strict=True):
        assert row["tokens"] == sequence.codes.tolist()
        assert row["positions"] == sequence.positions.tolist()
        assert row["num_tokens"] == len(row["tokens"]) == row["num_global_tokens"] + row["num_patch_tokens"]
        assert (row["grid_frames"], row["grid_height"], row["grid_width"]) == (1, 2, 2)
        assert row["entropy_bits"] == pytest.approx(row["kept_entropy_bits"] + row["residual_bits"], rel=1e-5)
        assert row["patch_entropy_bits"] == sequence.entropy.patch_entropy_bits_N.tolist()
    assert [row["caption"] for row in rows] == [None, "caption 1", None, "caption 3", None]
    assert table.schema.field("tokens").type.value_type == pa.uint16()


def test_batches_are_full_and_of_one_shape() -> None:
    sizes: list[tuple[int, ...]] = []

    def encode(pixels: torch.Tensor) -> list[TokenSequence]:
        sizes.append(tuple(pixels.shape))
        return FAKE.encode_clips(pixels)

    items = [clip(0), reject(1), clip(2), clip(3), clip(4, side=64), clip(5, side=64), reject(6)]
    batches = list(tokenize_clips(items, encode, batch_size=2, vocab_size=1024, patch_entropy=False))
    assert sizes == [(2, 1, 3, 32, 32), (2, 1, 3, 64, 64), (1, 1, 3, 32, 32)]
    assert [key for batch in batches for key in batch.rows["key"].to_pylist()] == ["k0", "k2", "k3", "k4", "k5"]
    assert [item.key for batch in batches for item in batch.rejects] == ["k1", "k6"]
    assert sum(batch.num_tokens for batch in batches) == sum(
        sum(batch.rows["num_tokens"].to_pylist()) for batch in batches
    )


def test_shapes_that_alternate_give_full_batches_and_keep_their_order() -> None:
    sizes: list[tuple[int, ...]] = []

    def encode(pixels: torch.Tensor) -> list[TokenSequence]:
        sizes.append(tuple(pixels.shape))
        return FAKE.encode_clips(pixels)

    sides = [32, 48, 32, 64, 48] * 40 + [80] + [32, 48] * 40
    items = [reject(i) if i % 7 == 3 else clip(i, side=side) for i, side in enumerate(sides)]
    batches = list(tokenize_clips(items, encode, batch_size=4, vocab_size=1024, patch_entropy=False))
    order = [key for batch in batches for key in batch.rows["key"].to_pylist()]
    assert order == [item.key for item in items if isinstance(item, Clip)]
    assert [item for batch in batches for item in batch.rejects] == [item for item in items if isinstance(item, Reject)]
    assert sum(size == (4, *size[1:]) for size in sizes) >= 0.9 * len(sizes)
    assert max(len(batch.rows) + len(batch.rejects) for batch in batches) <= 8 * 4
    # The only clip of its shape waits for a while, not for ever, and rows are what each clip gives alone.
    alone = {item.key: FAKE.encode(torch.from_numpy(item.pixels))[0] for item in items if isinstance(item, Clip)}
    for batch in batches:
        for row in batch.rows.to_pylist():
            assert row["tokens"] == alone[row["key"]].codes.tolist()
            assert (row["num_frames"], row["grid_height"]) == (1, alone[row["key"]].grid.height)


def test_waiting_is_bounded_by_bytes_and_by_time() -> None:
    seen = 0

    def items() -> Iterator[Clip]:
        nonlocal seen
        for index in range(200):
            seen = index
            yield clip(index, side=16 * (1 + index % 50))

    calls: list[int] = []

    def encode(pixels: torch.Tensor) -> list[TokenSequence]:
        calls.append(seen)
        return FAKE.encode_clips(pixels)

    options = {"batch_size": 4, "vocab_size": 1024, "patch_entropy": False}
    first = next(iter(tokenize_clips(items(), encode, **options)))  # type: ignore[arg-type]
    assert first.rows["key"].to_pylist()[0] == "k0"
    assert seen <= 8 * 4 + 4, "the first clip has not waited longer"
    calls.clear()
    list(tokenize_clips(items(), encode, max_waiting_bytes=1, **options))  # type: ignore[arg-type]
    assert calls == list(range(200)), "nothing waits where there is no room for it"


def test_rejects_alone_come_out_in_bounded_batches() -> None:
    batches = tokenize([reject(i) for i in range(100)], batch_size=4)
    assert sum(len(batch.rejects) for batch in batches) == 100
    assert max(len(batch.rejects) for batch in batches) <= 16
    assert all(len(batch.rows) == 0 for batch in batches)


def test_nothing_in_nothing_out() -> None:
    assert tokenize([]) == []


def test_large_codebooks_get_wide_codes() -> None:
    wide = FakeTokenizer(vocab_size=1 << 20)
    clips = [clip(0)]
    sequences = wide.encode(torch.from_numpy(clips[0].pixels))
    table = token_table(clips, sequences, vocab_size=1 << 20, patch_entropy=False)
    assert table.schema.field("tokens").type.value_type == pa.uint32()
    assert table["tokens"].to_pylist() == [sequences[0].codes.tolist()]


def test_codes_that_do_not_fit_are_refused() -> None:
    clips = [clip(0)]
    sequences = FAKE.encode(torch.from_numpy(clips[0].pixels))
    with pytest.raises(TatokError, match="k0"):
        token_table(clips, sequences, vocab_size=8, patch_entropy=False)
    with pytest.raises(TatokError, match="0 sequences for 1"):
        list(tokenize_clips(clips, encode_nothing, batch_size=1, vocab_size=8, patch_entropy=False))


@pytest.mark.parametrize("row", [0, 1, 3])
def test_the_row_that_does_not_fit_is_named(row: int) -> None:
    random = np.random.default_rng(0)
    clips = [replace(clip(i), pixels=random.integers(0, 256, (1, 3, 64, 64), np.uint8)) for i in range(4)]
    sequences = FAKE.encode(torch.from_numpy(np.concatenate([each.pixels for each in clips])))
    sequences[2] = replace(sequences[2], codes=sequences[2].codes[:4], positions=sequences[2].positions[:0])
    token_table(clips, sequences, vocab_size=FAKE.vocab_size, patch_entropy=False)
    for name, place, value, message in (
        ("codes", -1, FAKE.vocab_size, f"k{row}: codes .* .. {FAKE.vocab_size} exceed the codebook"),
        ("codes", 0, -1, f"k{row}: codes -1 .. "),
        ("positions", -1, sequences[row].grid.num_positions, f"k{row}: a position is outside the grid of"),
        ("positions", 0, -1, f"k{row}: a position is outside the grid of"),
    ):
        values = getattr(sequences[row], name).astype(np.int64)
        values[place] = value
        wrong = [*sequences[:row], replace(sequences[row], **{name: values}), *sequences[row + 1 :]]
        with pytest.raises(TatokError, match=message):
            token_table(clips, wrong, vocab_size=FAKE.vocab_size, patch_entropy=False)


def test_sample_id_is_stable_and_unique() -> None:
    assert sample_id("u", 1, "k") == "d6853ec6dd49a32f7a171258a0d83cef"
    assert len({sample_id(uri, index, key) for uri in "ab" for index in (1, 11) for key in ("k", "1k")}) == 8
    assert sample_id("u", 1, "k", 0) == sample_id("u", 1, "k")
    assert len({sample_id("u", 1, "k", clip_index) for clip_index in range(20)}) == 20


def test_clips_tell_their_place_and_their_times() -> None:
    first = replace(clip(3), fps=12.5, clip_start_s=0.04, frame_pts_s=(0.04, 0.12))
    clips = [first, replace(clip(3), clip_index=1, flipped=True)]
    table = pa.concat_tables(batch.rows for batch in tokenize([*clips, replace(reject(3), clip_index=2)]))
    rows = table.select(["clip_index", "flipped", "clip_start_s", "fps", "frame_pts_s"]).to_pylist()
    assert [tuple(row.values()) for row in rows] == [
        (0, False, 0.04, 12.5, [0.04, 0.12]),
        (1, True, None, None, None),
    ]
    of_rejects = rejects_table([replace(reject(3), clip_index=2)]).to_pylist()
    ids = [*table["sample_id"].to_pylist(), *(row["sample_id"] for row in of_rejects)]
    assert ids == [sample_id("u", 3, "k3", clip_index) for clip_index in range(3)]
    assert of_rejects[0]["clip_index"] == 2


def test_one_row_is_one_clip() -> None:
    long = [replace(clip(i), pixels=np.concatenate([clip(i).pixels, clip(i + 1).pixels])) for i in (0, 5)]
    table = pa.concat_tables(batch.rows for batch in tokenize([clip(3), *long]))
    expected = FAKE.encode_clips(torch.from_numpy(np.stack([clip.pixels for clip in long])))
    image, *rows = table.to_pylist()
    assert (image["num_frames"], image["global_frames"], image["global_cells"]) == (1, None, None)
    for row, sequence in zip(rows, expected, strict=True):
        assert (row["num_frames"], row["grid_frames"], row["num_global_tokens"]) == (2, 2, 2 * FAKE.num_global)
        assert row["tokens"] == sequence.codes.tolist()
        assert row["positions"] == sequence.positions.tolist()
        assert row["global_frames"] == [0, 0, 0, 0, 1, 1, 1, 1]
        assert row["global_cells"] == [0, 1, 2, 3] * 2
    for again, sequence in zip(token_sequences(table)[1:], expected, strict=True):
        assert again.global_frames.tolist() == sequence.global_frames.tolist()
        assert again.global_cells.tolist() == sequence.global_cells.tolist()
        assert again.grid == sequence.grid


def test_a_clip_must_place_its_globals() -> None:
    sequence = FAKE.encode_clips(torch.from_numpy(clip(0).pixels)[None].expand(1, 2, -1, -1, -1))[0]
    with pytest.raises(TatokError, match=r"k0: \[8, None\] frames and cells for 8 globals in 2 frames"):
        token_table([clip(0)], [replace(sequence, global_cells=None)], vocab_size=1024, patch_entropy=False)


def test_a_batch_that_does_not_fit_is_halved_and_grows_back() -> None:
    sizes: list[int] = []
    room = 5

    def encode(pixels: torch.Tensor) -> list[TokenSequence]:
        sizes.append(len(pixels))
        if len(pixels) > room:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return FakeTokenizer().encode(pixels)

    fitting = FittingEncode(encode)
    pixels = torch.randint(0, 256, (16, 3, 32, 32), dtype=torch.uint8)
    whole = [each.codes.tolist() for each in FakeTokenizer().encode(pixels)]
    assert [each.codes.tolist() for each in fitting(pixels)] == whole, "none is lost, none is done twice"
    assert sizes == [16, 8, 4, 4, 4, 4]
    sizes.clear()
    for _ in range(20):
        assert [each.codes.tolist() for each in fitting(pixels)] == whole
    assert 8 in sizes, "it tries a larger part now and then"
    assert sizes.count(8) <= len(sizes) / 20
    room = 16
    for _ in range(40):
        fitting(pixels)
    assert sizes[-1] == 16
    room = 0
    with pytest.raises(torch.OutOfMemoryError):
        fitting(pixels)
