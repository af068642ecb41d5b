"""Hugging Face `datasets`: its WebDataset loader, `map` with batches, Parquet."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow as pa

from benchmarks.peers.work import SCHEMA, Task, pixels_of, token_table, tokenize

__all__ = ["VARIANTS", "run", "start"]

VARIANTS = ("map", "map, 2 processes")


def start(task: Task) -> None:
    """Quiet; nothing to start."""
    datasets.disable_progress_bars()


def run(task: Task, variant: str) -> dict[str, float]:
    """`map` caches what it makes, as it always does; the cache is new."""
    output = Path(task.output)
    output.mkdir(parents=True)
    num_proc = 2 if "2" in variant else None
    photos = datasets.load_dataset(
        "webdataset",
        data_files={"train": list(task.shards)},
        split="train",
        cache_dir=str(output.with_suffix(".cache")),
    )
    photos = photos.select_columns(["__key__", "jpg"])
    if task.decoder != "pillow":
        photos = photos.cast_column("jpg", datasets.Image(decode=False))
    step = partial(_tokens, task=task, num_threads=task.num_cpus // (num_proc or 1))
    tokens = photos.map(
        step,
        batched=True,
        batch_size=task.batch_size,
        remove_columns=["__key__", "jpg"],
        features=datasets.Features.from_arrow_schema(SCHEMA),
        num_proc=num_proc,
    )
    tokens.to_parquet(output / "tokens.parquet")
    return {}


_tokenizers: dict[int, Any] = {}  # one a process; `map` has no place for a model


def _tokens(batch: dict[str, list[Any]], task: Task, num_threads: int) -> pa.Table:
    if num_threads not in _tokenizers:
        _tokenizers[num_threads] = task.load_for_threads(num_threads)
    pixels_BCHW = np.stack(
        [pixels_of(image["bytes"] if isinstance(image, dict) else image, task) for image in batch["jpg"]]
    )
    return token_table(batch["__key__"], tokenize(_tokenizers[num_threads], pixels_BCHW))
