"""Export to MosaicML Streaming: MDS shards of typed columns, for its StreamingDataset."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.types as pt

from tatok.pipeline.export.base import Export, ExportSummary, index_text, list_values, read_slices
from tatok.pipeline.export.merge import OnRows
from tatok.schemas.errors import ConfigError

__all__ = ["INDEX", "LAYOUT", "export_mds", "require_streaming"]

INDEX = "index.json"
LAYOUT = "tatok.json"
_SCALARS = {
    pa.bool_(): "uint8",  # MDS has no booleans
    pa.int32(): "int32",
    pa.int64(): "int64",
    pa.float32(): "float32",
    pa.float64(): "float64",
}
_NOT_EXPORTED = ("patch_entropy_bits", "patch_worth_bits")  # for heat maps; each is larger than the tokens


def require_streaming() -> None:
    """Raises ConfigError, which names the package, where MosaicML Streaming is not installed."""
    try:
        from streaming import MDSWriter  # noqa: F401
    except ImportError as error:
        raise ConfigError(
            f"`tatok export mds` needs MosaicML Streaming ({error}); install it: pip install mosaicml-streaming"
        ) from error


def export_mds(
    export: Export, *, shard_bytes: int = 64_000_000, on_rows: OnRows = lambda num_rows: None
) -> ExportSummary:
    """Write shard.00000.mds, ..., tatok.json, which says the types of the lists, then index.json.

    Columns have their names. Lists are `bytes`, little-endian, since MDS knows no empty array: read them with
    `numpy.frombuffer(sample["tokens"], dtype)`. A missing text is "", a missing number NaN, a missing list
    empty; true is 1. `patch_entropy_bits` and `patch_worth_bits` stay behind.

    Raises ConfigError if MosaicML Streaming is not installed, or `shard_bytes` is beyond its limit of 4 GiB.
    """
    require_streaming()
    from streaming import MDSWriter

    if shard_bytes >= 1 << 32:
        raise ConfigError(f"--shard-size is {shard_bytes:,} bytes; an MDS shard stays below 4 GiB")
    schema = pa.schema([field for field in export.data.schema if field.name not in _NOT_EXPORTED])
    columns = {field.name: _encoding(field) for field in schema}
    dtypes = {
        field.name: np.dtype(field.type.value_type.to_pandas_dtype()).name for field in schema if pt.is_list(field.type)
    }
    with _scratch_folder(export) as folder:
        writer = MDSWriter(out=str(folder), columns=columns, size_limit=shard_bytes)
        for table in read_slices(export.data, schema.names):
            for sample in _samples(table):
                writer.write(sample)
            _publish_shards(export, folder)  # the writer writes a shard in one go: what is there is whole
            on_rows(len(table))
        writer.finish()
        _publish_shards(export, folder)
        layout = {"encodings": columns, "list_dtypes": dtypes, "data_set": export.describe()}
        with export.scratch_file() as path:
            path.write_text(index_text(layout), encoding="utf-8")
            export.publish(path, LAYOUT)
        index = (folder / INDEX).read_text(encoding="utf-8")
    return export.finish(INDEX, index)


@contextmanager
def _scratch_folder(export: Export) -> Iterator[Path]:
    with export.scratch_file() as path:
        path.mkdir()
        try:
            yield path
        finally:
            shutil.rmtree(path, ignore_errors=True)


def _publish_shards(export: Export, folder: Path) -> None:
    for path in sorted(folder.glob("shard.*.mds")):
        export.publish(path, path.name)
        path.unlink(missing_ok=True)


def _encoding(field: pa.Field) -> str:
    if pt.is_list(field.type):
        return "bytes"
    return "str" if pt.is_string(field.type) else _SCALARS[field.type]


def _samples(table: pa.Table) -> Iterator[dict[str, Any]]:
    scalars = table
    for index, field in enumerate(table.schema):
        if pt.is_string(field.type):
            scalars = scalars.set_column(index, field.name, pc.fill_null(table.column(index), ""))
        elif pt.is_floating(field.type):
            scalars = scalars.set_column(index, field.name, pc.fill_null(table.column(index), float("nan")))
        elif pt.is_boolean(field.type):
            scalars = scalars.set_column(index, field.name, table.column(index).cast(pa.uint8()))
    lists = {field.name: list_values(table.column(field.name)) for field in table.schema if pt.is_list(field.type)}
    for i, row in enumerate(scalars.drop_columns(list(lists)).to_pylist()):
        yield row | {name: values[offsets[i] : offsets[i + 1]].tobytes() for name, (values, offsets) in lists.items()}
