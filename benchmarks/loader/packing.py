"""What every loader of the bench makes of its rows: shuffled, packed batches within one budget of tokens.

A peer yields rows one by one, or Arrow tables of rows; both become the very batches that tatok's own stream yields, by
tatok's own packer, so that a peer is measured for its reading and not for a poor packer.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from tatok.dataset.batches import PackedBatch, RowArrays
from tatok.dataset.packing import Packing
from tatok.dataset.parts import TokenizedData

__all__ = [
    "COLUMNS",
    "PACKED_ROWS",
    "SHUFFLED_ROWS",
    "TOKENS",
    "Row",
    "Source",
    "loader",
    "pack_rows",
    "pack_tables",
    "rows_of",
]

TOKENS = 8192
"""The budget of a batch."""

PACKED_ROWS = 8192
"""Rows that the packer looks at together: about sixty batches, so that rounding their number up wastes one percent."""

SHUFFLED_ROWS = 16_384
"""The shuffle buffer of a peer that has one: as many rows as one of tatok's eight windows mixes."""

COLUMNS = ("tokens", "positions", "num_global_tokens")
"""What peers read. Their grid is a constant: they need not read it."""

GRID = (1, 16, 16)


class Row(NamedTuple):
    """One row as a peer gives it: `tokens` uint16 [L], `places` uint16 [K], the grid indices of its patches."""

    tokens: np.ndarray
    places: np.ndarray
    num_global: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """What a loader is to read: a folder or s3:// prefix in its own format, and an empty local folder for a cache.

    `endpoint_url` is the S3 server's, None on a disk. Credentials are in the environment.
    """

    url: str
    cache: Path
    num_workers: int
    seed: int = 0
    endpoint_url: str | None = None

    @property
    def storage_options(self) -> dict[str, object]:
        """s3fs's options; none on a disk."""
        return {} if self.endpoint_url is None else {"endpoint_url": self.endpoint_url}


class _Batches(IterableDataset[PackedBatch]):
    """Packs within the worker that reads, so that batches cross processes rather than rows."""

    def __init__(self, make: Callable[[], Iterator[PackedBatch]]) -> None:
        self._make = make

    def __iter__(self) -> Iterator[PackedBatch]:
        return self._make()


def loader(make: Callable[[], Iterator[PackedBatch]], num_workers: int) -> Iterable[PackedBatch]:
    """A DataLoader whose workers each run `make`; without workers, `make` itself."""
    batches = _Batches(make)
    return DataLoader(batches, batch_size=None, num_workers=num_workers) if num_workers else batches


def pack_rows(rows: Iterable[Row], *, seed: int, num_rows: int = PACKED_ROWS) -> Iterator[PackedBatch]:
    """Batches of every row, each window of `num_rows` packed by itself."""
    source = iter(rows)
    number = 0
    while window := list(islice(source, num_rows)):
        groups = _plan(np.array([len(row.tokens) for row in window], dtype=np.int64), seed, number)
        chosen = [window[i] for i in np.concatenate(groups).tolist()]
        yield from _batches(
            tokens=np.concatenate([row.tokens for row in chosen]),
            places=np.concatenate([row.places for row in chosen]),
            num_tokens_D=np.array([len(row.tokens) for row in chosen], dtype=np.int64),
            num_global_D=np.array([row.num_global for row in chosen], dtype=np.int64),
            groups=groups,
        )
        number += 1


def pack_tables(tables: Iterable[pa.Table], *, seed: int) -> Iterator[PackedBatch]:
    """Batches of every row of Arrow tables with `COLUMNS`, each table packed by itself."""
    for number, table in enumerate(tables):
        whole = table.combine_chunks()
        groups = _plan(_lengths(whole), seed, number)
        chosen = whole.take(pa.array(np.concatenate(groups))).combine_chunks()
        yield from _batches(
            tokens=_flat(chosen, "tokens"),
            places=_flat(chosen, "positions"),
            num_tokens_D=_lengths(chosen),
            num_global_D=chosen.column("num_global_tokens").to_numpy().astype(np.int64),
            groups=groups,
        )


def rows_of(data: TokenizedData, part: str) -> Iterator[Row]:
    """The rows of one part, to write in another format."""
    table = data.read(part, columns=COLUMNS).combine_chunks()
    tokens, positions = (_flat(table, name) for name in COLUMNS[:2])
    num_tokens_R, num_global_R = _lengths(table), table.column("num_global_tokens").to_numpy()
    start = first_place = 0
    for num_tokens, num_global in zip(num_tokens_R.tolist(), num_global_R.tolist(), strict=True):
        stop, last_place = start + num_tokens, first_place + num_tokens - num_global
        yield Row(tokens[start:stop], positions[first_place:last_place], num_global)
        start, first_place = stop, last_place


def _plan(lengths_R: np.ndarray, seed: int, number: int) -> list[np.ndarray]:
    info = get_worker_info()
    return Packing(tokens=TOKENS).plan(lengths_R, (seed, 0 if info is None else info.id, number), shuffle=True)


def _batches(
    *,
    tokens: np.ndarray,
    places: np.ndarray,
    num_tokens_D: np.ndarray,
    num_global_D: np.ndarray,
    groups: list[np.ndarray],
) -> Iterator[PackedBatch]:
    num = len(num_tokens_D)
    rows = RowArrays.of(
        tokens=tokens,
        places=places,
        num_tokens_D=num_tokens_D,
        num_global_D=num_global_D,
        grids_D3=np.broadcast_to(np.array(GRID, dtype=np.int32), (num, 3)).copy(),
        rows_D=np.arange(num),
        columns={},
    )
    for batch in rows.split([len(group) for group in groups]):
        yield batch.packed()


def _lengths(table: pa.Table) -> np.ndarray:
    offsets = table.column("tokens").chunk(0).offsets.to_numpy()
    return np.diff(offsets).astype(np.int64)


def _flat(table: pa.Table, name: str) -> np.ndarray:
    return table.column(name).chunk(0).flatten().to_numpy()
