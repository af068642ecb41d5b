"""Ray Data, as its guides on images and batch inference go: read, decode in tasks, a model in an actor, write."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa

import tatok.pipeline.cluster.driver  # noqa: F401  sets Ray's environment before the import below
from benchmarks.peers.work import Task, pixels_of, token_table, tokenize

import ray  # isort: skip
import ray.data  # isort: skip

if TYPE_CHECKING:
    from typing import Any

__all__ = ["VARIANTS", "run", "start"]

VARIANTS = ("batches", "batches, actor of half a CPU", "rows")


def start(task: Task) -> None:
    """A local Ray, as tatok gets one."""
    ray.init(
        address="local", num_cpus=task.num_cpus, include_dashboard=False, logging_level="ERROR", log_to_driver=False
    )


def run(task: Task, variant: str) -> dict[str, float]:
    """`decoder=None`: raw bytes, because the reader's own decoder would decode in the read task and not crop."""
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    photos = ray.data.read_webdataset(list(task.shards), decoder=None, suffixes=["jpg"])
    if variant == "rows":
        decoded = photos.map(partial(_decode_row, task=task))
    else:
        decoded = photos.map_batches(partial(_decode_batch, task=task), batch_size=task.batch_size)
    tokens = decoded.map_batches(
        _Tokenize,
        fn_constructor_args=(task,),
        batch_size=task.batch_size,
        compute=ray.data.ActorPoolStrategy(size=1),
        num_cpus=0.5 if "half" in variant else 1,
    )
    tokens.write_parquet(task.output)
    return {}


def _decode_row(row: dict[str, Any], task: Task) -> dict[str, Any]:
    return {"key": row["__key__"], "pixels": pixels_of(row["jpg"], task)}


def _decode_batch(batch: dict[str, np.ndarray], task: Task) -> dict[str, np.ndarray]:
    return {"key": batch["__key__"], "pixels": np.stack([pixels_of(payload, task) for payload in batch["jpg"]])}


class _Tokenize:
    def __init__(self, task: Task) -> None:
        self._tokenizer = task.load_for_threads()

    def __call__(self, batch: dict[str, np.ndarray]) -> pa.Table:
        pixels_BCHW = np.require(batch["pixels"], requirements="W")  # torch does not like Ray's read-only memory
        return token_table(batch["key"].tolist(), tokenize(self._tokenizer, pixels_BCHW))
