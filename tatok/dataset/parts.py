"""A tokenized dataset where it lies, on a disk or in a bucket: its parts, their rows, how it was made."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import lru_cache
from os import PathLike, fspath
from typing import Any, Literal, cast

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from fsspec.spec import AbstractFileSystem

from tatok.schemas.errors import ConfigError, SourceError, TatokError
from tatok.schemas.manifest import (
    LAYOUT,
    LAYOUT_0_2,
    SUCCESS,
    Layout,
    Manifest,
    Part,
    RunDocument,
    RunRecord,
    layout_of,
)
from tatok.schemas.records import LeftOut, count_text
from tatok.schemas.tokens import FOOTER_FINGERPRINT, FOOTER_SCHEMA_VERSION
from tatok.schemas.urls import filesystem_of

__all__ = ["TokenizedData", "numbers"]

NUM_READERS = 16
_TAIL_BYTES = 64 << 10
_MAX_GAP_BYTES = 64 << 10  # a second request costs more than reading over such a gap
_WHOLE_BYTES = 4 << 20  # of a part that is fetched in one request: a second one takes as long as some MB


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenizedData:
    """The published parts of one dataset, as they were when it was opened; pickles and forks by its URL.

    `parts` are in the order of their names, which is the dataset's canonical order of rows. `complete` says
    whether the last run finished. Parts never change once published, so that reading stays right while a run adds more.
    """

    url: str
    parts: tuple[Part, ...]
    complete: bool
    run: RunDocument
    left_out_of_source: Mapping[LeftOut, int] = field(default_factory=dict)
    layout: Layout = LAYOUT

    @staticmethod
    def open(url: str | PathLike[str]) -> TokenizedData:
        """Read the manifest where the last run finished; else list the parts and read the footers of the new ones.

        Raises SourceError where there is no dataset, it holds a file that is not a part, or two versions of tatok
        wrote into it; ConfigError where the URL's scheme has no fsspec backend.
        """
        text = fspath(url)
        try:
            fs, root = filesystem_of(text)
        except (ImportError, ValueError) as error:
            raise ConfigError(f"cannot read {text!r}: {error}; install the scheme's fsspec package") from error
        address = root if _is_local(fs) else text.rstrip("/")
        layout, texts = _read_documents(fs, root, address)
        run = texts.get(layout.run)
        complete = SUCCESS in texts
        manifest = Manifest.from_json(texts.get(layout.manifest, ""))
        if not complete or manifest is None:
            manifest = _list_parts(fs, root, manifest, address)
        if run is None and not manifest.parts:
            raise SourceError(f"{address} holds no tokenized dataset (no {layout.run}, no data/part-*.parquet)")
        of_run = f"{address}/{layout.run}"
        return TokenizedData(
            url=address,
            parts=manifest.parts,
            complete=complete,
            run=_run_of_part(fs, root, manifest.parts[0]) if run is None else _parse_run(run, of_run),
            left_out_of_source=manifest.left_out_of_source,
            layout=layout,
        )

    def __repr__(self) -> str:
        state = "complete" if self.complete else "not complete"
        return (
            f"TokenizedData({self.url}: {count_text(len(self.parts), 'part')}, "
            f"{count_text(self.num_rows, 'row')}, {state})"
        )

    @property
    def left_out(self) -> Mapping[LeftOut, int]:
        """What was not taken as a sample -> count: of the source, as last planned, and of the archives in all parts."""
        return Manifest(parts=self.parts, left_out_of_source=self.left_out_of_source).left_out

    @property
    def is_local(self) -> bool:
        """Whether the dataset lies on a disk of this machine."""
        return _is_local(self._fs)

    @property
    def num_rows(self) -> int:
        """Images and clips in all parts."""
        return sum(part.num_rows for part in self.parts)

    @property
    def num_tokens(self) -> int:
        """Tokens in all parts."""
        return sum(part.num_tokens for part in self.parts)

    @property
    def vocab_size(self) -> int:
        """Codes are in 0 .. vocab_size - 1; global and patch codes have a codebook each."""
        return int(self.run.fingerprint["vocab_size"])

    @property
    def schema(self) -> pa.Schema:
        """The columns of the token table. Raises SourceError where no part is published yet."""
        if not self.parts:
            raise SourceError(f"{self.url} has no parts yet; wait for the first shard, or look at its rejects")
        return self.footer(self.parts[0].name).schema.to_arrow_schema()

    def path(self, name: str, folder: Literal["data", "rejects"] = "data") -> str:
        """Where a part or its rejects lie, with the scheme; a plain path on a disk."""
        return f"{self.url}/{f'data/{name}' if folder == 'data' else self.layout.rejects_of(name)}"

    def footer(
        self, name: str, folder: Literal["data", "rejects"] = "data", *, num_bytes: int | None = None
    ) -> pq.FileMetaData:
        """A part's footer; a bucket's are remembered for the life of the process. Knowing `num_bytes` saves a request.

        Raises SourceError where it cannot be read.
        """
        path = self.path(name, folder)
        return _read_footer(path) if self.is_local else _footer(path, num_bytes)

    def read(
        self,
        name: str,
        *,
        columns: Sequence[str] | None = None,
        row_groups: Sequence[int] | None = None,
        folder: Literal["data", "rejects"] = "data",
        num_bytes: int | None = None,
        wants_most: bool = False,
    ) -> pa.Table:
        """Some columns of some row groups of a part (default: all), fetching no others; see `footer`.

        With `wants_most` a small part of a bucket is fetched as a whole if its `num_bytes` is known, instead of its
        footer first.

        Raises SourceError, which names the part, where it cannot be read; ConfigError where a column is missing.
        """
        path, names = self.path(name, folder), None if columns is None else list(columns)
        try:
            if self.is_local:
                with pa.memory_map(path) as source, pq.ParquetFile(source) as file:
                    return _read_row_groups(file, path, names, row_groups)
            if wants_most and num_bytes is not None and num_bytes <= _WHOLE_BYTES:
                with pa.BufferReader(_fetch_whole(path, num_bytes)) as source, pq.ParquetFile(source) as file:
                    return _read_row_groups(file, path, names, row_groups)
            footer = _footer(path, num_bytes)
            with (
                pa.BufferReader(self._fetch(path, footer, names, row_groups)) as source,
                pq.ParquetFile(source, metadata=footer) as file,
            ):
                return _read_row_groups(file, path, names, row_groups)
        except TatokError:
            raise
        except Exception as error:  # every fsspec backend has exceptions of its own
            raise SourceError(f"cannot read {path}: {error}") from error

    def read_all(
        self, columns: Sequence[str] | None = None, *, folder: Literal["data", "rejects"] = "data"
    ) -> pa.Table:
        """Some columns of every part, in canonical order; the whole table is held in memory."""
        with ThreadPoolExecutor(max_workers=NUM_READERS) as pool:
            tables = list(pool.map(lambda part: self.read(part.name, columns=columns, folder=folder), self.parts))
        if not tables:
            raise SourceError(f"{self.url} has no parts yet; wait for the first shard")
        return pa.concat_tables(tables)

    def runs(self) -> tuple[RunRecord, ...]:
        """The records of finished runs, oldest first."""
        fs, root = filesystem_of(self.url)
        runs = self.layout.runs
        names = sorted(name for name in _list(fs, f"{root}/{runs}") if name.endswith(".json"))
        found = _read_texts(fs, f"{root}/{runs}", names)
        try:
            return tuple(RunRecord.from_json(_known(found[name]) or "") for name in names)
        except ValueError as error:
            raise SourceError(f"{self.url}/{runs} holds a file that tatok did not write: {error}") from error

    @property
    def _fs(self) -> AbstractFileSystem:
        return filesystem_of(self.url)[0]  # never kept: fsspec gives a forked process an instance of its own

    def _fetch(
        self, path: str, footer: pq.FileMetaData, columns: list[str] | None, row_groups: Sequence[int] | None
    ) -> pa.Buffer:
        """The file with all bytes but those of the wanted column chunks left zero (and so, without memory)."""
        ranges: list[list[int]] = []
        for start, stop in sorted(_chunk_ranges(footer, columns, row_groups)):
            if ranges and start - ranges[-1][1] <= _MAX_GAP_BYTES:
                ranges[-1][1] = max(ranges[-1][1], stop)
            else:
                ranges.append([start, stop])
        fs, plain = filesystem_of(path)
        starts, stops = [start for start, _ in ranges], [stop for _, stop in ranges]
        image = np.zeros(max(stops, default=0), dtype=np.uint8)
        blocks = fs.cat_ranges([plain] * len(ranges), starts, stops, on_error="raise")
        for start, stop, block in zip(starts, stops, blocks, strict=True):
            if len(block) != stop - start:
                raise SourceError(f"{path} ends early: {len(block)} bytes at {start}, expected {stop - start}")
            image[start:stop] = np.frombuffer(block, dtype=np.uint8)
        return pa.py_buffer(image)


def _fetch_whole(path: str, num_bytes: int) -> bytes:
    fs, plain = filesystem_of(path)
    content: bytes = fs.cat_file(plain, start=0, end=num_bytes)
    if len(content) != num_bytes:
        raise SourceError(f"{path} ends early: it has {len(content)} bytes, expected {num_bytes}")
    return content


def numbers(column: pa.ChunkedArray | pa.Array) -> np.ndarray:
    """A column of numbers as an array that cannot be written to; nulls, which only floats may have, are NaN.

    `to_numpy` would load pandas where it is installed, which takes a quarter of a second; so it is left to nulls.
    """
    whole = column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column
    if whole.null_count and pa.types.is_floating(whole.type):
        return whole.to_numpy(zero_copy_only=False)
    return np.from_dlpack(whole)


def _read_row_groups(
    file: pq.ParquetFile, path: str, columns: list[str] | None, row_groups: Sequence[int] | None
) -> pa.Table:
    if columns is not None:
        missing = set(columns) - set(file.schema_arrow.names)
        if missing:
            raise ConfigError(f"{path} has no column {', '.join(sorted(missing))}")
    chosen = range(file.num_row_groups) if row_groups is None else row_groups
    return file.read_row_groups(list(chosen), columns=columns, use_threads=False)


def _chunk_ranges(
    footer: pq.FileMetaData, columns: list[str] | None, row_groups: Sequence[int] | None
) -> Iterator[tuple[int, int]]:
    for number in range(footer.num_row_groups) if row_groups is None else row_groups:
        group = footer.row_group(number)
        for index in range(group.num_columns):
            chunk = group.column(index)
            if columns is None or chunk.path_in_schema.partition(".")[0] in columns:
                start = chunk.data_page_offset
                if chunk.dictionary_page_offset is not None:
                    start = min(start, chunk.dictionary_page_offset)
                yield start, start + chunk.total_compressed_size


def _is_local(fs: AbstractFileSystem) -> bool:
    return "file" in _protocols(fs)


def _protocols(fs: AbstractFileSystem) -> tuple[str, ...]:
    return (fs.protocol,) if isinstance(fs.protocol, str) else tuple(fs.protocol)


def _read_documents(fs: AbstractFileSystem, root: str, url: str) -> tuple[Layout, dict[str, str]]:
    """The layout of a dataset's folder, and the texts of its documents that are there, all asked for at once."""
    layouts = (LAYOUT, LAYOUT_0_2)
    found = _read_texts(fs, root, (SUCCESS, *(name for each in layouts for name in (each.run, each.manifest))))
    names = {name for name, text in found.items() if isinstance(text, str)}
    if not any(each.run in names or each.manifest in names for each in layouts):
        # Whoever deleted them has left the folder of rejects, as a rule.
        names |= {entry["name"].rstrip("/").rpartition("/")[2] for entry in _entries(fs, root)}
    layout = layout_of(names, url)
    if layout.run in names:
        # A store that one may not list says "forbidden" of what is not there.
        other = LAYOUT_0_2 if layout == LAYOUT else LAYOUT
        found = {name: text for name, text in found.items() if name not in (other.run, other.manifest)}
    texts = {name: _known(text) for name, text in found.items()}
    return layout, {name: text for name, text in texts.items() if text is not None}


_Text = str | None | SourceError
"""A file's text; None where there is no such file; or why it cannot be read."""


def _known(text: _Text) -> str | None:
    if isinstance(text, SourceError):
        raise text
    return text


def _read_texts(fs: AbstractFileSystem, folder: str, names: Sequence[str]) -> dict[str, _Text]:
    paths = [f"{folder}/{name}" for name in names]
    # All together, as a bucket wants it; `cat` would take brackets in a name for a pattern.
    whole: list[None] = [None] * len(paths)
    # s3fs would ask for the size of each before, to fetch a large one in pieces.
    options = {"max_concurrency": 1} if "s3" in _protocols(fs) else {}
    found = fs.cat_ranges(paths, whole, whole, on_error="return", **options) if names else []
    texts: dict[str, _Text] = {}
    for name, content in zip(names, found, strict=True):
        if isinstance(content, FileNotFoundError | NotADirectoryError):
            texts[name] = None
        elif isinstance(content, Exception):
            error = SourceError(f"cannot read {fs.unstrip_protocol(folder)}/{name}: {content}")
            error.__cause__ = content
            texts[name] = error
        else:
            texts[name] = content.decode("utf-8")
    return texts


def _list(fs: AbstractFileSystem, folder: str) -> dict[str, int]:
    """The files of a folder, and their sizes."""
    entries = _entries(fs, folder)
    return {entry["name"].rpartition("/")[2]: int(entry["size"] or 0) for entry in entries if entry["type"] == "file"}


def _entries(fs: AbstractFileSystem, folder: str) -> Sequence[Mapping[str, Any]]:
    fs.invalidate_cache()
    try:
        return cast("Sequence[Mapping[str, Any]]", fs.ls(folder, detail=True))
    except (FileNotFoundError, NotADirectoryError):
        return ()
    except Exception as error:  # every fsspec backend has exceptions of its own
        raise SourceError(f"cannot list {fs.unstrip_protocol(folder)}: {error}") from error


def _list_parts(fs: AbstractFileSystem, root: str, manifest: Manifest | None, url: str) -> Manifest:
    sizes = {name: size for name, size in _list(fs, f"{root}/data").items() if name.endswith(".parquet")}
    known = {part.name: part for part in (manifest.parts if manifest else ()) if sizes.get(part.name) == part.num_bytes}

    def part_of(name: str) -> Part:
        footer = _read_footer(f"{url}/data/{name}")
        try:
            return Part.of_footer(name, footer, num_bytes=sizes[name], checksum="")
        except (KeyError, TypeError, ValueError) as error:
            raise SourceError(f"{url}/data/{name} is not a part that tatok wrote ({error!r}); move it away") from error

    with ThreadPoolExecutor(max_workers=NUM_READERS) as pool:
        known |= {part.name: part for part in pool.map(part_of, sorted(sizes.keys() - known.keys()))}
    return Manifest(
        parts=tuple(known[name] for name in sorted(known)),
        left_out_of_source=manifest.left_out_of_source if manifest else {},
    )


def _read_footer(path: str, num_bytes: int | None = None) -> pq.FileMetaData:
    fs, plain = filesystem_of(path)
    try:
        if num_bytes is not None and (footer := _footer_in_tail(fs, plain, num_bytes)) is not None:
            return footer
        # One small read from the end holds the whole footer, as a rule.
        with fs.open(plain, "rb", cache_type="readahead", block_size=_TAIL_BYTES) as file:
            return pq.read_metadata(file)
    except (OSError, pa.ArrowException) as error:
        raise SourceError(f"{path} cannot be read as Parquet: {error}; delete it and run the job again") from error
    except Exception as error:  # every fsspec backend has exceptions of its own
        raise SourceError(f"cannot read {path}: {error}") from error


def _footer_in_tail(fs: AbstractFileSystem, path: str, num_bytes: int) -> pq.FileMetaData | None:
    """The footer by one request for the file's end; None where it is longer than that."""
    start = max(num_bytes - _TAIL_BYTES, 0)
    tail = fs.cat_file(path, start=start, end=num_bytes)
    if len(tail) != num_bytes - start or int.from_bytes(tail[-8:-4], "little") + 8 > len(tail):
        return None
    image = np.zeros(num_bytes, dtype=np.uint8)  # memory only for the pages written to
    image[start:] = np.frombuffer(tail, dtype=np.uint8)
    return pq.read_metadata(pa.BufferReader(image))


_footer = lru_cache(maxsize=4096)(_read_footer)


def _parse_run(text: str, address: str) -> RunDocument:
    try:
        return RunDocument.from_json(text)
    except ValueError as error:
        raise SourceError(f"{address} cannot be understood: {error}") from error


def _run_of_part(fs: AbstractFileSystem, root: str, part: Part) -> RunDocument:
    # The document may have been deleted; the parts still know how they were made.
    metadata = _read_footer(fs.unstrip_protocol(f"{root}/data/{part.name}")).metadata or {}
    return RunDocument(
        schema_version=metadata[FOOTER_SCHEMA_VERSION.encode()].decode(),
        fingerprint=json.loads(metadata[FOOTER_FINGERPRINT.encode()]),
        config={},
    )
