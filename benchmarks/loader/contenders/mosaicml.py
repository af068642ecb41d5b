"""MosaicML Streaming: MDS shards of byte columns, shuffled by its default algorithm."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from types import ModuleType

import boto3  # noqa: F401  what the first download would import within the clock
import numpy as np

from benchmarks.loader.packing import PACKED_ROWS, Row, Source, loader, pack_rows, rows_of
from tatok.dataset.batches import PackedBatch
from tatok.dataset.parts import TokenizedData

# `import streaming` wants these for its image datasets and its DataLoader, which are not used here; torchvision has no
# build that fits a CPU-only torch. Empty classes of these names will do.
_NOT_NEEDED = {
    "torchvision.datasets": ("VisionDataset", "CIFAR10"),
    "torchvision.transforms.functional": ("to_tensor",),
    "transformers.feature_extraction_utils": ("BatchFeature",),
    "transformers.models.auto.tokenization_auto": ("AutoTokenizer",),
    "transformers.tokenization_utils_base": ("BatchEncoding",),
}
for _path, _names in _NOT_NEEDED.items():
    _package = _path.split(".")
    for _end in range(1, len(_package) + 1):
        sys.modules.setdefault(".".join(_package[:_end]), ModuleType(".".join(_package[:_end])))
    for _name in _names:
        setattr(sys.modules[_path], _name, type(_name, (), {}))

from streaming import MDSWriter, StreamingDataset  # noqa: E402

__all__ = ["FORMATS", "VARIANTS"]

SHARD_BYTES = 8 << 20  # its default of 64 MiB would leave a dataset of this size one or two shards


def write_mds(data: TokenizedData, folder: Path) -> None:
    """Bytes rather than arrays: no header a value, and a row without patches can be stored."""
    columns = {"tokens": "bytes", "positions": "bytes", "num_global": "int"}
    with MDSWriter(out=str(folder), columns=columns, size_limit=SHARD_BYTES) as writer:
        for part in data.parts:
            for row in rows_of(data, part.name):
                writer.write(
                    {
                        "tokens": row.tokens.tobytes(),
                        "positions": row.places.tobytes(),
                        "num_global": row.num_global,
                    }
                )


def shards(source: Source) -> Iterable[PackedBatch]:
    """Read in place on a disk; from a bucket, each shard is downloaded before it is read."""
    where = {"local": source.url} if source.endpoint_url is None else {"remote": source.url, "local": str(source.cache)}
    dataset = StreamingDataset(**where, shuffle=True, shuffle_seed=source.seed, batch_size=PACKED_ROWS)

    def rows() -> Iterator[Row]:
        for sample in dataset:
            tokens, places = (np.frombuffer(sample[name], dtype=np.uint16) for name in ("tokens", "positions"))
            yield Row(tokens, places, sample["num_global"])

    return loader(lambda: pack_rows(rows(), seed=source.seed), source.num_workers)


FORMATS = {"mds": write_mds}
VARIANTS = {"shards": (shards, "mds")}
