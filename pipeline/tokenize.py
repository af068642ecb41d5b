"""Decoded clips -> batches -> rows, for one shard; no Ray."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import pyarrow as pa
import torch

from pipeline.columns import token_table
from schemas.errors import TatokError
from schemas.records import Clip, Reject, TokenSequence

__all__ = ["Encode", "FittingEncode", "TokenizedBatch", "tokenize_clips"]

_FITTED_CALLS = 32
_WINDOW_BATCHES = 8  # as many batches as items may wait for others of their shape

Encode = Callable[[torch.Tensor], Sequence[TokenSequence]]
"""uint8 clips [B, T, 3, H, W] -> B token sequences; `Tokenizer.encode_clips` is one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenizedBatch:
    """Rows that follow each other in the source, and the rejects that stood before and among them."""

    rows: pa.Table
    rejects: Sequence[Reject]
    num_tokens: int


class FittingEncode:
    """An `Encode` in parts that fit the device's memory: halved when it runs out, doubled when it has not for long.

    Results are in the order of the clips. Raises torch.OutOfMemoryError where a single clip does not fit.
    """

    def __init__(self, encode: Encode) -> None:
        self._encode = encode
        self._most: int | None = None  # clips at a time; None: as many as come
        self._num_fitted = 0  # calls since the last change of it

    def __call__(self, pixels_BTCHW: torch.Tensor) -> list[TokenSequence]:
        """Token sequences of the clips."""
        sequences: list[TokenSequence] = []
        while len(sequences) < len(pixels_BTCHW):
            part = pixels_BTCHW[len(sequences) :][: self._most]
            try:
                sequences += self._encode(part)
            except torch.OutOfMemoryError:
                if len(part) == 1:
                    raise
                self._most, self._num_fitted = len(part) // 2, 0
                torch.cuda.empty_cache()
                continue
            self._grow(len(pixels_BTCHW))
        return sequences

    def _grow(self, num_clips: int) -> None:
        self._num_fitted += 1
        if self._most is not None and self._num_fitted >= _FITTED_CALLS:
            self._most, self._num_fitted = 2 * self._most, 0
            if self._most >= num_clips:
                self._most = None


def tokenize_clips(
    decoded: Iterable[Clip | Reject],
    encode: Encode,
    *,
    batch_size: int,
    vocab_size: int,
    patch_entropy: bool,
    max_waiting_bytes: int = 256 << 20,
) -> Iterator[TokenizedBatch]:
    """Tokenize in batches of equal shape and yield the rows in the order of `decoded`.

    Clips of one shape wait for each other, so that batches are full where shapes alternate: for at most
    8 * batch_size items, and while the pixels of all that wait come to less than `max_waiting_bytes`. The batches
    depend on the clips and the arguments alone, never on timing, so that a shard that is done again gives the same
    bytes.
    """
    line = _Line(encode, batch_size)
    for item in decoded:
        line.add(item)
        while line.longest_wait >= _WINDOW_BATCHES * batch_size or line.waiting_bytes > max_waiting_bytes:
            line.encode_oldest()
        # Rejects count too: a shard of nothing else must neither pile up nor look as if it stood still.
        while line.num_ready >= batch_size:
            yield line.take(batch_size, vocab_size=vocab_size, patch_entropy=patch_entropy)
    while line.num_items:
        line.encode_oldest()
        if line.num_ready:
            yield line.take(line.num_ready, vocab_size=vocab_size, patch_entropy=patch_entropy)


class _Line:
    """Items in their order; those at its head that have been encoded, and rejects, are ready to leave."""

    def __init__(self, encode: Encode, batch_size: int) -> None:
        self.waiting_bytes = 0  # of pixels
        self.num_ready = 0  # items at the head
        self._encode = encode
        self._batch_size = batch_size
        self._items: deque[Clip | Reject] = deque()
        self._first = 0  # number of the item at the head
        self._waiting: dict[tuple[int, ...], list[int]] = {}  # shape -> numbers of the clips that wait
        self._done: dict[int, TokenSequence] = {}

    @property
    def num_items(self) -> int:
        return len(self._items)

    @property
    def longest_wait(self) -> int:
        """Items that have come since the clip that has waited longest, that one included."""
        oldest = min((numbers[0] for numbers in self._waiting.values()), default=self._first + len(self._items))
        return self._first + len(self._items) - oldest

    def add(self, item: Clip | Reject) -> None:
        self._items.append(item)
        if isinstance(item, Clip):
            alike = self._waiting.setdefault(item.pixels.shape, [])
            alike.append(self._first + len(self._items) - 1)
            self.waiting_bytes += item.pixels.nbytes
            if len(alike) >= self._batch_size:
                self._encode_alike(item.pixels.shape)
        self._count_ready()

    def encode_oldest(self) -> None:
        """Encode the clip that has waited longest, and those of its shape."""
        if self._waiting:
            self._encode_alike(min(self._waiting, key=lambda shape: self._waiting[shape][0]))
            self._count_ready()

    def take(self, count: int, *, vocab_size: int, patch_entropy: bool) -> TokenizedBatch:
        """Let the first `count` items leave, which must be ready."""
        items = [self._items.popleft() for _ in range(count)]
        clips = [item for item in items if isinstance(item, Clip)]
        numbers = range(self._first, self._first + count)
        sequences = [self._done.pop(number) for number in numbers if number in self._done]
        self._first += count
        self.num_ready -= count
        return TokenizedBatch(
            rows=token_table(clips, sequences, vocab_size=vocab_size, patch_entropy=patch_entropy),
            rejects=tuple(item for item in items if isinstance(item, Reject)),
            num_tokens=sum(sequence.num_tokens for sequence in sequences),
        )

    def _encode_alike(self, shape: tuple[int, ...]) -> None:
        numbers = self._waiting.pop(shape)
        clips = [self._items[number - self._first] for number in numbers]
        pixels_BTCHW = [clip.pixels for clip in clips if isinstance(clip, Clip)]
        sequences = self._encode(torch.from_numpy(np.stack(pixels_BTCHW)))
        if len(sequences) != len(clips):
            raise TatokError(f"the tokenizer returned {len(sequences)} sequences for {len(clips)} images")
        self._done |= zip(numbers, sequences, strict=True)
        for number, clip in zip(numbers, clips, strict=True):
            assert isinstance(clip, Clip)
            self.waiting_bytes -= clip.pixels.nbytes
            # The row needs the number of frames; the pixels are let go.
            self._items[number - self._first] = replace(clip, pixels=np.empty((shape[0], 3, 0, 0), np.uint8))

    def _count_ready(self) -> None:
        while self.num_ready < len(self._items):
            item = self._items[self.num_ready]
            if isinstance(item, Clip) and self._first + self.num_ready not in self._done:
                return
            self.num_ready += 1
