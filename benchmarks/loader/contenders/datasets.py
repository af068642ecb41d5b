"""Hugging Face datasets, with its own shuffle buffer.

Three ways, the quickest is taken: its memory-mapped Arrow files as an iterable dataset (what its guide recommends for
training), and the very Parquet parts, streamed, both table by table; and the files row by row, as its examples go.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path

import datasets.config
import pyarrow.dataset  # noqa: F401  what load_dataset would import within the clock
from datasets import Dataset, IterableDataset, load_dataset, load_from_disk
from torch.utils.data import get_worker_info

from benchmarks.loader.packing import COLUMNS, PACKED_ROWS, SHUFFLED_ROWS, Row, Source, loader, pack_rows, pack_tables
from tatok.dataset.batches import PackedBatch
from tatok.dataset.parts import TokenizedData

__all__ = ["FORMATS", "VARIANTS"]

# It waits five seconds at the end of an epoch of Parquet, for a fault of pyarrow 24 and before.
datasets.config.SLEEP_TIME_ON_THREADS_SHUTDOWN = 0

NUM_SHARDS = 16  # slices whose order is shuffled, and which workers share


def write_arrow(data: TokenizedData, folder: Path) -> None:
    """Arrow files of the columns that are read, a shard a part."""
    Dataset(data.read_all(COLUMNS)).save_to_disk(str(folder), num_shards=len(data.parts))


def mapped(source: Source) -> Iterable[PackedBatch]:
    """Memory-mapped Arrow files; from a bucket, all are downloaded first."""
    return _batches(_arrow_files(source), source)


def rows(source: Source) -> Iterable[PackedBatch]:
    """The same files, a row of arrays at a time."""
    shuffled = _arrow_files(source).with_format("numpy").shuffle(seed=source.seed, buffer_size=SHUFFLED_ROWS)

    def arrays() -> Iterator[Row]:
        for row in shuffled:
            yield Row(row["tokens"], row["positions"], int(row["num_global_tokens"]))

    return loader(lambda: pack_rows(arrays(), seed=source.seed), source.num_workers)


def streamed(source: Source) -> Iterable[PackedBatch]:
    """The Parquet parts."""
    dataset = load_dataset(
        "parquet",
        data_files=f"{source.url}/data/*.parquet",
        split="train",
        streaming=True,
        columns=list(COLUMNS),
        storage_options=source.storage_options,
        cache_dir=str(source.cache),
    )
    return _batches(dataset, source)


def _arrow_files(source: Source) -> IterableDataset:
    dataset = load_from_disk(source.url, storage_options=source.storage_options)
    assert isinstance(dataset, Dataset)
    return dataset.to_iterable_dataset(num_shards=NUM_SHARDS)


def _batches(dataset: IterableDataset, source: Source) -> Iterable[PackedBatch]:
    shuffled = dataset.with_format("arrow").shuffle(seed=source.seed, buffer_size=SHUFFLED_ROWS)

    def batches() -> Iterator[PackedBatch]:
        info = get_worker_info()  # `iter` gives every worker all rows, unlike iterating row by row
        own = shuffled if info is None else shuffled.shard(info.num_workers, info.id)
        return pack_tables(own.iter(batch_size=PACKED_ROWS), seed=source.seed)

    return loader(batches, source.num_workers)


FORMATS = {"arrow": write_arrow}
VARIANTS = {"mapped": (mapped, "arrow"), "streamed": (streamed, "parts"), "rows": (rows, "arrow")}
