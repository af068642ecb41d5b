"""The order in which a training run sees rows: pure functions of the dataset, the seed and the epoch.

A *block* is one row group. An epoch permutes the blocks and cuts them into *windows* of some ten thousand rows; rows
are shuffled and made into batches within a window; a *round* interleaves the batches of several windows. Nothing here
knows how many ranks or workers there are: they deal the batches of this one order out among them. A batch mixes the
rows of one window only: that is the price for a reader of one batch in W not having to read every block.

Shuffling sorts by a hash that is written out below, so that the order does not change with a library's version.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import numpy as np

__all__ = ["Blocks", "interleave", "permutation", "plan_rounds"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Blocks:
    """The row groups of one or more datasets, B of them, in canonical order.

    `first_row_B` numbers rows over all datasets; `num_rows_B` counts the rows that an epoch takes from the block.
    `copy_B` numbers the times that an epoch takes the same row group (weights above 1 repeat it); `share_B` in (0, 1]
    is the part of its rows that this copy takes. All int64 but `share_B`, float64.
    """

    source_B: np.ndarray
    part_B: np.ndarray
    row_group_B: np.ndarray
    first_row_B: np.ndarray
    num_rows_B: np.ndarray
    copy_B: np.ndarray
    share_B: np.ndarray

    def __len__(self) -> int:
        return len(self.source_B)

    def take(self, indices: np.ndarray) -> Blocks:
        """The blocks at some indices, in that order."""
        return Blocks(**{name: getattr(self, name)[indices] for name in Blocks.__slots__})


def permutation(num: int, *key: int) -> np.ndarray:
    """A permutation of 0 .. num - 1 that the key fixes, int64 [num]: SplitMix64 of each index, sorted.

    Its constants are those of Steele, Lea and Flood, "Fast splittable pseudorandom number generators" (2014).
    """
    seed = hashlib.sha256(",".join(map(str, key)).encode()).digest()[:8]
    with np.errstate(over="ignore"):
        x = np.frombuffer(seed, dtype="<u8") + np.arange(1, num + 1, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
        x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        x ^= x >> np.uint64(31)
    return np.argsort(x, kind="stable")


def plan_rounds(
    num_rows_B: np.ndarray, *, seed: int, epoch: int, window_rows: int, num_lanes: int, shuffle: bool
) -> list[list[np.ndarray]]:
    """One epoch's rounds; each is up to `num_lanes` windows, each an array of block indices.

    A window holds at least `window_rows` rows, unless the whole epoch has fewer; a remainder below half of that joins
    the window before it. Without `shuffle` blocks keep their order and a round is one window.
    """
    order = permutation(len(num_rows_B), seed, epoch) if shuffle else np.arange(len(num_rows_B))
    windows: list[np.ndarray] = []
    rows, start = 0, 0
    for stop, block in enumerate(order.tolist(), start=1):
        rows += int(num_rows_B[block])
        if rows >= window_rows:
            windows.append(order[start:stop])
            rows, start = 0, stop
    if start < len(order):
        if windows and rows < window_rows // 2:
            windows[-1] = np.concatenate([windows[-1], order[start:]])
        else:
            windows.append(order[start:])
    lanes = num_lanes if shuffle else 1
    return [windows[first : first + lanes] for first in range(0, len(windows), lanes)]


def interleave(counts_W: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Deal the batches of a round's windows in turn: which window, and which of its batches, int64 [sum(counts_W)]."""
    window_P = np.repeat(np.arange(len(counts_W)), counts_W)
    number_P = np.arange(len(window_P)) - np.repeat(np.cumsum(counts_W) - counts_W, counts_W)
    order = np.lexsort((window_P, number_P))
    return window_P[order], number_P[order]
