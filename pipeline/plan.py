"""Source patterns -> shards, and which of them still wait to be tokenized."""

from __future__ import annotations

import hashlib
import os
from collections import defaultdict
from collections.abc import Iterable, Sequence

import fsspec
from braceexpand import braceexpand
from fsspec.spec import AbstractFileSystem

from schemas.errors import ConfigError, SourceError
from schemas.records import Shard

__all__ = ["pending_shards", "plan_shards"]

ARCHIVE_SUFFIXES = (".tar", ".tar.gz", ".tgz")
_LIST_FROM = 8  # this many names in one folder are cheaper to list than to stat one by one


def plan_shards(sources: Sequence[str]) -> list[Shard]:
    """Expand local paths, globs, brace patterns, folders and fsspec URLs into shards, one a tar file.

    Order: the patterns' own, braces as the shell expands them, matches of a glob sorted by name. A folder stands
    for the tar files directly in it.

    `shard_id` hashes the absolute address, the range, the size, and the etag where the store tells one. It leaves the
    mtime out: a copy or an rsync changes it without changing a byte, and would tokenize everything again. A local
    file that is overwritten by another of exactly the same size is therefore taken for the old one. A source that
    moves to another address is another source.

    Raises SourceError where a pattern matches nothing or a file is missing, ConfigError where a pattern is malformed
    or two of them name the same file.
    """
    if not sources:
        raise ConfigError("no source given: name a tar file, a glob, a brace pattern or an fsspec URL")
    shards: list[Shard] = []
    pattern_of: dict[str, str] = {}
    for pattern in sources:
        for shard in _expand(pattern):
            if shard.uri in pattern_of:
                raise ConfigError(
                    f"{shard.uri} is named twice, by {pattern_of[shard.uri]!r} and {pattern!r}: "
                    "its images would stand in the data set twice; drop one of the two"
                )
            pattern_of[shard.uri] = pattern
            shards.append(shard)
    return shards


def pending_shards(planned: Iterable[Shard], committed: Iterable[str]) -> list[Shard]:
    """The planned shards whose id is not among `committed`, in the plan's order."""
    done = frozenset(committed)
    return [shard for shard in planned if shard.shard_id not in done]


def _expand(pattern: str) -> list[Shard]:
    if not pattern.strip():
        raise ConfigError("a source is empty: name a tar file, a glob, a brace pattern or an fsspec URL")
    fs, path = _open_filesystem(pattern, pattern)
    try:
        # A file whose name really holds braces or brackets is that file; only local stores are cheap to ask.
        if _is_local(fs) and os.path.isfile(path):
            return [_shard(fs, path, fs.info(path))]
        found: list[tuple[str, dict]] = []
        literal: list[str] = []
        for name in _expand_braces(pattern):
            _, path = _open_filesystem(name, pattern)
            if _has_glob(fs, path):
                found += _info_of(fs, literal, pattern) + _glob(fs, path, pattern)
                literal = []
            else:
                literal.append(path)
        found += _info_of(fs, literal, pattern)
    except (OSError, ImportError, ValueError) as error:
        raise SourceError(f"cannot list {pattern!r}: {str(error) or type(error).__name__}") from error
    return [_shard(fs, path, info) for path, info in found]


def _expand_braces(pattern: str) -> list[str]:
    if "{" not in pattern:
        return [pattern]
    try:
        return list(braceexpand(pattern))
    except ValueError as error:
        raise ConfigError(f"the braces of {pattern!r} do not match: {error}") from error


def _open_filesystem(url: str, pattern: str) -> tuple[AbstractFileSystem, str]:
    try:
        fs, path = fsspec.core.url_to_fs(url)
    except (ImportError, ValueError, OSError) as error:
        raise SourceError(
            f"cannot open {pattern!r}: {error}; check the URL's scheme and that its fsspec package is installed"
        ) from error
    return fs, path


def _is_local(fs: AbstractFileSystem) -> bool:
    return "file" in ((fs.protocol,) if isinstance(fs.protocol, str) else fs.protocol)


def _has_glob(fs: AbstractFileSystem, path: str) -> bool:
    # "?" starts the query of an HTTP URL and brackets may be part of one; only a star is a wish there.
    return any(char in path for char in ("*" if path.startswith(("http://", "https://")) else "*?["))


def _glob(fs: AbstractFileSystem, path: str, pattern: str) -> list[tuple[str, dict]]:
    matches = fs.glob(path, detail=True)
    files = sorted((name, info) for name, info in matches.items() if info["type"] == "file")
    if not files:
        raise SourceError(f"no file matches {path!r} (from {pattern!r}); check the path and quote it against the shell")
    return files


def _info_of(fs: AbstractFileSystem, paths: Sequence[str], pattern: str) -> list[tuple[str, dict]]:
    """Size and etag of every path, by one listing a folder where many are asked for."""
    by_folder: defaultdict[str, int] = defaultdict(int)
    for path in paths:
        by_folder[path.rpartition("/")[0]] += 1
    listed: dict[str, dict] = {}
    for folder, count in by_folder.items():
        if count >= _LIST_FROM and "://" not in folder:  # HTTP listings carry no sizes
            try:
                listed |= {info["name"]: info for info in fs.ls(folder, detail=True)}
            except FileNotFoundError:
                continue  # each missing file is named below
    found: list[tuple[str, dict]] = []
    for path in paths:
        try:
            info = listed.get(path) or fs.info(path)
        except FileNotFoundError:
            raise SourceError(f"{path} does not exist (from {pattern!r}); check the path") from None
        found += _folder(fs, path, pattern) if info["type"] == "directory" else [(path, info)]
    return found


def _folder(fs: AbstractFileSystem, path: str, pattern: str) -> list[tuple[str, dict]]:
    entries = [(info["name"], info) for info in fs.ls(path, detail=True) if info["type"] == "file"]
    archives = sorted(entry for entry in entries if entry[0].lower().endswith(ARCHIVE_SUFFIXES))
    if not archives:
        raise SourceError(f"the folder {path} (from {pattern!r}) holds no {', '.join(ARCHIVE_SUFFIXES)} file")
    return archives


def _shard(fs: AbstractFileSystem, path: str, info: dict) -> Shard:
    uri = path if _is_local(fs) else fs.unstrip_protocol(path)
    num_bytes = int(info.get("size") or 0)
    etag = str(info.get("ETag") or info.get("etag") or "").strip('"')
    start, stop = 0, None
    identity = "\0".join((uri, str(start), str(stop), str(num_bytes), etag))
    return Shard(
        uri=uri,
        kind="webdataset",
        start=start,
        stop=stop,
        num_bytes=num_bytes,
        shard_id=hashlib.sha256(identity.encode()).hexdigest()[:20],
    )
