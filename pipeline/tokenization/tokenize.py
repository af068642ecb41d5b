"""Decoded clips -> batches -> rows, for one shard; no Ray."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from math import prod
from operator import le

import numpy as np
import pyarrow as pa
import torch

from tatok.pipeline.output.tables import TokenizedBatch, token_table
from tatok.pipeline.tokenization.accelerator_errors import is_out_of_memory
from tatok.schemas.errors import TatokError
from tatok.schemas.records import Clip, LeftOutMembers, Reject, TokenSequence

__all__ = ["Encode", "FittingEncode", "TooLarge", "tokenize_clips"]

_FITTED_CALLS = 32
_WINDOW_BATCHES = 8  # as many batches as items may wait for others of their shape
_USUAL_SHARE = 4  # of the bytes that may wait: a quarter, unless two batches are more

Encode = Callable[[torch.Tensor], "Sequence[TokenSequence | TooLarge]"]
"""uint8 clips [B, T, 3, H, W] -> B token sequences; `Tokenizer.encode_clips` is one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TooLarge:
    """Stands for a clip that does not fit the device's memory even by itself; `detail` is the reject's."""

    detail: str


class FittingEncode:
    """An `Encode` in parts that fit the device's memory: halved when it runs out, doubled when it has not for long.

    Results are in the order of the clips; a clip that does not fit by itself gives a `TooLarge`. Raises TatokError
    where such a clip did fit before, so that it is not the clip's doing.
    """

    def __init__(self, encode: Encode) -> None:
        self._encode = encode
        self._most: int | None = None  # clips at a time; None: as many as come
        self._num_fitted = 0  # calls since the last change of it
        self._fitted: set[tuple[int, ...]] = set()  # shapes of clips

    def __call__(self, pixels_BTCHW: torch.Tensor) -> list[TokenSequence | TooLarge]:
        """Token sequences of the clips."""
        shape = tuple(pixels_BTCHW.shape[1:])
        results: list[TokenSequence | TooLarge] = []
        is_last_try = False
        while len(results) < len(pixels_BTCHW):
            part = pixels_BTCHW[len(results) :][: self._most]
            sequences, lacking = self._try(part)
            if lacking is None:
                results += sequences
                self._fitted.add(shape)
                self._grow(len(pixels_BTCHW))
                is_last_try = False
                continue
            torch.cuda.empty_cache()  # here the failed call's tensors are gone
            if len(part) > 1:
                self._most, self._num_fitted = len(part) // 2, 0
            elif is_last_try:
                results.append(self._too_large(shape, lacking))
                is_last_try = False
            else:
                is_last_try = True  # with all of the memory
        return results

    def _try(self, part_BTCHW: torch.Tensor) -> tuple[Sequence[TokenSequence | TooLarge], str | None]:
        """The sequences, or what lacks memory. A call of its own: while an error is handled, it holds the tensors."""
        try:
            return self._encode(part_BTCHW), None
        except RuntimeError as error:
            if not is_out_of_memory(error):
                raise
            return (), str(error).strip().splitlines()[0]

    def _too_large(self, shape: tuple[int, ...], lacking: str) -> TooLarge:
        what = f"{shape[0]} frame(s) of {shape[-1]}x{shape[-2]} pixels"
        if any(all(map(le, shape, fitted)) for fitted in self._fitted):
            raise TatokError(
                f"the tokenizer's device has no memory for {what} any more, though so much did fit before ({lacking}); "
                "leave the device to this job alone"
            )
        return TooLarge(
            detail=f"{what} do not fit the memory of the tokenizer's device ({lacking}); make them fewer or smaller in "
            "preprocessing and video, or use a device with more memory"
        )

    def _grow(self, num_clips: int) -> None:
        self._num_fitted += 1
        if self._most is not None and self._num_fitted >= _FITTED_CALLS:
            self._most, self._num_fitted = 2 * self._most, 0
            if self._most >= num_clips:
                self._most = None


def tokenize_clips(
    decoded: Iterable[Clip | Reject | LeftOutMembers],
    encode: Encode,
    *,
    batch_size: int,
    vocab_size: int,
    patch_entropy: bool,
    patch_worth: bool = False,
    max_waiting_bytes: int = 256 << 20,
) -> Iterator[TokenizedBatch]:
    """Tokenize in batches of equal shape and yield the rows in the order of `decoded`.

    Clips of one shape wait for each other, so that batches are full where shapes alternate: for at most
    8 * batch_size items, and while the pixels of all that wait come to less than a quarter of `max_waiting_bytes`, or
    than two batches of the largest clips, as far as `max_waiting_bytes` goes. The batches depend on the clips and the
    arguments alone, never on timing, so that a shard that is done again gives the same bytes.
    """
    buffer = _ReorderBuffer(encode, batch_size, max_waiting_bytes)
    table = partial(token_table, vocab_size=vocab_size, patch_entropy=patch_entropy, patch_worth=patch_worth)
    for item in decoded:
        if isinstance(item, LeftOutMembers):
            yield TokenizedBatch(rows=table([], []), rejects=(), num_tokens=0, left_out=item.counts)
            continue
        buffer.add(item)
        while buffer.longest_wait >= _WINDOW_BATCHES * batch_size or buffer.is_heavy:
            buffer.encode_oldest()
        # Rejects count too: a shard of nothing else must neither pile up nor look as if nothing happened.
        while buffer.num_ready >= batch_size:
            yield buffer.take(batch_size, table)
    while buffer.num_items:
        buffer.encode_oldest()
        if buffer.num_ready:
            yield buffer.take(buffer.num_ready, table)


class _ReorderBuffer:
    """Items in their order; those at its head that have been encoded, and rejects, are ready to leave."""

    def __init__(self, encode: Encode, batch_size: int, max_waiting_bytes: int) -> None:
        self.num_ready = 0  # items at the head
        self._encode = encode
        self._batch_size = batch_size
        self._max_waiting_bytes = max_waiting_bytes
        self._waiting_bytes = 0  # of pixels
        self._largest_bytes = 0  # of one clip that waits
        self._items: deque[Clip | Reject] = deque()
        self._first = 0  # number of the item at the head
        self._waiting: dict[tuple[int, ...], list[int]] = {}  # shape -> numbers of the clips that wait
        self._done: dict[int, TokenSequence] = {}

    @property
    def num_items(self) -> int:
        return len(self._items)

    @property
    def is_heavy(self) -> bool:
        """Whether the pixels that wait are too many bytes."""
        two_batches = 2 * self._batch_size * self._largest_bytes
        return self._waiting_bytes > max(
            self._max_waiting_bytes // _USUAL_SHARE, min(two_batches, self._max_waiting_bytes)
        )

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
            self._waiting_bytes += item.pixels.nbytes
            self._largest_bytes = max(self._largest_bytes, item.pixels.nbytes)
            if len(alike) >= self._batch_size:
                self._encode_alike(item.pixels.shape)
        self._count_ready()

    def encode_oldest(self) -> None:
        """Encode the clip that has waited longest, and those of its shape."""
        if self._waiting:
            self._encode_alike(min(self._waiting, key=lambda shape: self._waiting[shape][0]))
            self._count_ready()

    def take(self, count: int, table: Callable[[list[Clip], list[TokenSequence]], pa.Table]) -> TokenizedBatch:
        """Let the first `count` items leave, which must be ready."""
        items = [self._items.popleft() for _ in range(count)]
        clips = [item for item in items if isinstance(item, Clip)]
        numbers = range(self._first, self._first + count)
        sequences = [self._done.pop(number) for number in numbers if number in self._done]
        self._first += count
        self.num_ready -= count
        return TokenizedBatch(
            rows=table(clips, sequences),
            rejects=tuple(item for item in items if isinstance(item, Reject)),
            num_tokens=sum(sequence.num_tokens for sequence in sequences),
        )

    def _encode_alike(self, shape: tuple[int, ...]) -> None:
        numbers = self._waiting.pop(shape)
        clips = [self._items[number - self._first] for number in numbers]
        pixels_BTCHW = [clip.pixels for clip in clips if isinstance(clip, Clip)]
        results = self._encode(torch.from_numpy(np.stack(pixels_BTCHW)))
        if len(results) != len(clips):
            raise TatokError(f"the tokenizer returned {len(results)} sequences for {len(clips)} images")
        for number, clip, result in zip(numbers, clips, results, strict=True):
            assert isinstance(clip, Clip)
            self._waiting_bytes -= clip.pixels.nbytes
            if isinstance(result, TooLarge):
                self._items[number - self._first] = _reject(clip, result)
                continue
            self._done[number] = result
            # The row needs the number of frames; the pixels are let go.
            self._items[number - self._first] = replace(clip, pixels=np.empty((shape[0], 3, 0, 0), np.uint8))
        self._largest_bytes = max(map(prod, self._waiting), default=0)  # pixels are bytes

    def _count_ready(self) -> None:
        while self.num_ready < len(self._items):
            item = self._items[self.num_ready]
            if isinstance(item, Clip) and self._first + self.num_ready not in self._done:
                return
            self.num_ready += 1


def _reject(clip: Clip, too_large: TooLarge) -> Reject:
    return Reject(
        key=clip.key,
        uri=clip.uri,
        index=clip.index,
        stage="tokenize",
        reason="out_of_memory",
        detail=too_large.detail,
        clip_index=clip.clip_index,
    )
