"""Clips and their token sequences -> Arrow tables, without a Python object for each token."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa

from tatok.schemas.errors import TatokError
from tatok.schemas.records import Clip, LeftOut, Reject, TokenSequence
from tatok.schemas.sample_ids import sample_id
from tatok.schemas.tokens import MAX_POSITIONS, REJECTS_SCHEMA, token_schema

__all__ = ["TokenizedBatch", "rejects_from_text", "rejects_table", "rejects_to_text", "token_table"]


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenizedBatch:
    """Rows that follow each other in the source, the rejects before and among them, and what belongs to neither."""

    rows: pa.Table
    rejects: Sequence[Reject]
    num_tokens: int
    left_out: Mapping[LeftOut, int] = field(default_factory=dict)


def token_table(
    clips: Sequence[Clip],
    sequences: Sequence[TokenSequence],
    *,
    vocab_size: int,
    patch_entropy: bool,
    patch_worth: bool = False,
) -> pa.Table:
    """One row a clip, in order; `tatok.schemas.tokens.token_schema` says the columns.

    Raises TatokError if a code or a position does not fit the schema: it would wrap around silently; and where
    `patch_worth` asks for what a sequence does not have.
    """
    schema = token_schema(vocab_size, patch_entropy=patch_entropy, patch_worth=patch_worth)
    _check_ranges(clips, sequences, vocab_size)
    entropies = [sequence.entropy for sequence in sequences]
    columns: dict[str, object] = {
        "sample_id": [sample_id(clip.uri, clip.index, clip.key, clip.clip_index) for clip in clips],
        "key": [clip.key for clip in clips],
        "source_uri": [clip.uri for clip in clips],
        "source_index": [clip.index for clip in clips],
        "clip_index": [clip.clip_index for clip in clips],
        "media": [clip.media for clip in clips],
        "sha256": [clip.sha256 for clip in clips],
        "width": [clip.width for clip in clips],
        "height": [clip.height for clip in clips],
        "crop_left": [clip.crop.left for clip in clips],
        "crop_top": [clip.crop.top for clip in clips],
        "crop_width": [clip.crop.width for clip in clips],
        "crop_height": [clip.crop.height for clip in clips],
        "flipped": [clip.flipped for clip in clips],
        "clip_start_s": [clip.clip_start_s for clip in clips],
        "fps": [clip.fps for clip in clips],
        "num_frames": [len(clip.pixels) for clip in clips],
        "frame_pts_s": [clip.frame_pts_s for clip in clips],
        "tokens": _lists([sequence.codes for sequence in sequences], schema.field("tokens").type),
        "positions": _lists([sequence.positions for sequence in sequences], schema.field("positions").type),
        "global_frames": [sequence.global_frames for sequence in sequences],
        "global_cells": [sequence.global_cells for sequence in sequences],
        "num_tokens": [sequence.num_tokens for sequence in sequences],
        "num_global_tokens": [sequence.num_global for sequence in sequences],
        "num_patch_tokens": [sequence.num_patches for sequence in sequences],
        "grid_frames": [sequence.grid.frames for sequence in sequences],
        "grid_height": [sequence.grid.height for sequence in sequences],
        "grid_width": [sequence.grid.width for sequence in sequences],
        "entropy_bits": [entropy.entropy_bits for entropy in entropies],
        "kept_entropy_bits": [entropy.kept_entropy_bits for entropy in entropies],
        "residual_bits": [entropy.residual_bits for entropy in entropies],
        "surprisal_bits": [entropy.surprisal_bits for entropy in entropies],
        "entropy_mean_bits": [entropy.entropy_mean_bits for entropy in entropies],
        "entropy_max_bits": [entropy.entropy_max_bits for entropy in entropies],
        "caption": [clip.caption for clip in clips],
        "label": [clip.label for clip in clips],
        "metadata": [clip.metadata for clip in clips],
    }
    if patch_entropy:
        columns["patch_entropy_bits"] = _lists(
            [entropy.patch_entropy_bits_N for entropy in entropies], schema.field("patch_entropy_bits").type
        )
    if patch_worth:
        worths = [entropy.patch_worth_bits_N for entropy in entropies if entropy.patch_worth_bits_N is not None]
        if len(worths) != len(clips):
            raise TatokError("the tokenizer does not say what patches are worth; leave out write.patch_worth")
        columns["patch_worth_bits"] = _lists(worths, schema.field("patch_worth_bits").type)
    return _table(columns, schema)


def rejects_table(rejects: Sequence[Reject]) -> pa.Table:
    """One row a reject, in order."""
    columns: dict[str, object] = {
        "sample_id": [sample_id(reject.uri, reject.index, reject.key, reject.clip_index) for reject in rejects],
        "key": [reject.key for reject in rejects],
        "source_uri": [reject.uri for reject in rejects],
        "source_index": [reject.index for reject in rejects],
        "clip_index": [reject.clip_index for reject in rejects],
        "stage": [reject.stage for reject in rejects],
        "reason": [reject.reason for reject in rejects],
        "detail": [reject.detail for reject in rejects],
    }
    return _table(columns, REJECTS_SCHEMA)


def rejects_to_text(table: pa.Table) -> str:
    """A rejects table as ASCII text, compressed; the same rows give the same text."""
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema, options=pa.ipc.IpcWriteOptions(compression="zstd")) as writer:
        writer.write_table(table.combine_chunks())
    return base64.b64encode(sink.getvalue()).decode("ascii")


def rejects_from_text(text: str | bytes) -> pa.Table:
    """The table in a text of `rejects_to_text`; raises ValueError (ArrowInvalid, binascii.Error) where it is none."""
    return pa.ipc.open_stream(base64.b64decode(text, validate=True)).read_all()


def _table(columns: dict[str, object], schema: pa.Schema) -> pa.Table:
    arrays = [
        column if isinstance(column, pa.Array) else pa.array(column, type=field.type)
        for field in schema
        for column in [columns[field.name]]
    ]
    return pa.Table.from_arrays(arrays, schema=schema)


def _lists(arrays: Sequence[np.ndarray], list_type: pa.ListType) -> pa.ListArray:
    offsets = np.zeros(len(arrays) + 1, dtype=np.int32)
    np.cumsum([len(array) for array in arrays], out=offsets[1:])
    values = np.concatenate(arrays) if arrays else np.empty(0)
    flat = pa.array(values.astype(list_type.value_type.to_pandas_dtype(), copy=False), type=list_type.value_type)
    return pa.ListArray.from_arrays(pa.array(offsets), flat, type=list_type)


def _check_ranges(clips: Sequence[Clip], sequences: Sequence[TokenSequence], vocab_size: int) -> None:
    if len(clips) != len(sequences):
        raise TatokError(f"the tokenizer returned {len(sequences)} sequences for {len(clips)} images")
    for clip, sequence in zip(clips, sequences, strict=True):
        num_codes, num_positions = len(sequence.codes), len(sequence.positions)
        if sequence.grid.num_positions > MAX_POSITIONS:
            raise TatokError(f"{clip.key}: a grid of {sequence.grid.num_positions} positions; at most {MAX_POSITIONS}")
        num_places = [None if of is None else len(of) for of in (sequence.global_frames, sequence.global_cells)]
        if num_places != [None if sequence.grid.frames == 1 else sequence.num_global] * 2:
            raise TatokError(
                f"{clip.key}: {num_places} frames and cells for {sequence.num_global} globals in "
                f"{sequence.grid.frames} frames; an image has None, a clip one for each"
            )
        if num_codes != sequence.num_global + num_positions:
            raise TatokError(f"{clip.key}: {num_codes} codes for {sequence.num_global} globals + {num_positions}")
    row = _first_outside([sequence.codes for sequence in sequences], [vocab_size] * len(sequences))
    if row is not None:
        codes = sequences[row].codes
        raise TatokError(f"{clips[row].key}: codes {codes.min()} .. {codes.max()} exceed the codebook of {vocab_size}")
    sizes = [sequence.grid.num_positions for sequence in sequences]
    row = _first_outside([sequence.positions for sequence in sequences], sizes)
    if row is not None:
        raise TatokError(f"{clips[row].key}: a position is outside the grid of {sizes[row]}")


def _first_outside(arrays: Sequence[np.ndarray], ends: Sequence[int]) -> int | None:
    """The first of the arrays that holds a number not in 0 .. end - 1; all are looked at together, for speed."""
    if not arrays:
        return None
    lengths = [len(array) for array in arrays]
    values = np.concatenate(arrays)
    is_outside = (values < 0) | (values >= np.repeat(np.array(ends, np.int64), lengths))
    return int(np.searchsorted(np.cumsum(lengths), is_outside.argmax(), "right")) if is_outside.any() else None
