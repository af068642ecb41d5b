from __future__ import annotations

import weakref
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import pyarrow as pa
import pytest
import torch

from tatok.dataset.rows import token_sequences
from tatok.pipeline.output.tables import TokenizedBatch, rejects_table, token_table
from tatok.pipeline.tokenization.tokenize import FittingEncode, TooLarge, tokenize_clips
from tatok.schemas.errors import TatokError
from tatok.schemas.identity import sample_id
from tatok.schemas.records import Clip, Reject, TokenSequence
from tests.support.fake_tokenizer import FakeTokenizer, encode_nothing
from tests.support.parts import FAKE, clip, reject


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


def test_two_batches_may_wait_as_far_as_the_bytes_go() -> None:
    calls: list[int] = []

    def encode(pixels: torch.Tensor) -> list[TokenSequence]:
        calls.append(len(pixels))
        return FAKE.encode_clips(pixels)

    def sizes(batch_size: int, sides: Sequence[int] = (32,)) -> list[int]:
        calls.clear()
        clips = [clip(index, side=sides[index % len(sides)]) for index in range(96)]
        batches = tokenize_clips(
            clips, encode, batch_size=batch_size, vocab_size=1024, patch_entropy=False, max_waiting_bytes=40 * 3072
        )
        assert sum(len(batch.rows) for batch in batches) == 96
        return calls

    assert sizes(16) == [16] * 6, "a quarter of the bytes are ten clips"
    assert sizes(16, sides=(32, 32, 16)) == [16] * 6
    assert sizes(64) == [41, 41, 14], "two batches would be more than all of the bytes"


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


LACKING = [
    torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB."),
    torch.AcceleratorError("CUDA error: out of memory"),
    RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
]


@dataclass
class Device:
    """Has room for so many pixels at a time."""

    room: int
    error: Exception = field(default_factory=lambda: LACKING[0])
    sizes: list[int] = field(default_factory=list)

    def encode(self, pixels: torch.Tensor) -> list[TokenSequence]:
        self.sizes.append(len(pixels))
        if pixels[:, :, 0].numel() > self.room:
            raise self.error
        return FAKE.encode_clips(pixels)


def codes(results: Sequence[TokenSequence | TooLarge]) -> list[list[int]]:
    return [result.codes.tolist() for result in results if isinstance(result, TokenSequence)]


@pytest.mark.parametrize("error", LACKING, ids=lambda error: type(error).__name__)
def test_a_batch_that_does_not_fit_is_halved_and_grows_back(error: Exception) -> None:
    device = Device(room=5 * 32 * 32, error=error)
    fitting = FittingEncode(device.encode)
    pixels = torch.randint(0, 256, (16, 1, 3, 32, 32), dtype=torch.uint8)
    whole = codes(FAKE.encode_clips(pixels))
    assert codes(fitting(pixels)) == whole, "none is lost, none is done twice"
    assert device.sizes == [16, 8, 4, 4, 4, 4]
    device.sizes.clear()
    for _ in range(20):
        assert codes(fitting(pixels)) == whole
    assert 8 in device.sizes, "it tries a larger part now and then"
    assert device.sizes.count(8) <= len(device.sizes) / 20
    device.room = 16 * 32 * 32
    for _ in range(40):
        fitting(pixels)
    assert device.sizes[-1] == 16


def test_the_cache_is_emptied_when_the_tensors_of_the_failed_call_are_gone(monkeypatch: pytest.MonkeyPatch) -> None:
    held: list[weakref.ref[torch.Tensor]] = []
    alive: list[bool] = []
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: alive.extend(ref() is not None for ref in held))

    def encode(pixels: torch.Tensor) -> list[TokenSequence]:
        activations = torch.zeros(1000)
        held.append(weakref.ref(activations))
        if len(pixels) > 1:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return FAKE.encode_clips(pixels)

    FittingEncode(encode)(torch.zeros((2, 1, 3, 32, 32), dtype=torch.uint8))
    assert alive == [False]


def test_a_clip_that_does_not_fit_alone_is_a_reject_and_the_others_are_rows() -> None:
    device = Device(room=2 * 32 * 32)
    items = [clip(0), clip(1, side=64), reject(2), clip(3), clip(4, side=64), clip(5)]
    batches = list(
        tokenize_clips(
            items, FittingEncode(device.encode), batch_size=2, vocab_size=FAKE.vocab_size, patch_entropy=False
        )
    )
    assert [key for batch in batches for key in batch.rows["key"].to_pylist()] == ["k0", "k3", "k5"]
    rejects = [each for batch in batches for each in batch.rejects]
    assert [(each.key, each.stage) for each in rejects] == [("k1", "tokenize"), ("k2", "decode"), ("k4", "tokenize")]
    assert {each.reason for each in rejects if each.stage == "tokenize"} == {"out_of_memory"}
    assert "1 frame(s) of 64x64 pixels" in rejects[0].detail
    assert "Tried to allocate" in rejects[0].detail
    assert "more memory" in rejects[0].detail


def test_what_has_fitted_before_is_no_reject() -> None:
    device = Device(room=64 * 64)
    fitting = FittingEncode(device.encode)
    fitting(torch.zeros((1, 1, 3, 64, 64), dtype=torch.uint8))
    device.room = 0
    with pytest.raises(TatokError, match="leave the device to this job alone"):
        fitting(torch.zeros((1, 1, 3, 64, 32), dtype=torch.uint8))


def test_errors_of_other_kinds_are_not_met_by_halving() -> None:
    device = Device(room=0, error=torch.AcceleratorError("CUDA error: an illegal memory access was encountered"))
    with pytest.raises(torch.AcceleratorError):
        FittingEncode(device.encode)(torch.zeros((4, 1, 3, 32, 32), dtype=torch.uint8))
    assert device.sizes == [4]
