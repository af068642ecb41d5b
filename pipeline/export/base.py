"""What the exports share: where they read, where they write, and what they report at the end."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from tatok.dataset.parts import TokenizedData
from tatok.pipeline.storage.store import OutputStore
from tatok.schemas.errors import CommitError, SourceError
from tatok.schemas.urls import filesystem_of

__all__ = [
    "Export",
    "ExportSummary",
    "index_text",
    "list_entries",
    "list_values",
    "open_export",
    "read_slices",
    "scratch_file",
]


_SLICE_ROWS = 8192  # whatever is made of the rows at once


@dataclass(frozen=True, slots=True, kw_only=True)
class ExportSummary:
    """What an export wrote; `index` is the file that was written last."""

    url: str
    index: str
    num_files: int
    num_rows: int
    num_tokens: int
    num_bytes: int


@dataclass(slots=True, kw_only=True)
class Export:
    """One export at work: a dataset to read, an empty place to write, and the files that are there by now.

    A file appears under its name when it is whole. The index comes last: without it the export is incomplete.
    """

    data: TokenizedData
    store: OutputStore
    num_files: int = 0
    num_bytes: int = 0

    @contextmanager
    def scratch_file(self) -> Iterator[Path]:
        """A path for a file in the making. Raises CommitError if it cannot be written: a full disk, say."""
        with scratch_file(self.store) as path:
            yield path

    def publish(self, path: Path, name: str) -> None:
        """Give a finished scratch file its name. Raises CommitError if the name is taken."""
        num_bytes = path.stat().st_size
        if not self.store.publish(path, name, create=True):
            raise CommitError(f"{self.store.url}/{name} appeared meanwhile; export into a folder of its own")
        self.num_files += 1
        self.num_bytes += num_bytes

    def finish(self, index: str, text: str) -> ExportSummary:
        """Write the index, which makes the export complete."""
        with self.scratch_file() as path:
            path.write_text(text, encoding="utf-8")
            self.publish(path, index)
        self.store.sweep_scratch()
        return ExportSummary(
            url=self.store.url,
            index=index,
            num_files=self.num_files,
            num_rows=self.data.num_rows,
            num_tokens=self.data.num_tokens,
            num_bytes=self.num_bytes,
        )

    def describe(self) -> dict[str, Any]:
        """What an index says of where its rows come from: counts, the fingerprint, and the parts in order of rows."""
        return {
            "num_rows": self.data.num_rows,
            "num_tokens": self.data.num_tokens,
            "vocab_size": self.data.vocab_size,
            "fingerprint": dict(self.data.run.fingerprint),
            "parts": [{"name": part.name, "num_rows": part.num_rows} for part in self.data.parts],
        }


def open_export(source: str | PathLike[str], destination: str, *, allow_incomplete: bool = False) -> Export:
    """Open a dataset, and an empty place to export it to.

    Raises SourceError if the dataset is not complete (unless `allow_incomplete`) or has no parts; CommitError if
    the destination is not empty or cannot be written.
    """
    data = TokenizedData.open(source)
    if not data.complete and not allow_incomplete:
        raise SourceError(
            f"{data.url} is not complete (no _SUCCESS); run its `tatok tokenize` to the end, or use --allow-incomplete"
        )
    if not data.parts:
        raise SourceError(f"{data.url} has no parts yet; there is nothing to export")
    store = OutputStore.open(destination)
    entries = list_entries(store.url)
    if entries:
        raise CommitError(
            f"{store.url} is not empty (it holds {', '.join(entries[:3])}); an export begins anew: "
            "delete what an interrupted one left, or name a new folder"
        )
    return Export(data=data, store=store.probe())


@contextmanager
def scratch_file(store: OutputStore) -> Iterator[Path]:
    """The store's scratch file, whose write errors are CommitErrors; readers' errors have their own kind by then."""
    try:
        with store.scratch_file() as path:
            yield path
    except OSError as error:
        where = store.url if store.is_local else "the local temporary folder"
        raise CommitError(
            f"cannot write a file for {store.url}: {error}; free space in {where}, then begin again"
        ) from error


def list_entries(url: str) -> list[str]:
    """Names of the files and folders at a place, in order; empty where there is no such place.

    Raises CommitError if it cannot be listed or is a file.
    """
    fs, root = filesystem_of(url)
    fs.invalidate_cache()
    try:
        if fs.isfile(root):
            raise CommitError(f"{url} is a file; name a folder")
        entries = fs.ls(root, detail=False)
    except FileNotFoundError:
        return []
    except OSError as error:
        raise CommitError(f"cannot list {url}: {error}; check the path and your permissions") from error
    names = {entry.rstrip("/").rpartition("/")[2] for entry in entries if entry.rstrip("/") != root.rstrip("/")}
    return sorted(names - {".tmp"})  # scratch files


def read_slices(data: TokenizedData, columns: Sequence[str] | None = None) -> Iterator[pa.Table]:
    """Every row of the dataset in canonical order, a few thousand at a time; one row group is held in memory."""
    for part in data.parts:
        for number in range(len(part.row_group_rows)):
            table = data.read(part.name, columns=columns, row_groups=[number])
            for first in range(0, len(table), _SLICE_ROWS):
                yield table.slice(first, _SLICE_ROWS)


def list_values(column: pa.ChunkedArray) -> tuple[np.ndarray, np.ndarray]:
    """A list column as (values [total], offsets int64 [rows + 1]): row i is values[offsets[i] : offsets[i + 1]]."""
    lists = pa.concat_arrays(column.chunks)
    offsets = lists.offsets.to_numpy().astype(np.int64)
    return lists.values.to_numpy()[offsets[0] : offsets[-1]], offsets - offsets[0]


def index_text(document: Mapping[str, object]) -> str:
    """The text of a JSON index."""
    return json.dumps(document, indent=1, sort_keys=True) + "\n"
