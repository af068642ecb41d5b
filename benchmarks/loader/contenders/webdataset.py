"""WebDataset: tars, a sample a row, with its own shard and sample shuffling.

Two ways, the quicker is taken: .npy members that it decodes, and one member of raw bytes a row, which is the least that
its format can be asked to do.
"""

from __future__ import annotations

import io
import tarfile
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import webdataset
from webdataset.gopen import gopen_schemes

from benchmarks.loader.packing import PACKED_ROWS, SHUFFLED_ROWS, Row, Source, loader, pack_rows, rows_of
from tatok.dataset.batches import PackedBatch
from tatok.dataset.parts import TokenizedData

__all__ = ["FORMATS", "VARIANTS"]


def write_npy(data: TokenizedData, folder: Path) -> None:
    """A tar a part; a row is <key>.tokens.npy, <key>.positions.npy and <key>.globals.npy."""

    def npy(array: np.ndarray) -> bytes:
        buffer = io.BytesIO()
        np.save(buffer, array)
        return buffer.getvalue()

    def members(row: Row) -> Iterator[tuple[str, bytes]]:
        yield "tokens.npy", npy(row.tokens)
        yield "positions.npy", npy(row.places)
        yield "globals.npy", npy(np.array(row.num_global))

    _write(data, folder, members)


def write_bytes(data: TokenizedData, folder: Path) -> None:
    """A tar a part; a row is <key>.bin: uint16 number of globals, number of tokens, tokens, positions."""

    def members(row: Row) -> Iterator[tuple[str, bytes]]:
        head = np.array([row.num_global, len(row.tokens)], dtype=np.uint16)
        yield "bin", b"".join((head.tobytes(), row.tokens.tobytes(), row.places.tobytes()))

    _write(data, folder, members)


def npy_members(source: Source) -> Iterable[PackedBatch]:
    """Arrays, decoded by WebDataset."""

    def row(sample: dict[str, Any]) -> Row:
        return Row(sample["tokens.npy"], sample["positions.npy"], int(sample["globals.npy"]))

    return _batches(source, row, decode=True)


def byte_members(source: Source) -> Iterable[PackedBatch]:
    """Views into one member's bytes."""

    def row(sample: dict[str, Any]) -> Row:
        values = np.frombuffer(sample["bin"], dtype=np.uint16)
        stop = 2 + int(values[1])
        return Row(values[2:stop], values[stop:], int(values[0]))

    return _batches(source, row, decode=False)


def _batches(source: Source, row: Callable[[dict[str, Any]], Row], *, decode: bool) -> Iterable[PackedBatch]:
    # Its way to read another scheme is to add an opener.
    gopen_schemes["s3"] = lambda url, *_, **__: fsspec.open(url, "rb", **source.storage_options).open()
    fs, root = fsspec.core.url_to_fs(source.url, **source.storage_options)
    urls = sorted(name if source.endpoint_url is None else f"s3://{name}" for name in fs.glob(f"{root}/*.tar"))
    samples = webdataset.WebDataset(urls, shardshuffle=len(urls), seed=source.seed, empty_check=False)
    samples = samples.shuffle(SHUFFLED_ROWS, initial=PACKED_ROWS, seed=source.seed)
    rows = (samples.decode() if decode else samples).map(row)
    return loader(lambda: pack_rows(rows, seed=source.seed), source.num_workers)


def _write(data: TokenizedData, folder: Path, members: Callable[[Row], Iterator[tuple[str, bytes]]]) -> None:
    folder.mkdir(parents=True)
    for number, part in enumerate(data.parts):
        with tarfile.open(folder / f"part-{number:06}.tar", "w") as tar:
            for index, row in enumerate(rows_of(data, part.name)):
                for name, content in members(row):
                    info = tarfile.TarInfo(f"{index:08}.{name}")
                    info.size = len(content)
                    tar.addfile(info, io.BytesIO(content))


FORMATS = {"tars-npy": write_npy, "tars-bytes": write_bytes}
VARIANTS = {"npy": (npy_members, "tars-npy"), "bytes": (byte_members, "tars-bytes")}
