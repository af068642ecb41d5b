"""Daft: its own readers, a batch function that decodes, a class that holds the model, Parquet.

Photos come as its guides on images have them, by `from_glob_path` and `download`, from files; or from tars by
`read_webdataset`, which hangs where it reads two tars at a time (docs/results/peers.md), so it is told not to.
"""

from __future__ import annotations

from pathlib import PurePath
from typing import Any

import daft
import numpy as np
import pyarrow as pa
from daft import DataType
from daft.functions import download

from benchmarks.peers.work import SCHEMA, Task, pixels_of, token_table, tokenize

__all__ = ["VARIANTS", "run", "start"]

VARIANTS = ("files", "files, model in a process", "files, both in processes", "tars")

_ROW = DataType.from_arrow_type(pa.struct(list(SCHEMA)))


def start(task: Task) -> None:
    """The native runner, on this machine."""
    daft.set_runner_native(num_threads=task.num_cpus)


def run(task: Task, variant: str) -> dict[str, float]:
    """Daft's own image functions resize by other filters, so pixels come as those of the others do."""
    size = task.image_size

    @daft.func.batch(
        return_dtype=DataType.tensor(DataType.uint8(), shape=(3, size, size)),
        batch_size=task.batch_size,
        use_process="both" in variant,
    )
    def decode(payloads: Any) -> Any:
        return np.stack([pixels_of(_content(payload), task) for payload in payloads.to_pylist()])

    @daft.func.batch(return_dtype=DataType.string(), batch_size=task.batch_size)
    def key_of(paths: Any) -> list[str]:
        return [PurePath(path).stem for path in paths.to_pylist()]

    model = daft.cls(_Tokenize, max_concurrency=1, use_process="process" in variant)(task)
    if variant == "tars":
        daft.set_execution_config(scantask_max_parallel=1)
        photos = daft.read_webdataset(list(task.shards))
        decoded = photos.select(photos["__key__"].alias("key"), decode(photos["jpg"]).alias("pixels"))
    else:
        files = daft.from_glob_path(f"{task.folder}/*/*.jpg")
        decoded = files.select(key_of(files["path"]).alias("key"), decode(download(files["path"])).alias("pixels"))
    decoded.select(model.tokens(decoded["key"], decoded["pixels"])).write_parquet(task.output)
    return {}


def _content(payload: Any) -> bytes:
    if isinstance(payload, bytes):
        return payload
    with payload.open() as stream:
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
