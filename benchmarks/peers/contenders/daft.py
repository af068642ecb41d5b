"""Daft: its WebDataset reader, a batch function that decodes, a class that holds the model, Parquet."""

from __future__ import annotations

from typing import Any

import daft
import numpy as np
import pyarrow as pa
from daft import DataType

from benchmarks.peers.work import SCHEMA, Task, pixels_of, token_table, tokenize

__all__ = ["VARIANTS", "run", "start"]

VARIANTS = ("threads", "model in a process", "both in processes")

_ROW = DataType.from_arrow_type(pa.struct(list(SCHEMA)))


def start(task: Task) -> None:
    """The native runner, on this machine."""
    daft.set_runner_native(num_threads=task.num_cpus)


def run(task: Task, variant: str) -> dict[str, float]:
    """Daft's own image functions resize by other filters, so pixels come from Pillow here too."""
    size = task.image_size

    @daft.func.batch(
        return_dtype=DataType.tensor(DataType.uint8(), shape=(3, size, size)),
        batch_size=task.batch_size,
        use_process=variant.startswith("both"),
    )
    def decode(files: Any) -> Any:
        return np.stack([pixels_of(_content(file), size) for file in files.to_pylist()])

    model = daft.cls(_Tokenize, max_concurrency=1, use_process="process" in variant)(task)
    photos = daft.read_webdataset(list(task.shards))
    decoded = photos.select(photos["__key__"].alias("key"), decode(photos["jpg"]).alias("pixels"))
    decoded.select(model.tokens(decoded["key"], decoded["pixels"])).write_parquet(task.output)
    return {}


def _content(file: Any) -> bytes:
    with file.open() as stream:
        return bytes(stream.read())


class _Tokenize:
    def __init__(self, task: Task) -> None:
        self._batch_size = task.batch_size
        self._tokenizer = task.load_for_threads()

    @daft.method.batch(return_dtype=_ROW, unnest=True, batch_size=16)
    def tokens(self, keys: Any, pixels: Any) -> pa.Array:
        """A struct a row."""
        pixels_BCHW = np.array(pixels.to_pylist())
        return token_table(keys.to_pylist(), tokenize(self._tokenizer, pixels_BCHW)).to_struct_array().combine_chunks()
