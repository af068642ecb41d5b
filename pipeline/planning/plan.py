"""Source patterns -> shards of about equal bytes: large files are split, small ones grouped."""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, NamedTuple

from braceexpand import braceexpand
from fsspec.spec import AbstractFileSystem

from tatok.pipeline.planning.files import files_with_sidecars
from tatok.pipeline.planning.parquet import split_parquet
from tatok.pipeline.planning.tar import split_tar
from tatok.pipeline.planning.uri_lists import listed_files
from tatok.pipeline.readers.file_groups import group_files
from tatok.pipeline.readers.formats import ARCHIVE_FORMATS, format_of
from tatok.pipeline.storage.listing import ListedFile, etag_of, is_local, list_below, list_directly_in, list_matching
from tatok.pipeline.storage.remedies import NO_PACKAGE_REMEDY, access_remedy, spelling_remedy
from tatok.pipeline.storage.source_file import source_error
from tatok.schemas.errors import ConfigError, SourceError, TatokError
from tatok.schemas.records import Shard, SourceFile
from tatok.schemas.urls import filesystem_of

__all__ = ["ShardSizes", "plan_shards"]

_LIST_FROM = 8  # this many names in one folder are cheaper to list than to stat one by one
_LOOKED_THROUGH = 100_000  # names of a folder, for a first tar or Parquet file among them
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


class _Found(NamedTuple):
    """A file that a pattern names: where, and what its store says of it."""

    fs: AbstractFileSystem
    path: str
    info: dict[str, Any]

    @property
    def uri(self) -> str:
        return self.path if is_local(self.fs) else str(self.fs.unstrip_protocol(self.path))

    @property
    def is_folder(self) -> bool:
        return bool(self.info["type"] == "directory")

    @property
    def num_bytes(self) -> int:
        return int(self.info.get("size") or 0)


def plan_shards(
    sources: Sequence[str], *, image_field: str | None = None, sizes: ShardSizes = DEFAULT_SIZES
) -> list[Shard]:
    """Expand local paths, globs, brace patterns, folders and fsspec URLs into shards.

    A file's name says what it is: a WebDataset tar (as is every name without a known extension), a Parquet file, a
    list of URIs (.txt, .csv, .tsv, .jsonl, .ndjson), an image or a video. A folder stands for the tars and Parquet
    files directly in it, or, where there are none, for all images and videos below it. Tars and Parquet files are
    split where they are large, files are grouped. Order: the patterns' own, braces as the shell expands them, matches
    of a glob sorted by name.

    `shard_id` hashes the absolute address, the range, the size, and the etag where the store has one. It leaves the
    mtime out: a copy or an rsync changes it without changing a byte, and would tokenize everything again. A local
    file that is overwritten by another of exactly the same size is therefore taken for the old one. A source that
    moves to another address is another source.

    Raises SourceError if a pattern matches nothing or a file is missing, ConfigError if a pattern is malformed,
    two of them name the same file, or a table has no column that can be the image.
    """
    if not sources:
        raise ConfigError("no source given: name a tar file, a glob, a brace pattern or an fsspec URL")
    named: dict[str, str] = {}  # address -> the pattern that named it
    shards: list[Shard] = []
    for pattern in sources:
        found = _expand(pattern)
        for entry in found:
            _refuse_second(entry, pattern, named)
        shards += _shards(found, pattern, image_field, sizes)
    return shards


def _refuse_second(entry: _Found, pattern: str, named: dict[str, str]) -> None:
    """Raise ConfigError if an address, a folder above it or a file below it was named before."""
    uri = entry.uri
    above = [uri]
    while "/" in above[-1].rstrip("/"):
        above.append(above[-1].rstrip("/").rpartition("/")[0])
    other = next((folder for folder in above if folder in named), None)
    if other is None and entry.is_folder:
        other = next((below for below in named if below.startswith(f"{uri.rstrip('/')}/")), None)
    if other is not None:
        raise ConfigError(
            f"{uri} is named twice, by {named[other]!r} and {pattern!r}: "
            "its images would be in the dataset twice; drop one of the two"
        )
    named[uri] = pattern


def _shards(found: Sequence[_Found], pattern: str, image_field: str | None, sizes: ShardSizes) -> Iterator[Shard]:
    media = any(format_of(entry.path) == "media" for entry in found if not entry.is_folder)
    # Beside images, a text is a caption and no list, and what has no known name is no archive.
    others = [e for e in found if e.is_folder or not media or format_of(e.path) in ARCHIVE_FORMATS]
    with ThreadPoolExecutor(max_workers=_NUM_READERS) as pool:
        for first in range(0, len(others), _READ_AHEAD):  # a million futures at once would outweigh the plan
            entries = others[first : first + _READ_AHEAD]
            for shards in pool.map(lambda entry: _split(entry, image_field, sizes), entries):
                yield from shards
    if media:
        fs, folder = _open_filesystem(_fixed_folder(pattern), pattern)
        root = folder.rstrip("/") + "/"
        listed = (
            ListedFile(entry.path.removeprefix(root), entry.info.get("size"), etag_of(entry.info))
            for entry in sorted(found, key=lambda entry: entry.path)
            if not entry.is_folder
        )
        uri = folder if is_local(fs) else str(fs.unstrip_protocol(folder))
        yield from _groups(files_with_sidecars(listed, uri), uri, sizes)


def _split(entry: _Found, image_field: str | None, sizes: ShardSizes) -> Sequence[Shard]:
    if entry.is_folder:
        try:
            files = files_with_sidecars(_no_archives(list_below(entry.fs, entry.path), entry.uri), entry.uri)
            shards = list(_groups(files, entry.uri, sizes))
        except OSError as error:
            raise SourceError(
                f"cannot list {entry.uri}: {str(error) or type(error).__name__}",
                remedy=access_remedy(error, entry.uri, "read"),
            ) from error
        if not shards:
            raise SourceError(f"the folder {entry.uri} holds no tar or Parquet file, and no image or video below it")
        return shards
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


def _no_archives(listed: Iterable[ListedFile], folder: str) -> Iterator[ListedFile]:
    for file in listed:
        if "/" not in file.path and format_of(file.path) in ARCHIVE_FORMATS:
            raise ConfigError(f"{folder} holds {file.path} among very many other files; name the tars by a glob")
        yield file


def _groups(files: Iterable[SourceFile], uri: str, sizes: ShardSizes) -> Iterator[Shard]:
    return group_files(files, uri, group_bytes=sizes.group_bytes, most_files=sizes.group_files)


def _expand(pattern: str) -> list[_Found]:
    """What a pattern names: files, and folders that hold no archive or table."""
    if not pattern.strip():
        raise ConfigError("a source is empty: name a tar file, a glob, a brace pattern or an fsspec URL")
    if pattern.startswith(("http://", "https://")) and pattern.endswith("/"):
        raise SourceError(
            f"{pattern!r}: a web server does not say what a folder holds; name its files in a list (.txt)"
        )
    fs, path = _open_filesystem(pattern, pattern)
    try:
        # What is there under this very name is meant, whatever its name holds; only local stores are cheap to ask.
        if is_local(fs) and os.path.exists(path):
            return _info_of(fs, [path], pattern)
        found: list[_Found] = []
        literal: list[str] = []
        for name in _expand_braces(pattern):
            _, path = _open_filesystem(name, pattern)
            if _has_glob(fs, path):
                found += _info_of(fs, literal, pattern) + _glob(fs, path, pattern)
                literal = []
            else:
                literal.append(path)
        found += _info_of(fs, literal, pattern)
    except TatokError:
        raise
    except Exception as error:  # every fsspec backend has exceptions of its own
        raise SourceError(
            f"cannot list {pattern!r}: {str(error) or type(error).__name__}",
            remedy=access_remedy(error, pattern, "read"),
        ) from error
    return found


def _fixed_folder(pattern: str) -> str:
    """The folder in which all that a pattern can match lies, however much is added to it."""
    magic = [place for place in map(pattern.find, "*?[{") if place >= 0]
    fixed = pattern[: min(magic, default=len(pattern))]
    return fixed.rpartition("/")[0] or ("/" if fixed.startswith("/") else ".")


def _expand_braces(pattern: str) -> list[str]:
    if "{" not in pattern:
        return [pattern]
    try:
        return list(braceexpand(pattern))
    except ValueError as error:
        raise ConfigError(f"the braces of {pattern!r} do not match: {error}") from error


def _open_filesystem(url: str, pattern: str) -> tuple[AbstractFileSystem, str]:
    try:
        fs, path = filesystem_of(url)
    except (ImportError, ValueError, OSError) as error:
        raise SourceError(
            f"cannot open {pattern!r}: {error}; check the URL's scheme and that its fsspec package is installed",
            remedy=access_remedy(error, pattern, "read") or NO_PACKAGE_REMEDY,
        ) from error
    return fs, path


def _has_glob(fs: AbstractFileSystem, path: str) -> bool:
    # "?" starts the query of an HTTP URL and brackets may be part of one; only a star is a wish there.
    return any(char in path for char in ("*" if path.startswith(("http://", "https://")) else "*?["))


def _glob(fs: AbstractFileSystem, path: str, pattern: str) -> list[_Found]:
    files = sorted((_Found(fs, info["name"], info) for info in list_matching(fs, path)), key=lambda found: found.path)
    if not files:
        raise SourceError(
            f"no file matches {path!r} (from {pattern!r}); check the path and quote it against the shell",
            remedy=spelling_remedy(pattern),
        )
    return files


def _info_of(fs: AbstractFileSystem, paths: Sequence[str], pattern: str) -> list[_Found]:
    """Size and etag of every path, by one listing a folder where many are asked for."""
    by_folder: defaultdict[str, set[str]] = defaultdict(set)
    for path in paths:
        by_folder[path.rpartition("/")[0]].add(path)
    listed: dict[str, dict[str, Any]] = {}
    for folder, wanted in by_folder.items():
        if len(wanted) >= _LIST_FROM and "://" not in folder:  # HTTP listings carry no sizes
            try:
                files = list_directly_in(fs, folder)
                listed |= {info["name"]: info for info in files if info["name"] in wanted}
            except FileNotFoundError:
                continue  # each missing file is named below
    found: list[_Found] = []
    for path in paths:
        try:
            info = listed.get(path) or fs.info(path)
        except FileNotFoundError as error:
            failure = source_error(f"cannot reach {path} (from {pattern!r})", error, pattern)
            if not failure.is_permanent:  # of the web: the server could not even be asked
                raise failure from error
            raise SourceError(
                f"{path} does not exist (from {pattern!r}); check the path", remedy=spelling_remedy(pattern)
            ) from None
        found += _folder(fs, path, info) if info["type"] == "directory" else [_Found(fs, path, info)]
    return found


def _folder(fs: AbstractFileSystem, path: str, info: dict[str, Any]) -> list[_Found]:
    """The tars and Parquet files directly in a folder, else the folder itself."""
    files = list_directly_in(fs, path)
    archives: list[_Found] = []
    for number, file in enumerate(files, 1):
        if format_of(file["name"]) in ARCHIVE_FORMATS:
            archives.append(_Found(fs, file["name"], file))
        elif number >= _LOOKED_THROUGH and not archives:
            break  # images: their listing, below, is streamed, and refuses an archive that comes after all
    return sorted(archives, key=lambda entry: entry.path) or [_Found(fs, path, info)]
