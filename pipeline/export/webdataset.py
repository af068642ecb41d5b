"""Export to WebDataset: tars of token arrays and JSON, for pipelines that stream tars."""

from __future__ import annotations

import io
import json
import re
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.types as pt

from tatok.pipeline.export.base import Export, ExportSummary, index_text, list_values, read_slices
from tatok.pipeline.export.merge import OnRows

__all__ = ["INDEX", "export_webdataset"]

INDEX = "index.json"
_NOT_EXPORTED = ("patch_entropy_bits", "patch_worth_bits")  # for heat maps; each is larger than the tokens
_UNSAFE = re.compile(r"[^A-Za-z0-9_-]+")
_JSON = json.JSONEncoder(ensure_ascii=False)
_MAX_KEY_CHARACTERS = 48  # ustar names hold 100 bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class _Sample:
    key: str
    tokens: np.ndarray
    positions: np.ndarray
    document: dict[str, Any]


def export_webdataset(
    export: Export,
    *,
    shard_bytes: int = 256_000_000,
    shard_rows: int | None = None,
    on_rows: OnRows = lambda num_rows: None,
) -> ExportSummary:
    """Write tokens-000000.tar, tokens-000001.tar, ..., then index.json.

    A sample is <key>.tokens.npy and <key>.positions.npy (integer vectors, no pickles) and <key>.json: every other
    column by its name, but for `patch_entropy_bits` and `patch_worth_bits`. Its key is the row's number and the
    source's key, without the characters that WebDataset splits at; the source's key itself is in the JSON. A tar is
    closed at `shard_bytes`, or at `shard_rows` samples.
    """
    samples = _samples(export, on_rows)
    shards: list[dict[str, Any]] = []
    sample = next(samples, None)
    for number in count():
        if sample is None:
            break
        name = f"tokens-{number:06}.tar"
        with export.scratch_file() as path:
            num_samples, sample = _write_tar(path, sample, samples, shard_bytes, shard_rows)
            shards.append({"url": name, "nsamples": num_samples, "filesize": path.stat().st_size})
            export.publish(path, name)
    # The layout that the `wids` package reads for random access.
    index = {"__kind__": "wids-shard-index-v1", "wids_version": 1, "name": "tokens", "shardlist": shards}
    return export.finish(INDEX, index_text(index | {"tatok": export.describe()}))


def _write_tar(
    path: Path, first: _Sample, rest: Iterator[_Sample], max_bytes: int, max_samples: int | None
) -> tuple[int, _Sample | None]:
    # Returns how many samples went in, and the one that did not any more.
    num_samples = num_bytes = 0
    sample: _Sample | None = first
    with path.open("wb") as tar:
        while sample is not None and (num_samples == 0 or num_bytes < max_bytes):
            for name, data in (
                (f"{sample.key}.tokens.npy", _npy(sample.tokens)),
                (f"{sample.key}.positions.npy", _npy(sample.positions)),
                (f"{sample.key}.json", _JSON.encode(sample.document).encode()),
            ):
                num_bytes += tar.write(_header(name, len(data)) + data + bytes(-len(data) % tarfile.BLOCKSIZE))
            num_samples += 1
            sample = next(rest, None)
            if num_samples == max_samples:
                break
        tar.write(bytes(2 * tarfile.BLOCKSIZE))
    return num_samples, sample


def _samples(export: Export, on_rows: OnRows) -> Iterator[_Sample]:
    columns = [name for name in export.data.schema.names if name not in _NOT_EXPORTED]
    row = 0
    for table in read_slices(export.data, columns):
        tokens, token_offsets = list_values(table.column("tokens"))
        positions, position_offsets = list_values(table.column("positions"))
        documents = _json_ready(table.drop_columns(["tokens", "positions"])).to_pylist()
        for i, document in enumerate(documents):
            yield _Sample(
                key=f"{row:09}-{_UNSAFE.sub('_', document['key'])[:_MAX_KEY_CHARACTERS]}",
                tokens=tokens[token_offsets[i] : token_offsets[i + 1]],
                positions=positions[position_offsets[i] : position_offsets[i + 1]],
                document=document,
            )
            row += 1
        on_rows(len(table))


def _json_ready(table: pa.Table) -> pa.Table:
    # JSON knows neither NaN nor infinity.
    for index, field in enumerate(table.schema):
        if pt.is_floating(field.type):
            column = table.column(index)
            table = table.set_column(index, field.name, pc.if_else(pc.is_finite(column), column, None))
    return table


def _npy(values: np.ndarray) -> bytes:
    return _npy_header(values.dtype.str, len(values)) + values.tobytes()


@lru_cache(maxsize=8192)
def _npy_header(dtype: str, length: int) -> bytes:
    buffer = io.BytesIO()
    np.lib.format.write_array_header_1_0(buffer, {"descr": dtype, "fortran_order": False, "shape": (length,)})
    return buffer.getvalue()


# A ustar header of a plain file of time 0 and owner 0, without name, size and checksum. The tarfile module takes
# longer over a header than all else takes over a sample, and here all headers are alike.
_BLANK = bytearray(tarfile.TarInfo().tobuf(tarfile.USTAR_FORMAT))
_SIZE, _CHECKSUM = slice(124, 135), slice(148, 156)
_BLANK[_CHECKSUM] = b" " * 8
_BLANK_SUM = sum(_BLANK) - sum(_BLANK[_SIZE])


def _header(name: str, num_bytes: int) -> bytes:
    header = bytearray(_BLANK)
    encoded, size = name.encode("ascii"), b"%011o" % num_bytes
    header[: len(encoded)] = encoded
    header[_SIZE] = size
    header[_CHECKSUM] = b"%06o\0 " % (_BLANK_SUM + sum(encoded) + sum(size))
    return bytes(header)
