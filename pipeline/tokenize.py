"""Decoded clips -> batches -> rows, for one shard; no Ray."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import torch

from pipeline.columns import token_table
from schemas.records import Clip, Reject, TokenSequence

__all__ = ["Encode", "FittingEncode", "TokenizedBatch", "tokenize_clips"]

_FITTED_CALLS = 32

Encode = Callable[[torch.Tensor], Sequence[TokenSequence]]
"""uint8 [B, 3, H, W] -> B token sequences; `Tokenizer.encode` is one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenizedBatch:
    """Rows of one tokenizer call, and the rejects that stood before and among them."""

    rows: pa.Table
    rejects: Sequence[Reject]
    num_tokens: int


class FittingEncode:
    """An `Encode` in parts that fit the device's memory: halved when it runs out, doubled when it has not for long.

    Results are in the order of the images. Raises torch.OutOfMemoryError where a single image does not fit.
    """

    def __init__(self, encode: Encode) -> None:
        self._encode = encode
        self._most: int | None = None  # images at a time; None: as many as come
        self._num_fitted = 0  # calls since the last change of it

    def __call__(self, pixels_BCHW: torch.Tensor) -> list[TokenSequence]:
        """Token sequences of the images."""
        sequences: list[TokenSequence] = []
        while len(sequences) < len(pixels_BCHW):
            part = pixels_BCHW[len(sequences) :][: self._most]
            try:
                sequences += self._encode(part)
            except torch.OutOfMemoryError:
                if len(part) == 1:
                    raise
                self._most, self._num_fitted = len(part) // 2, 0
                torch.cuda.empty_cache()
                continue
            self._grow(len(pixels_BCHW))
        return sequences

    def _grow(self, num_images: int) -> None:
        self._num_fitted += 1
        if self._most is not None and self._num_fitted >= _FITTED_CALLS:
            self._most, self._num_fitted = 2 * self._most, 0
            if self._most >= num_images:
                self._most = None


def tokenize_clips(
    decoded: Iterable[Clip | Reject], encode: Encode, *, batch_size: int, vocab_size: int, patch_entropy: bool
) -> Iterator[TokenizedBatch]:
    """Tokenize in batches of equal shape and yield the rows in the order of `decoded`.

    The batches depend on the clips and batch_size alone, never on timing, so that a shard that is done again gives
    the same bytes.
    """
    clips: list[Clip] = []
    rejects: list[Reject] = []

    def flush() -> TokenizedBatch:
        rows, num_tokens = _encode(clips, encode, vocab_size=vocab_size, patch_entropy=patch_entropy)
        batch = TokenizedBatch(rows=rows, rejects=tuple(rejects), num_tokens=num_tokens)
        clips.clear()
        rejects.clear()
        return batch

    for item in decoded:
        if isinstance(item, Reject):
            rejects.append(item)
        else:
            if clips and item.pixels.shape != clips[0].pixels.shape:
                yield flush()
            clips.append(item)
        # Rejects count too: a shard of nothing else must neither pile up nor look as if it stood still.
        if len(clips) >= batch_size or len(rejects) >= 4 * batch_size:
            yield flush()
    if clips or rejects:
        yield flush()


def _encode(clips: Sequence[Clip], encode: Encode, *, vocab_size: int, patch_entropy: bool) -> tuple[pa.Table, int]:
    sequences: Sequence[TokenSequence] = ()
    if clips:
        pixels_BCHW = torch.from_numpy(np.concatenate([clip.pixels for clip in clips]))
        sequences = encode(pixels_BCHW)
    rows = token_table(clips, sequences, vocab_size=vocab_size, patch_entropy=patch_entropy)
    return rows, sum(sequence.num_tokens for sequence in sequences)
