"""Source patterns -> shards of about equal bytes: large files are split, small ones grouped."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from tatok.pipeline.planning.files import files_with_sidecars
from tatok.pipeline.planning.parquet import split_parquet
from tatok.pipeline.planning.patterns import Expanded, Found, expand_pattern
from tatok.pipeline.planning.tar import may_be_split, split_tar
from tatok.pipeline.planning.uri_lists import listed_files
from tatok.pipeline.readers.file_groups import group_files
from tatok.pipeline.readers.formats import ARCHIVE_FORMATS, format_of
from tatok.pipeline.storage.listing import ListedFile, etag_of, is_local, list_below
from tatok.pipeline.storage.remedies import access_remedy
from tatok.schemas.errors import ConfigError, SourceError
from tatok.schemas.records import LeftOut, Shard, SourceFile, left_out_text
from tatok.schemas.urls import local_path, text_of_path

__all__ = ["ShardSizes", "plan_shards"]

_NUM_READERS = 16  # of footers and headers, at a time
_READ_AHEAD = 1024  # files whose footers and headers are asked for at once


@dataclass(frozen=True, slots=True, kw_only=True)
class ShardSizes:
    """How much goes into a shard. Fixed, because ids depend on it: under other sizes nothing would be found committed.

    `tar_bytes` is a range of a tar that has at least twice as many. `parquet_bytes` and `parquet_rows` bound a range of
    a Parquet file, unless one row group has more. `group_bytes` and `group_files` bound a group of files.
    """

    tar_bytes: int = 1 << 30
    parquet_bytes: int = 256 << 20
    parquet_rows: int = 8192
    group_bytes: int = 256 << 20
    group_files: int = 1024


DEFAULT_SIZES = ShardSizes()


def plan_shards(
    sources: Sequence[str],
    *,
    image_field: str | None = None,
    sizes: ShardSizes = DEFAULT_SIZES,
    left_out: Counter[LeftOut] | None = None,
) -> list[Shard]:
    """Expand local paths, globs, brace patterns, folders and fsspec URLs into shards.

    A file's name says what it is: a WebDataset tar (as is every name without a known extension), a Parquet file, a
    list of URIs (.txt, .csv, .tsv, .jsonl, .ndjson), an image or a video. A folder stands for everything below it:
    tars, Parquet files with images, images and videos. What it holds besides, and what a glob matches besides, is
    counted in `left_out`. Tars and Parquet files are split where they are large, files are grouped. Order: the
    patterns' own, braces as the shell expands them, matches of a glob sorted by name; tars and tables before files.

    `shard_id` hashes the absolute address, the range, the size, and the etag where the store has one. It leaves the
    mtime out: a copy or an rsync changes it without changing a byte, and would tokenize everything again. A local
    file that is overwritten by another of exactly the same size is therefore taken for the old one. A source that
    moves to another address is another source.

    Raises SourceError if a pattern or a folder gives nothing or a file is missing, ConfigError if a pattern is
    malformed, two of them name the same file, or a table has no column that can be the image.
    """
    if not sources:
        raise ConfigError("no source given: name a tar file, a glob, a brace pattern or an fsspec URL")
    left_out = Counter() if left_out is None else left_out
    named = _Named()
    shards: list[Shard] = []
    for pattern in sources:
        not_taken = Counter[LeftOut]()
        named_by = expand_pattern(pattern, not_taken)
        named.add(named_by.found, pattern)
        of_pattern = list(_shards(named_by, image_field, sizes, not_taken))
        if not of_pattern:
            raise SourceError(f"{pattern} gives no image, video, tar or table; left out: {left_out_text(not_taken)}")
        left_out.update(not_taken)
        shards += of_pattern
    return shards


class _Named:
    """What the patterns have named so far, so that nothing is named twice."""

    def __init__(self) -> None:
        self._pattern_of: dict[str, str] = {}  # by address
        self._free: set[str] = set()  # folders that neither were named nor lie in one that was

    def add(self, found: Iterable[Found], pattern: str) -> None:
        """Raise ConfigError if an address, a folder above it or a file below it was named before."""
        for entry in found:
            uri = entry.uri
            other = uri if uri in self._pattern_of else self._above(uri.rstrip("/").rpartition("/")[0])
            if other is None and entry.is_folder:
                other = next((below for below in self._pattern_of if below.startswith(f"{uri.rstrip('/')}/")), None)
                self._free.clear()
            if other is not None:
                raise ConfigError(
                    f"{uri} is named twice, by {self._pattern_of[other]!r} and {pattern!r}: "
                    "its images would be in the dataset twice; drop one of the two"
                )
            self._pattern_of[uri] = pattern

    def _above(self, folder: str) -> str | None:
        """This folder, or the first above it, that was named."""
        if folder in self._free:
            return None
        above = folder
        while above:
            if above in self._pattern_of:
                return above
            above = above.rstrip("/").rpartition("/")[0]
        self._free.add(folder)
        return None


def _shards(named: Expanded, image_field: str | None, sizes: ShardSizes, left_out: Counter[LeftOut]) -> Iterator[Shard]:
    for entry in named.found:
        if entry.is_folder:
            yield from _of_folder(entry, image_field, sizes, left_out)
    files = [entry for entry in named.found if not entry.is_folder]
    media = any(format_of(entry.path) == "media" for entry in files)
    # Beside images, a text is a caption and no list, and what has no known name is no archive.
    others = [entry for entry in files if not media or format_of(entry.path) in ARCHIVE_FORMATS]
    yield from _split_all(others, image_field, sizes, left_out)
    if media:
        root = named.folder.path.rstrip("/") + "/"
        listed = (
            ListedFile(text_of_path(entry.path.removeprefix(root)), entry.info.get("size"), etag_of(entry.info))
            for entry in sorted(files, key=lambda entry: entry.path)
            if format_of(entry.path) not in ARCHIVE_FORMATS
        )
        are_named = all(entry.by == "name" for entry in files)
        uri = named.folder.uri
        yield from _groups(files_with_sidecars(listed, uri, left_out, are_named=are_named), uri, sizes)


def _of_folder(
    folder: Found, image_field: str | None, sizes: ShardSizes, left_out: Counter[LeftOut]
) -> Iterator[Shard]:
    """Everything below a folder, by one listing: its tars and tables, then its other files."""
    archives: list[Found] = []
    on_disk = is_local(folder.fs)

    def others() -> Iterator[ListedFile]:
        for file in list_below(folder.fs, folder.path, left_out):
            if format_of(file.path) in ARCHIVE_FORMATS:
                path = f"{folder.path.rstrip('/')}/{file.path}"
                info = {"type": "file", "size": file.num_bytes, "etag": file.etag}
                archives.append(Found(folder.fs, local_path(path) if on_disk else path, info, by="folder"))
            else:
                yield file

    try:
        groups = list(_groups(files_with_sidecars(others(), folder.uri, left_out), folder.uri, sizes))
    except OSError as error:
        raise SourceError(
            f"cannot list {folder.uri}: {str(error) or type(error).__name__}",
            remedy=access_remedy(error, folder.uri, "read"),
        ) from error
    yield from _split_all(archives, image_field, sizes, left_out)
    yield from groups


def _split_all(
    entries: Sequence[Found], image_field: str | None, sizes: ShardSizes, left_out: Counter[LeftOut]
) -> Iterator[Shard]:
    def split(entry: Found) -> Sequence[Shard] | LeftOut:
        return _split(entry, image_field, sizes)

    with ThreadPoolExecutor(max_workers=_NUM_READERS) as pool:
        for first in range(0, len(entries), _READ_AHEAD):  # a million futures at once would outweigh the plan
            some = entries[first : first + _READ_AHEAD]
            # Most tars need not be read for it, and a future costs more than all else that is done for one.
            reading = {number: pool.submit(split, each) for number, each in enumerate(some) if _is_read(each, sizes)}
            for number, entry in enumerate(some):
                shards = reading[number].result() if number in reading else split(entry)
                if isinstance(shards, LeftOut):
                    left_out[shards] += 1
                else:
                    yield from shards


def _is_read(entry: Found, sizes: ShardSizes) -> bool:
    """Whether a file is opened for planning."""
    in_one_piece = format_of(entry.path) in ("webdataset", "unknown") and not may_be_split(
        entry.path, entry.num_bytes, sizes.tar_bytes
    )
    return not in_one_piece


def _split(entry: Found, image_field: str | None, sizes: ShardSizes) -> Sequence[Shard] | LeftOut:
    etag = etag_of(entry.info)
    match format_of(entry.path):
        case "parquet":
            return split_parquet(
                entry.uri,
                file_bytes=entry.num_bytes,
                etag=etag,
                image_field=image_field,
                range_bytes=sizes.parquet_bytes,
                range_rows=sizes.parquet_rows,
                in_folder=entry.by == "folder",
            )
        case "list":
            return list(_groups(listed_files(entry.uri, image_field), entry.uri, sizes))
        case _:
            return split_tar(
                entry.fs,
                entry.path,
                entry.uri,
                file_bytes=entry.num_bytes,
                etag=etag,
                range_bytes=sizes.tar_bytes,
            )


def _groups(files: Iterable[SourceFile], uri: str, sizes: ShardSizes) -> Iterator[Shard]:
    return group_files(files, uri, group_bytes=sizes.group_bytes, most_files=sizes.group_files)
