"""LitData: what `optimize` writes of numpy arrays, decoded in windows of 256 rows, as is its default.

Its TokensLoader cuts one long run of tokens into blocks of a fixed size, and so cannot hold rows of varying length.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import boto3  # noqa: F401  what the first download would import within the clock
import litdata.streaming.downloader
import obstore  # noqa: F401
from litdata import StreamingDataset, optimize

from benchmarks.loader.packing import PACKED_ROWS, Row, Source, loader, pack_rows, rows_of
from tatok.dataset.batches import PackedBatch
from tatok.dataset.parts import TokenizedData

__all__ = ["FORMATS", "VARIANTS"]

# It builds its obstore client without leave to speak plain HTTP, and offers no setting for it; the server is local.
litdata.streaming.downloader._OBSTORE_CLIENT_OPTIONS["allow_http"] = True

CHUNK_BYTES = 8 << 20  # its guide's 64 MB would leave a dataset of this size one or two chunks


def write_chunks(data: TokenizedData, folder: Path) -> None:
    """Chunks of rows, each a flat dictionary of two arrays and a number."""
    names = [part.name for part in data.parts]
    optimize(
        partial(_samples, data),
        inputs=names,
        output_dir=str(folder),
        chunk_bytes=CHUNK_BYTES,
        num_workers=1,
        keep_data_ordered=True,
        verbose=False,
    )


def _samples(data: TokenizedData, part: str) -> Iterator[dict[str, Any]]:
    for row in rows_of(data, part):
        yield {"tokens": row.tokens, "positions": row.places, "num_global": row.num_global}


def chunks(source: Source) -> Iterable[PackedBatch]:
    """Mapped in place on a disk; from a bucket, each chunk is downloaded before it is read."""
    dataset = StreamingDataset(
        source.url,
        cache_dir=str(source.cache),
        shuffle=True,
        seed=source.seed,
        storage_options=source.storage_options,
    )
    # What its own StreamingDataLoader sets.
    dataset.set_num_workers(source.num_workers)
    dataset.set_batch_size(PACKED_ROWS)

    def rows() -> Iterator[Row]:
        for sample in dataset:
            yield Row(sample["tokens"], sample["positions"], sample["num_global"])

    return loader(lambda: pack_rows(rows(), seed=source.seed), source.num_workers)


FORMATS = {"litdata": write_chunks}
VARIANTS = {"chunks": (chunks, "litdata")}
