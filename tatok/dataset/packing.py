"""Which rows share a batch: the lengths of one window -> groups of rows, for three shapes of batch."""

from __future__ import annotations

import math
from bisect import bisect_left, insort
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from tatok.dataset.batches import PackedBatch, PaddedBatch, RowArrays, RowsBatch, State
from tatok.dataset.order import permutation
from tatok.schemas.errors import ConfigError

__all__ = ["Batch", "Batching", "Bucketing", "Packing", "Rows"]

_MANY_ROWS_A_BATCH = 32


Batch = PackedBatch | PaddedBatch | RowsBatch


class Batching(Protocol):
    """A way to make batches of a window's rows."""

    def plan(self, lengths_R: np.ndarray, key: tuple[int, ...], *, shuffle: bool) -> list[np.ndarray]:
        """Every row in exactly one batch: a list of row indices, int64, that `key` fixes."""

    def collate(self, rows: RowArrays, *, epoch: int, state: State) -> Batch:
        """The batch of such a group of rows."""

    def enough_rows(self, mean_tokens: float) -> int:
        """Rows that a window needs, so that rounding its number of batches up costs little."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Packing:
    """Rows end to end, at most `tokens` tokens a batch.

    Short rows are dealt out longest first, one to every batch in each turn, the longest to the emptiest batch (LPT):
    all batches of a window come out equally full within a few tokens, with equal numbers of rows and much the same mix
    of lengths. Where batches hold few rows, best-fit decreasing is used instead. Either way a window of T tokens wastes
    about tokens / (2 T): its number of batches is rounded up. With `fixed_size` each batch is padded to `tokens`.
    """

    tokens: int
    fixed_size: bool = False

    def plan(self, lengths_R: np.ndarray, key: tuple[int, ...], *, shuffle: bool) -> list[np.ndarray]:
        """Raises ConfigError where a row does not fit into a batch."""
        _check_fits(lengths_R, self.tokens)
        order = permutation(len(lengths_R), *key) if shuffle else np.arange(len(lengths_R))
        descending = order[np.argsort(-lengths_R[order], kind="stable")]
        if len(descending) * self.tokens >= _MANY_ROWS_A_BATCH * int(lengths_R.sum()):
            batches = _deal(descending, lengths_R, self.tokens)
        else:
            batches = _best_fit(descending, lengths_R, self.tokens)
        if not shuffle:
            return [np.sort(batch) for batch in sorted(batches, key=lambda batch: int(batch.min()))]
        # Within a batch, rows come in random order; the batches come so too.
        ranks = np.empty(len(order), dtype=np.int64)
        ranks[order] = np.arange(len(order))
        chosen = permutation(len(batches), *key, 1)
        return [batch[np.argsort(ranks[batch], kind="stable")] for batch in (batches[i] for i in chosen)]

    def collate(self, rows: RowArrays, *, epoch: int, state: State) -> PackedBatch:
        """Documents end to end."""
        return rows.packed(epoch=epoch, state=state, size=self.tokens if self.fixed_size else None)

    def enough_rows(self, mean_tokens: float) -> int:
        """Fifty batches: about one percent is wasted."""
        return math.ceil(50 * self.tokens / mean_tokens)


@dataclass(frozen=True, slots=True, kw_only=True)
class Bucketing:
    """Rows of like length, padded to the longest, at most `tokens` tokens a batch, padding included."""

    tokens: int

    def plan(self, lengths_R: np.ndarray, key: tuple[int, ...], *, shuffle: bool) -> list[np.ndarray]:
        """Raises ConfigError where a row does not fit into a batch."""
        _check_fits(lengths_R, self.tokens)
        order = permutation(len(lengths_R), *key) if shuffle else np.arange(len(lengths_R))
        descending = order[np.argsort(-lengths_R[order], kind="stable")]
        batches, start = [], 0
        while start < len(descending):
            stop = start + self.tokens // max(int(lengths_R[descending[start]]), 1)
            batches.append(descending[start:stop])
            start = stop
        return [batches[i] for i in permutation(len(batches), *key, 1)] if shuffle else batches

    def collate(self, rows: RowArrays, *, epoch: int, state: State) -> PaddedBatch:
        """Documents side by side."""
        return rows.padded(epoch=epoch, state=state)

    def enough_rows(self, mean_tokens: float) -> int:
        """Fifty batches: lengths within a batch differ by about a fiftieth of their range."""
        return math.ceil(50 * self.tokens / mean_tokens)


@dataclass(frozen=True, slots=True, kw_only=True)
class Rows:
    """At most `rows` rows a batch; within a window, the batches' sizes differ by one at most."""

    rows: int

    def plan(self, lengths_R: np.ndarray, key: tuple[int, ...], *, shuffle: bool) -> list[np.ndarray]:
        """Never raises."""
        order = permutation(len(lengths_R), *key) if shuffle else np.arange(len(lengths_R))
        return np.array_split(order, -(-len(order) // self.rows)) if len(order) else []

    def collate(self, rows: RowArrays, *, epoch: int, state: State) -> RowsBatch:
        """Documents one by one."""
        return RowsBatch(documents=rows.documents(), epoch=epoch, state=state)

    def enough_rows(self, mean_tokens: float) -> int:
        """Fifty batches."""
        return 50 * self.rows


def _check_fits(lengths_R: np.ndarray, tokens: int) -> None:
    longest = int(lengths_R.max(initial=0))
    if longest > tokens:
        raise ConfigError(
            f"a row of {longest} tokens does not fit into a batch of {tokens}; "
            f"raise the budget, or filter with ('num_tokens', '<=', {tokens})"
        )


def _deal(descending: np.ndarray, lengths_R: np.ndarray, tokens: int) -> list[np.ndarray]:
    sizes = lengths_R[descending].astype(np.int64)
    num_batches = max(-(-int(sizes.sum()) // tokens), 1)
    while True:
        loads = np.zeros(num_batches, dtype=np.int64)
        batch_of = np.empty(len(sizes), dtype=np.int64)
        for start in range(0, len(sizes), num_batches):
            turn = sizes[start : start + num_batches]
            emptiest = np.argsort(loads, kind="stable")[: len(turn)]
            loads[emptiest] += turn
            batch_of[start : start + num_batches] = emptiest
        if loads.max(initial=0) <= tokens:
            break
        num_batches += max(1, num_batches // 200)
    by_batch = descending[np.argsort(batch_of, kind="stable")]
    cuts = np.cumsum(np.bincount(batch_of, minlength=num_batches))[:-1]
    return [batch for batch in np.split(by_batch, cuts) if len(batch)]


def _best_fit(descending: np.ndarray, lengths_R: np.ndarray, tokens: int) -> list[np.ndarray]:
    batches: list[list[int]] = []
    room: list[tuple[int, int]] = []  # (tokens left, batch), ascending
    for row, size in zip(descending.tolist(), lengths_R[descending].tolist(), strict=True):
        place = bisect_left(room, (size, -1))
        if place < len(room):
            left, batch = room.pop(place)
        else:
            left, batch = tokens, len(batches)
            batches.append([])
        batches[batch].append(row)
        insort(room, (left - size, batch))
    return [np.array(batch, dtype=np.int64) for batch in batches]
