"""The patterns of a source -> every source file there is, and how many samples it holds."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from itertools import islice
from typing import Literal
from urllib.parse import urlsplit

from braceexpand import braceexpand

from tatok.pipeline.census.forward import is_local
from tatok.pipeline.census.listing import files_below, files_matching, has_glob
from tatok.pipeline.census.lists import LIST_EXTENSIONS, count_listed
from tatok.pipeline.census.tables import count_rows
from tatok.pipeline.census.tars import count_tar
from tatok.schemas.errors import SourceError
from tatok.schemas.urls import filesystem_of, text_of_path

__all__ = ["Count", "MediaNames", "NoCount", "count_source"]

SourceKind = Literal["tar", "table", "list", "file"]
How = Literal["by itself", "glob", "folder"]

_TARS = (".tar", ".tar.gz", ".tgz", ".tar.zst", ".tzst", ".tar.bz2", ".tbz2", ".tar.xz", ".txz")
_TABLES = (".parquet", ".pq")
_NUM_READERS = 8
_AT_ONCE = 256  # files whose counting is asked for


@dataclass(frozen=True, slots=True, kw_only=True)
class MediaNames:
    """Lower-case extensions of images and videos: those that are read, and those that only an extra reads."""

    read: frozenset[str]
    needs_extra: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True, kw_only=True)
class Count:
    """A source file that `pattern` names: at least and at most how many samples it holds; None: that is not known.

    `row_groups` are the rows of a table's row groups. `is_optional`: whether it is a source depends on what is
    installed, or on more than its footer says; it is whole or not at all.
    """

    pattern: str
    uri: str
    kind: SourceKind
    least: int
    most: int | None
    row_groups: tuple[int, ...] = ()
    is_optional: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class NoCount:
    """A file, or a whole pattern, that could not be counted, and why."""

    uri: str
    reason: str


def count_source(
    patterns: Sequence[str], media: MediaNames, *, image_field: str | None = None
) -> Iterator[Count | NoCount]:
    """Every source file with its count, in no certain order.

    Of tars the headers are read, of tables the footers, of lists all, of images and videos nothing. A store that fails
    gives a NoCount. Memory: the listing of one folder of a store, or of one glob.
    """
    with ThreadPoolExecutor(max_workers=_NUM_READERS) as pool:
        for pattern in patterns:
            named = _named(pattern, media)
            while some := list(islice(named, _AT_ONCE)):
                to_open = [entry for entry in some if isinstance(entry, _Named) and entry.kind != "file"]
                yield from pool.map(partial(_count, image_field), to_open)
                yield from (_whole(entry, 1) for entry in some if isinstance(entry, _Named) and entry.kind == "file")
                yield from (entry for entry in some if isinstance(entry, NoCount))


@dataclass(frozen=True, slots=True, kw_only=True)
class _Named:
    pattern: str
    uri: str
    how: How
    kind: SourceKind
    is_optional: bool = False


def _named(pattern: str, media: MediaNames) -> Iterator[_Named | NoCount]:
    try:
        fs, path = filesystem_of(pattern)
        if is_local(fs) and os.path.exists(path):
            yield from _entry(pattern, pattern, media)
            return
        matches: list[str] = []
        for name in braceexpand(pattern) if "{" in pattern else [pattern]:
            fs, path = filesystem_of(name)
            if has_glob(path):
                matches += files_matching(fs, path)
            else:
                yield from _entry(name, pattern, media)
        yield from _classified(matches, pattern, "glob", media)
    except Exception as error:  # every fsspec backend has exceptions of its own
        yield NoCount(uri=pattern, reason=f"cannot be listed: {str(error) or type(error).__name__}")


def _entry(name: str, pattern: str, media: MediaNames) -> Iterator[_Named]:
    """A file or folder that is named without a pattern."""
    fs, path = filesystem_of(name)
    # Stores are asked only where the name leaves it open: a brace pattern may give a hundred thousand.
    if (is_local(fs) or not _is_known(name, media)) and fs.isdir(path):
        yield from _classified(files_below(fs, path), pattern, "folder", media)
        return
    uri = text_of_path(path) if is_local(fs) else str(fs.unstrip_protocol(path))
    yield from _classified([uri], pattern, "by itself", media)


def _classified(uris: Iterable[str], pattern: str, how: How, media: MediaNames) -> Iterator[_Named]:
    """What their names say that files are. Lists must be named, and a name that says nothing is a tar's only then.

    In a glob that matches images a text is a caption, and a name that says nothing belongs to something else.
    """
    all_media = media.read | media.needs_extra
    if how == "glob":
        uris = list(uris)
        named_by_kind = not any(_extension(uri) in all_media for uri in uris)
    else:
        named_by_kind = how == "by itself"
    for uri in uris:
        name, extension = _path(uri).lower(), _extension(uri)
        if name.endswith(_TARS):
            yield _Named(pattern=pattern, uri=uri, how=how, kind="tar")
        elif name.endswith(_TABLES):
            yield _Named(pattern=pattern, uri=uri, how=how, kind="table")
        elif extension in all_media:
            is_optional = extension not in media.read and how != "by itself"
            yield _Named(pattern=pattern, uri=uri, how=how, kind="file", is_optional=is_optional)
        elif named_by_kind:
            yield _Named(pattern=pattern, uri=uri, how=how, kind="list" if extension in LIST_EXTENSIONS else "tar")


def _count(image_field: str | None, named: _Named) -> Count | NoCount:
    try:
        match named.kind:
            case "list":
                return _whole(named, count_listed(named.uri, _extension(named.uri)))
            case "table":
                return _table(named, image_field)
            case _:
                least, most = count_tar(named.uri)
                return Count(pattern=named.pattern, uri=named.uri, kind="tar", least=least, most=most)
    except SourceError as error:
        return NoCount(uri=named.uri, reason=str(error))


def _table(named: _Named, image_field: str | None) -> Count:
    table = count_rows(named.uri)
    if table is None:  # a reject for all of it
        return Count(pattern=named.pattern, uri=named.uri, kind="table", least=1, most=None)
    # In a folder a table without images is no source.
    has_images = image_field in table.byte_columns if image_field else bool(table.byte_columns)
    return replace(
        _whole(named, sum(table.row_groups)),
        row_groups=table.row_groups,
        is_optional=named.how == "folder" and not has_images,
    )


def _whole(named: _Named, num_samples: int) -> Count:
    return Count(
        pattern=named.pattern,
        uri=named.uri,
        kind=named.kind,
        least=num_samples,
        most=num_samples,
        is_optional=named.is_optional,
    )


def _is_known(uri: str, media: MediaNames) -> bool:
    is_media = _extension(uri) in media.read | media.needs_extra
    on_web = uri.startswith(("http://", "https://"))  # where there are no folders
    return (
        on_web or is_media or _path(uri).lower().endswith((*_TARS, *_TABLES, *(f".{end}" for end in LIST_EXTENSIONS)))
    )


def _path(uri: str) -> str:
    return urlsplit(uri).path if uri.startswith(("http://", "https://")) else uri


def _extension(uri: str) -> str:
    base = _path(uri).rpartition("/")[2]
    return base.rpartition(".")[2].lower() if "." in base else ""
