"""TokenDataset: a tokenized dataset as training code reads it, row by row or as a stream of batches."""

from __future__ import annotations

import hashlib
import math
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from os import PathLike
from pathlib import Path

import numpy as np
import pyarrow as pa
from torch.utils.data import Dataset

from tatok.dataset.batches import TokenRow
from tatok.dataset.order import Blocks
from tatok.dataset.packing import Batching
from tatok.dataset.parts import TokenizedData
from tatok.dataset.stream import StreamOrder, TokenStream
from tatok.dataset.windows import Filters, WindowReader, filter_clauses, pick
from tatok.schemas.errors import ConfigError
from tatok.schemas.records import count_text

__all__ = ["TokenDataset"]

NUM_SCANNERS = 16


class TokenDataset(Dataset[TokenRow]):
    """The rows of one or several tokenized datasets: map-style itself, iterable through `stream`.

    `url` is a path or fsspec URL, or a list of them; their tokens must come from one tokenizer. With `weights`, one a
    dataset, an epoch takes that share of its rows from each: some rows several times, or a part of them that changes
    with the epoch. `columns` come along with the tokens, such as ("label", "caption"). `filters` are pyarrow's: a list
    of (column, op, value) that must all hold, such as [("num_tokens", "<", 200)], or a list of such lists, one of which
    must; row groups whose statistics rule them out are not read. `cache` is a local folder for what is read from a
    bucket; it may be shared and deleted.

    Opening reads the manifest, and where there are filters, their columns. Rows are numbered in the order of the parts'
    names. It is what was there when it was opened; parts that a running job adds are not seen.

    Raises SourceError where there is no dataset, ConfigError where settings do not fit it.
    """

    def __init__(
        self,
        url: str | PathLike[str] | Sequence[str | PathLike[str]],
        *,
        weights: Sequence[float] | None = None,
        columns: Sequence[str] = (),
        filters: Filters | None = None,
        cache: str | PathLike[str] | None = None,
        seed: int = 0,
    ) -> None:
        urls = [url] if isinstance(url, str | PathLike) else list(url)
        if not urls:
            raise ConfigError("name at least one dataset")
        sources = tuple(TokenizedData.open(each) for each in urls)
        _check_same_tokenizer(sources)
        self._reader = WindowReader(
            sources=sources,
            columns=tuple(columns),
            filters=filter_clauses(filters),
            cache=None if cache is None else Path(cache).expanduser().absolute(),
            seed=seed,
        )
        _check_columns(sources, (*columns, *self._reader.filter_columns()))
        self._blocks = _scan(self._reader)
        self._weights = None if weights is None else _checked_weights(weights, sources)
        self._ends = np.cumsum(self._blocks.num_rows_B)
        # A row group for each of the latest rows asked for; training reads through `stream` instead.
        self._row_group = lru_cache(maxsize=4)(self._read_row_group)

    def __getstate__(self) -> dict[str, object]:
        return {name: value for name, value in self.__dict__.items() if name != "_row_group"}

    def __setstate__(self, state: dict[str, object]) -> None:
        self.__dict__.update(state)
        self._row_group = lru_cache(maxsize=4)(self._read_row_group)

    def __repr__(self) -> str:
        sources, reader = self._reader.sources, self._reader
        where = sources[0].url if len(sources) == 1 else f"{sources[0].url} and {len(sources) - 1} more"
        passing = " that pass its filters" if reader.filters else ""
        columns = f"; with {', '.join(reader.columns[:4])}" if reader.columns else ""
        return (
            f"TokenDataset({where}: {count_text(len(self), 'row')}{passing}, {self.mean_tokens:.1f} tokens a row, "
            f"{self.vocab_size:,} codes{columns})"
        )

    @property
    def vocab_size(self) -> int:
        """Codes are in 0 .. vocab_size - 1; global and patch codes have a codebook each."""
        return self._reader.sources[0].vocab_size

    @property
    def mean_tokens(self) -> float:
        """Tokens a row, over all parts and before filters."""
        sources = self._reader.sources
        return sum(s.num_tokens for s in sources) / max(sum(s.num_rows for s in sources), 1)

    def __len__(self) -> int:
        """Rows that pass the filters, over all datasets, each counted once."""
        return int(self._ends[-1]) if len(self._ends) else 0

    def __getitem__(self, row: int) -> TokenRow:
        """One row by its number, 0 .. len - 1, or from the end. Raises IndexError."""
        return self.__getitems__([row])[0]

    def __getitems__(self, rows: Sequence[int]) -> list[TokenRow]:
        """Several rows in the order asked for, each row group read once; DataLoader calls this."""
        numbers = np.array([row + len(self) if row < 0 else row for row in map(int, rows)], dtype=np.int64)
        if len(numbers) and not (numbers.min() >= 0 and numbers.max() < len(self)):
            raise IndexError(f"row {rows} of a dataset of {len(self)} rows")
        blocks = np.searchsorted(self._ends, numbers, side="right")
        found: dict[int, TokenRow] = {}
        for block in np.unique(blocks).tolist():
            wanted = np.unique(numbers[blocks == block])
            in_block = wanted - int(self._blocks.first_row_B[block])
            rows_found = pick(self._row_group(block), in_block, self._reader.columns)
            found |= {document.row: document for document in rows_found.documents()}
        return [found[number] for number in numbers.tolist()]

    def stream(
        self,
        batching: Batching,
        *,
        epochs: int | None = 1,
        shuffle: bool = True,
        drop_last: bool = False,
        buffer_rows: int = 1 << 17,
        lanes: int = 8,
        rank: int | None = None,
        world_size: int | None = None,
    ) -> TokenStream:
        """Batches of every row once an epoch, for DataLoader(stream, batch_size=None).

        `batching` is Packing, Bucketing or Rows (packing.py). `epochs` None continues for ever: then all ranks get
        equally many batches. `buffer_rows` are mixed at a time, in `lanes` groups; a batch is made of rows of one
        group, so that where lanes are a multiple of ranks x workers, each row group is read by one of them alone.
        Memory: about 8 bytes a token of two buffers. `rank` and `world_size` default to torch.distributed's, else to
        the environment's RANK and WORLD_SIZE, else to 0 of 1.

        Without `shuffle`, batches go through the dataset in its order; a packed batch may take a row before its turn.

        Raises ConfigError where no row passes the filters or a setting is out of range.
        """
        if len(self) == 0:
            raise ConfigError("no row passes the filters" if self._reader.filters else "the dataset has no rows yet")
        if buffer_rows < 1 or lanes < 1 or (epochs is not None and epochs < 1):
            raise ConfigError(f"buffer_rows is {buffer_rows}, lanes {lanes}, epochs {epochs}; each must be 1 or more")
        if (rank is None) != (world_size is None):
            raise ConfigError("give rank and world_size together, or neither")
        if rank is None or world_size is None:
            rank, world_size = _distributed()
        blocks = self._blocks if self._weights is None else _weighted(self._blocks, self._weights)
        blocks = blocks.take(np.flatnonzero(blocks.num_rows_B))
        window_rows = max(buffer_rows // lanes, batching.enough_rows(self.mean_tokens))
        seed = self._reader.seed
        recipe = (self._identity(), seed, shuffle, window_rows, lanes, repr(batching), self._weights)
        order = StreamOrder(
            blocks=blocks,
            batching=batching,
            seed=seed,
            shuffle=shuffle,
            window_rows=window_rows,
            num_lanes=lanes,
            recipe=hashlib.sha256(repr(recipe).encode()).hexdigest()[:16],
        )
        return TokenStream(self._reader, order, epochs=epochs, drop_last=drop_last, rank=rank, world_size=world_size)

    def _identity(self) -> str:
        parts = [
            (part.name, part.num_bytes, part.row_group_rows) for source in self._reader.sources for part in source.parts
        ]
        return repr((parts, self._reader.filters))

    def _read_row_group(self, block: int) -> pa.Table:
        blocks = self._blocks
        place = (
            int(array[block]) for array in (blocks.source_B, blocks.part_B, blocks.row_group_B, blocks.first_row_B)
        )
        return self._reader.row_group(*place)


def _scan(reader: WindowReader) -> Blocks:
    """Every row group with the number of its rows that pass the filters."""
    places = [
        (source, part, row_group)
        for source, data in enumerate(reader.sources)
        for part, described in enumerate(data.parts)
        for row_group in range(len(described.row_group_rows))
    ]
    with ThreadPoolExecutor(NUM_SCANNERS) as pool:
        counts = list(pool.map(lambda place: reader.count(*place), places)) if reader.filters else []
    if not reader.filters:
        counts = [reader.count(*place) for place in places]
    columns = np.array(places, dtype=np.int64).reshape(-1, 3).T
    num_rows_B = np.array(counts, dtype=np.int64)
    return Blocks(
        source_B=columns[0],
        part_B=columns[1],
        row_group_B=columns[2],
        first_row_B=np.cumsum(num_rows_B) - num_rows_B,
        num_rows_B=num_rows_B,
        copy_B=np.zeros(len(places), dtype=np.int64),
        share_B=np.ones(len(places)),
    )


def _weighted(blocks: Blocks, weights: tuple[float, ...]) -> Blocks:
    """The blocks of an epoch that has as many rows as all datasets together, a share of `weights` of each."""
    total, chosen = int(blocks.num_rows_B.sum()), []
    for source, weight in enumerate(weights):
        own = blocks.take(np.flatnonzero(blocks.source_B == source))
        num_rows = int(own.num_rows_B.sum())
        times = weight / sum(weights) * total / num_rows if num_rows else 0.0
        for copy in range(math.ceil(times)):
            share = min(times - copy, 1.0)
            chosen.append(
                Blocks(
                    source_B=own.source_B,
                    part_B=own.part_B,
                    row_group_B=own.row_group_B,
                    first_row_B=own.first_row_B,
                    num_rows_B=np.rint(own.num_rows_B * share).astype(np.int64),
                    copy_B=np.full(len(own), copy),
                    share_B=np.full(len(own), share),
                )
            )
    return Blocks(**{name: np.concatenate([getattr(each, name) for each in chosen]) for name in Blocks.__slots__})


def _checked_weights(weights: Sequence[float], sources: tuple[TokenizedData, ...]) -> tuple[float, ...]:
    if len(weights) != len(sources) or not all(w >= 0 and math.isfinite(w) for w in weights) or sum(weights) <= 0:
        raise ConfigError(f"weights are {list(weights)}; give one of 0 or more for each of {len(sources)} datasets")
    return tuple(map(float, weights))


def _check_same_tokenizer(sources: tuple[TokenizedData, ...]) -> None:
    def entries(data: TokenizedData) -> dict[str, str]:
        names = ("tokenizer.weights_sha256", "tokenizer.model", "vocab_size")
        return {name: data.run.fingerprint.get(name, "") for name in names}

    for data in sources[1:]:
        different = [name for name, value in entries(sources[0]).items() if entries(data)[name] != value]
        if different:
            raise ConfigError(
                f"{data.url} and {sources[0].url} hold tokens of different tokenizers ({', '.join(different)}); "
                "tokenize both with one checkpoint, or load them apart"
            )


def _check_columns(sources: tuple[TokenizedData, ...], names: Sequence[str]) -> None:
    for data in sources:
        missing = set(names) - set(data.schema.names) if names and data.parts else set()
        if missing:
            raise ConfigError(
                f"{data.url} has no column {', '.join(sorted(missing))}; it has {', '.join(data.schema.names)}"
            )


def _distributed() -> tuple[int, int]:
    import torch.distributed as dist

    if dist.is_available() and dist.is_initialized():
        return dist.get_rank(), dist.get_world_size()
    return int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
