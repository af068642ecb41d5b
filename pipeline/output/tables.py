"""What a part's rows are made of: the facts of clips and the tokens of batches, each as columns, and rejects."""

from __future__ import annotations

import base64
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache

import numpy as np
import pyarrow as pa

from tatok.schemas.errors import TatokError
from tatok.schemas.identity import sample_id
from tatok.schemas.records import Clip, LeftOut, Reject, TokenSequence, count_text
from tatok.schemas.token_batch import TokenBatch
from tatok.schemas.tokens import ENTROPY_COLUMNS, MAX_POSITIONS, REJECTS_SCHEMA, token_schema

__all__ = [
    "FACTS_SCHEMA",
    "RowFormat",
    "TokenizedBatch",
    "clip_facts",
    "rejects_from_text",
    "rejects_table",
    "rejects_to_text",
    "token_table",
]

_FACTS = (
    "sample_id", "key", "source_uri", "source_index", "clip_index", "media", "sha256", "width", "height", "crop_left",
    "crop_top", "crop_width", "crop_height", "flipped", "clip_start_s", "fps", "num_frames", "frame_pts_s", "caption",
    "label", "metadata",
)  # fmt: skip
FACTS_SCHEMA = pa.schema([token_schema(1, patch_entropy=False).field(name) for name in _FACTS])
"""The columns of a row that are known before its clip is tokenized."""
_FACTS_STRUCT = pa.struct(list(FACTS_SCHEMA))


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenizedBatch:
    """Rows that follow each other in the source, the rejects before and among them, and what belongs to neither."""

    rows: pa.Table
    rejects: Sequence[Reject]
    num_tokens: int
    left_out: Mapping[LeftOut, int] = field(default_factory=dict)

    @property
    def clip_lengths(self) -> tuple[int, int]:
        """How many of the rows are clips of videos, and of how many frames all of them together."""
        media, lengths = self.rows["media"].to_pylist(), self.rows["num_frames"].to_pylist()
        of_clips = [length for kind, length in zip(media, lengths, strict=True) if kind == "video"]
        return len(of_clips), sum(of_clips)


def clip_facts(clips: Sequence[Clip]) -> pa.RecordBatch:
    """One row a clip, in order: FACTS_SCHEMA."""
    rows = [
        (
            sample_id(clip.uri, clip.index, clip.key, clip.clip_index),
            clip.key,
            clip.uri,
            clip.index,
            clip.clip_index,
            clip.media,
            clip.sha256,
            clip.width,
            clip.height,
            clip.crop.left,
            clip.crop.top,
            clip.crop.width,
            clip.crop.height,
            clip.flipped,
            clip.clip_start_s,
            clip.fps,
            len(clip.pixels),
            clip.frame_pts_s,
            clip.caption,
            clip.label,
            clip.metadata,
        )
        for clip in clips
    ]
    return pa.RecordBatch.from_struct_array(pa.array(rows, _FACTS_STRUCT))  # quicker than an array a column


@cache  # asked for with every batch
def _without_facts(schema: pa.Schema) -> pa.Schema:
    return pa.schema([field for field in schema if field.name not in _FACTS])


@dataclass(frozen=True, slots=True, kw_only=True)
class RowFormat:
    """The columns of a dataset's rows, as `tatok.schemas.tokens.token_schema` says them."""

    vocab_size: int
    patch_entropy: bool
    patch_worth: bool = False
    has_entropy: bool = True

    @property
    def schema(self) -> pa.Schema:
        """Of the rows."""
        return token_schema(
            self.vocab_size,
            patch_entropy=self.patch_entropy,
            patch_worth=self.patch_worth,
            has_entropy=self.has_entropy,
        )

    @property
    def tokens_schema(self) -> pa.Schema:
        """Of the columns that are not facts."""
        return _without_facts(self.schema)

    def tokens(self, sequences: Sequence[TokenSequence], key_of: Callable[[int], str]) -> pa.Table:
        """The columns that are not facts, one row a sequence; `key_of` names the clip of a row.

        Raises TatokError if a code or a position does not fit the schema: it would wrap around silently; and where
        `has_entropy` or `patch_worth` ask for what a sequence does not have.
        """
        schema = self.tokens_schema
        tables = [
            pa.Table.from_arrays(self._columns(batch, schema, _keys_from(first, key_of)), schema=schema)
            for first, batch in _batches(sequences, key_of)
        ]
        return pa.concat_tables(tables) if tables else schema.empty_table()

    def rows(self, facts: pa.Table, tokens: pa.Table) -> pa.Table:
        """Whole rows out of their two halves."""
        schema = self.schema
        return pa.Table.from_arrays(
            [(facts if name in _FACTS else tokens)[name] for name in schema.names], schema=schema
        )

    def _columns(self, batch: TokenBatch, schema: pa.Schema, key_of: Callable[[int], str]) -> list[pa.Array]:
        num_rows, entropy, grid = len(batch), batch.entropy, batch.grid
        if entropy is None and self.has_entropy and num_rows:
            raise TatokError(
                "the tokenizer does not say the entropies of some images; its has_entropy must be false then"
            )
        _check(batch, self.vocab_size, key_of)
        columns: dict[str, pa.Array] = {
            "tokens": _lists(batch.codes, batch.code_offsets, schema.field("tokens").type),
            "positions": _lists(batch.positions, batch.position_offsets, schema.field("positions").type),
            "num_tokens": np.diff(batch.code_offsets),
            "num_global_tokens": batch.num_global_B,
            "num_patch_tokens": np.diff(batch.position_offsets),
            "grid_frames": np.full(num_rows, grid.frames),
            "grid_height": np.full(num_rows, grid.height),
            "grid_width": np.full(num_rows, grid.width),
        }
        if batch.global_frames is not None and batch.global_cells is not None:
            for name, places in (("global_frames", batch.global_frames), ("global_cells", batch.global_cells)):
                columns[name] = _lists(places, batch.global_offsets, schema.field(name).type)
        if self.has_entropy and entropy is not None:
            columns |= {name: getattr(entropy, name) for name in ENTROPY_COLUMNS}
            if self.patch_entropy:
                columns["patch_entropy_bits"] = _matrix(entropy.patch_entropy_bits_BN, schema, "patch_entropy_bits")
        if self.patch_worth and num_rows:
            if entropy is None or entropy.patch_worth_bits_BN is None:
                raise TatokError("the tokenizer does not say what patches are worth; leave out write.patch_worth")
            columns["patch_worth_bits"] = _matrix(entropy.patch_worth_bits_BN, schema, "patch_worth_bits")
        return [_array(columns.get(field.name), field.type, num_rows) for field in schema]


def token_table(
    clips: Sequence[Clip],
    sequences: Sequence[TokenSequence],
    *,
    vocab_size: int,
    patch_entropy: bool,
    patch_worth: bool = False,
    has_entropy: bool = True,
) -> pa.Table:
    """One row a clip, in order; raises as `RowFormat.tokens` does."""
    if len(clips) != len(sequences):
        raise TatokError(
            f"the tokenizer returned {count_text(len(sequences), 'sequence')} for {count_text(len(clips), 'image')}"
        )
    row_format = RowFormat(
        vocab_size=vocab_size, patch_entropy=patch_entropy, patch_worth=patch_worth, has_entropy=has_entropy
    )
    facts = pa.Table.from_batches([clip_facts(clips)])
    return row_format.rows(facts, row_format.tokens(sequences, lambda row: clips[row].key))


def rejects_table(rejects: Sequence[Reject]) -> pa.Table:
    """One row a reject, in order."""
    columns: list[Sequence[object]] = [
        [sample_id(reject.uri, reject.index, reject.key, reject.clip_index) for reject in rejects],
        [reject.key for reject in rejects],
        [reject.uri for reject in rejects],
        [reject.index for reject in rejects],
        [reject.clip_index for reject in rejects],
        [reject.stage for reject in rejects],
        [reject.reason for reject in rejects],
        [reject.detail for reject in rejects],
    ]
    arrays = [pa.array(column, type) for column, type in zip(columns, REJECTS_SCHEMA.types, strict=True)]
    return pa.Table.from_arrays(arrays, schema=REJECTS_SCHEMA)


def rejects_to_text(table: pa.Table) -> str:
    """A rejects table as ASCII text, compressed; the same rows give the same text."""
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema, options=pa.ipc.IpcWriteOptions(compression="zstd")) as writer:
        writer.write_table(table.combine_chunks())
    return base64.b64encode(sink.getvalue()).decode("ascii")


def rejects_from_text(text: str | bytes) -> pa.Table:
    """The table in a text of `rejects_to_text`; raises ValueError (ArrowInvalid, binascii.Error) where it is none."""
    return pa.ipc.open_stream(base64.b64decode(text, validate=True)).read_all()


def _batches(sequences: Sequence[TokenSequence], key_of: Callable[[int], str]) -> Iterator[tuple[int, TokenBatch]]:
    """Runs of sequences that go into one batch, each with the number of its first."""
    if isinstance(sequences, TokenBatch):
        yield 0, sequences
        return
    first = 0
    for row in range(1, len(sequences) + 1):
        if row == len(sequences) or _kind(sequences[row]) != _kind(sequences[first]):
            for number in range(first, row):
                _check_lengths(sequences[number], key_of(number))
            yield first, TokenBatch.of(sequences[first:row])
            first = row


def _keys_from(first: int, key_of: Callable[[int], str]) -> Callable[[int], str]:
    return lambda row: key_of(first + row)


def _kind(sequence: TokenSequence) -> tuple[object, ...]:
    entropy = sequence.entropy
    has_worth = entropy is not None and entropy.patch_worth_bits_N is not None
    return sequence.grid, sequence.num_frames, sequence.global_frames is None, entropy is None, has_worth


def _check_lengths(sequence: TokenSequence, key: str) -> None:
    num_places = [None if of is None else len(of) for of in (sequence.global_frames, sequence.global_cells)]
    if num_places != [None if sequence.grid.frames == 1 else sequence.num_global] * 2:
        raise TatokError(
            f"{key}: {num_places} frames and cells for {sequence.num_global} globals in "
            f"{sequence.grid.frames} frames; an image has None, a clip one for each"
        )


def _check(batch: TokenBatch, vocab_size: int, key_of: Callable[[int], str]) -> None:
    """Raise TatokError where a row would not say what the tokenizer said."""
    if not len(batch):
        return
    size = batch.grid.num_positions
    if size > MAX_POSITIONS:
        raise TatokError(f"{key_of(0)}: a grid of {size} positions; at most {MAX_POSITIONS}")
    if (batch.global_frames is None) != (batch.grid.frames == 1):
        places = None if batch.global_frames is None else int(batch.num_global_B[0])
        raise TatokError(
            f"{key_of(0)}: {[places, places]} frames and cells for {batch.num_global_B[0]} globals in "
            f"{batch.grid.frames} frames; an image has None, a clip one for each"
        )
    num_codes_B, num_positions_B = np.diff(batch.code_offsets), np.diff(batch.position_offsets)
    differs_B = num_codes_B != batch.num_global_B + num_positions_B
    if differs_B.any():
        row = int(differs_B.argmax())
        raise TatokError(
            f"{key_of(row)}: {num_codes_B[row]} codes for {batch.num_global_B[row]} globals + {num_positions_B[row]}"
        )
    outside = _first_outside(batch.codes, vocab_size)
    if outside is not None:
        row = int(np.searchsorted(batch.code_offsets, outside, "right")) - 1
        codes = batch.codes[batch.code_offsets[row] : batch.code_offsets[row + 1]]
        raise TatokError(f"{key_of(row)}: codes {codes.min()} .. {codes.max()} exceed the codebook of {vocab_size}")
    outside = _first_outside(batch.positions, size)
    if outside is not None:
        row = int(np.searchsorted(batch.position_offsets, outside, "right")) - 1
        raise TatokError(f"{key_of(row)}: a position is outside the grid of {size}")


def _first_outside(values: np.ndarray, end: int) -> int | None:
    """Where the first of the values is that is not in 0 .. end - 1."""
    if not len(values) or (values.min() >= 0 and values.max() < end):
        return None
    return int(((values < 0) | (values >= end)).argmax())


def _array(values: np.ndarray | pa.Array | None, type: pa.DataType, num_rows: int) -> pa.Array:
    if values is None:
        return pa.nulls(num_rows, type)
    if isinstance(values, pa.Array):
        return values
    return pa.array(values.astype(type.to_pandas_dtype(), copy=False), type)


def _lists(flat: np.ndarray, offsets: np.ndarray, list_type: pa.ListType) -> pa.ListArray:
    values = _array(flat, list_type.value_type, len(flat))
    return pa.ListArray.from_arrays(pa.array(offsets.astype(np.int32)), values, type=list_type)


def _matrix(values_BN: np.ndarray, schema: pa.Schema, name: str) -> pa.ListArray:
    num_rows, num_values = values_BN.shape
    return _lists(values_BN.ravel(), np.arange(num_rows + 1) * num_values, schema.field(name).type)
