"""Source patterns -> shards of about equal bytes: large files are split, small ones grouped."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from operator import itemgetter
from typing import Any

from fsspec.spec import AbstractFileSystem

from tatok.pipeline.planning.files import files_with_sidecars
from tatok.pipeline.planning.found import Found
from tatok.pipeline.planning.parquet import split_parquet
from tatok.pipeline.planning.patterns import Expanded, expand_pattern
from tatok.pipeline.planning.shard_ids import stretch_shard
from tatok.pipeline.planning.tar import may_be_split, split_tar
from tatok.pipeline.planning.uri_lists import listed_files
from tatok.pipeline.readers.file_groups import group_files
from tatok.pipeline.readers.formats import ARCHIVE_FORMATS, SourceFormat, format_of
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

    def add(self, found: Found, pattern: str) -> None:
        """Raise ConfigError if an address, a folder above it or a file below it was named before."""
        for index, uri in enumerate(found.uris):
            other = uri if uri in self._pattern_of else self._above(uri.rstrip("/").rpartition("/")[0])
            if other is None and found.is_folder(index):
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
    found = named.found
    folders = [index for index in range(len(found)) if found.is_folder(index)]
    for index in folders:
        yield from _of_folder(found.fs, found.paths[index], found.uris[index], image_field, sizes, left_out)
    files = found.take(sorted(set(range(len(found))).difference(folders))) if folders else found
    formats = [format_of(path) for path in files.paths]
    if "media" not in formats:
        yield from _split_all(files, formats, image_field, sizes, left_out)
        return
    # Beside images, a text is a caption and no list, and what has no known name is no archive.
    archives = [index for index, each in enumerate(formats) if each in ARCHIVE_FORMATS]
    yield from _split_all(files.take(archives), [formats[i] for i in archives], image_field, sizes, left_out)
    others = files.take([index for index, each in enumerate(formats) if each not in ARCHIVE_FORMATS])
    root = named.folder.rstrip("/") + "/"
    listed = (
        ListedFile(text_of_path(path.removeprefix(root)), info.get("size"), etag_of(info))
        for path, info in sorted(zip(others.paths, others.infos, strict=True), key=itemgetter(0))
    )
    are_named = all(way == "name" for way in files.ways)
    uri = named.folder_uri
    yield from _groups(files_with_sidecars(listed, uri, left_out, are_named=are_named), uri, sizes)


def _of_folder(
    fs: AbstractFileSystem,
    folder: str,
    uri: str,
    image_field: str | None,
    sizes: ShardSizes,
    left_out: Counter[LeftOut],
) -> Iterator[Shard]:
    """Everything below a folder, by one listing: its tars and tables, then its other files."""
    paths: list[str] = []
    infos: list[dict[str, Any]] = []
    on_disk = is_local(fs)

    def others() -> Iterator[ListedFile]:
        for file in list_below(fs, folder, left_out):
            if format_of(file.path) in ARCHIVE_FORMATS:
                path = f"{folder.rstrip('/')}/{file.path}"
                paths.append(local_path(path) if on_disk else path)
                infos.append({"type": "file", "size": file.num_bytes, "etag": file.etag})
            else:
                yield file

    try:
        groups = list(_groups(files_with_sidecars(others(), uri, left_out), uri, sizes))
    except OSError as error:
        raise SourceError(
            f"cannot list {uri}: {str(error) or type(error).__name__}",
            remedy=access_remedy(error, uri, "read"),
        ) from error
    archives = Found.of(fs, paths, infos, ["folder"] * len(paths))
    yield from _split_all(archives, [format_of(path) for path in paths], image_field, sizes, left_out)
    yield from groups


def _split_all(
    found: Found,
    formats: Sequence[SourceFormat],
    image_field: str | None,
    sizes: ShardSizes,
    left_out: Counter[LeftOut],
) -> Iterator[Shard]:
    with ThreadPoolExecutor(max_workers=_NUM_READERS) as pool:
        for first in range(0, len(found), _READ_AHEAD):  # a million futures at once would outweigh the plan
            some = range(first, min(first + _READ_AHEAD, len(found)))
            # Most tars need not be read for it, and a future costs more than all else that is done for one.
            reading = {
                index: pool.submit(_split, found, index, formats[index], image_field, sizes)
                for index in some
                if not _is_in_one_piece(found, index, formats[index], sizes)
            }
            for index in some:
                if index not in reading:
                    size, etag = found.num_bytes(index), etag_of(found.infos[index])
                    yield stretch_shard(found.uris[index], "webdataset", num_bytes=size, file_bytes=size, etag=etag)
                    continue
                shards = reading[index].result()
                if isinstance(shards, LeftOut):
                    left_out[shards] += 1
                else:
                    yield from shards


def _is_in_one_piece(found: Found, index: int, its_format: SourceFormat, sizes: ShardSizes) -> bool:
    """Whether a file is one shard whatever is in it, so that planning need not open it."""
    return its_format in ("webdataset", "unknown") and not may_be_split(
        found.paths[index], found.num_bytes(index), sizes.tar_bytes
    )


def _split(
    found: Found, index: int, its_format: SourceFormat, image_field: str | None, sizes: ShardSizes
) -> Sequence[Shard] | LeftOut:
    uri, file_bytes, etag = found.uris[index], found.num_bytes(index), etag_of(found.infos[index])
    match its_format:
        case "parquet":
            return split_parquet(
                uri,
                file_bytes=file_bytes,
                etag=etag,
                image_field=image_field,
                range_bytes=sizes.parquet_bytes,
                range_rows=sizes.parquet_rows,
                in_folder=found.ways[index] == "folder",
            )
        case "list":
            return list(_groups(listed_files(uri, image_field), uri, sizes))
        case _:
            return split_tar(
                found.fs, found.paths[index], uri, file_bytes=file_bytes, etag=etag, range_bytes=sizes.tar_bytes
            )


def _groups(files: Iterable[SourceFile], uri: str, sizes: ShardSizes) -> Iterator[Shard]:
    return group_files(files, uri, group_bytes=sizes.group_bytes, most_files=sizes.group_files)
