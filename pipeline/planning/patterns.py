"""A source as people write it -> the files and folders that it names: paths, globs, braces, URLs."""

from __future__ import annotations

import os
import re
from collections import Counter, defaultdict
from collections.abc import Sequence
from functools import partial
from typing import Any, Literal, NamedTuple

from braceexpand import braceexpand
from fsspec.spec import AbstractFileSystem
from fsspec.utils import glob_translate

from tatok.pipeline.storage.background import answered
from tatok.pipeline.storage.listing import as_glob, is_local, list_directly_in, list_matching
from tatok.pipeline.storage.remedies import NO_PACKAGE_REMEDY, access_remedy, spelling_remedy
from tatok.pipeline.storage.source_file import source_error
from tatok.schemas.errors import ConfigError, SourceError, TatokError
from tatok.schemas.records import LeftOut, left_out_text
from tatok.schemas.urls import filesystem_of, text_of_path

__all__ = ["Expanded", "Found", "expand_pattern", "would_match"]

_LIST_FROM = 8  # this many names in one folder are cheaper to list than to stat one by one
_WILD = re.compile(r"[*?[{]")
_HTTP = ("http://", "https://")


class Found(NamedTuple):
    """A file or folder that a pattern names: where, what its store says of it, how it was found."""

    fs: AbstractFileSystem
    path: str
    info: dict[str, Any]
    by: Literal["name", "glob", "folder"] = "name"

    @property
    def uri(self) -> str:
        """Its address, as text that every file takes."""
        return text_of_path(self.path) if is_local(self.fs) else str(self.fs.unstrip_protocol(self.path))

    @property
    def is_folder(self) -> bool:
        """Whether it holds others."""
        return bool(self.info["type"] == "directory")

    @property
    def num_bytes(self) -> int:
        """Its size; 0 where the store does not say."""
        return int(self.info.get("size") or 0)


class Expanded(NamedTuple):
    """What a pattern names, in order, and the folder in which all that it can match lies, however much is added."""

    found: list[Found]
    folder: Found


def expand_pattern(pattern: str, left_out: Counter[LeftOut]) -> Expanded:
    """The files and folders that a pattern names; what a glob matches besides is counted in `left_out`.

    A name that is there as it is written is meant, whatever wildcards it could be read as, also where only the first
    names of a path are. On the web nothing but a star is a wildcard. Raises SourceError if nothing is there,
    ConfigError if the pattern is malformed.
    """
    if not pattern.strip():
        raise ConfigError("a source is empty: name a tar file, a glob, a brace pattern or an fsspec URL")
    if pattern.startswith(_HTTP) and pattern.endswith("/"):
        raise SourceError(
            f"{pattern!r}: a web server does not say what a folder holds; name its files in a list (.txt)"
        )
    fs, path = _open_filesystem(pattern)
    try:
        literal, rest = _as_written(fs, path)
        wild = _WILD.search(rest)
        fixed = (path if wild is None else f"{literal}{rest[: wild.start()]}").rpartition("/")[0]
        folder = Found(fs, fixed or "/", {"type": "directory"})
        return Expanded(found=_found(fs, literal, rest, pattern, left_out), folder=folder)
    except TatokError:
        raise
    except Exception as error:  # every fsspec backend has exceptions of its own
        raise SourceError(
            f"cannot list {pattern!r}: {str(error) or type(error).__name__}",
            remedy=access_remedy(error, pattern, "read"),
        ) from error


def would_match(pattern: str, addresses: Sequence[str]) -> bool:
    """Whether the wildcards of a pattern match one of these paths or URLs, which need not be there.

    Raises as `expand_pattern` does, but for what is not there.
    """
    if not _WILD.search(pattern):
        return False
    fs, path = _open_filesystem(pattern)
    literal, rest = _as_written(fs, path)
    if not _WILD.search(rest):
        return False
    in_same_store = [each for each in addresses if _scheme(each) == _scheme(pattern)]
    paths = [str(fs._strip_protocol(each)) for each in in_same_store]
    globs = [re.compile(glob_translate(as_glob(literal) + each)) for each in _expand_braces(rest, pattern)]
    return any(glob.match(each) for glob in globs for each in paths)


def _scheme(address: str) -> str:
    return address.partition("://")[0] if "://" in address else ""


def _as_written(fs: AbstractFileSystem, path: str) -> tuple[str, str]:
    """A path in two: the names that are there as they are written or hold no wildcard, and the rest."""
    if path.startswith(_HTTP):
        return "", path
    end = 0  # of the literal part
    for place in [match.start() for match in re.finditer("/", path)] + [len(path)]:
        if _WILD.search(path[end:place]) and not _exists(fs, path[:place]):
            break
        end = place
    return path[:end], path[end:]


def _exists(fs: AbstractFileSystem, path: str) -> bool:
    if is_local(fs):
        return os.path.lexists(path)
    # Elsewhere the question costs requests, and nobody has a star in an object's name.
    return "*" not in path.rpartition("/")[2] and bool(answered(partial(fs.exists, path)))


def _found(fs: AbstractFileSystem, literal: str, rest: str, pattern: str, left_out: Counter[LeftOut]) -> list[Found]:
    found: list[Found] = []
    named: list[str] = []
    for name in _expand_braces(rest, pattern):
        path = literal + name
        if any(char in name for char in ("*" if path.startswith(_HTTP) else "*?[")):
            found += _info_of(fs, named, pattern) + _glob(fs, literal, name, pattern, left_out)
            named = []
        else:
            named.append(path)
    return found + _info_of(fs, named, pattern)


def _expand_braces(rest: str, pattern: str) -> list[str]:
    if "{" not in rest:
        return [rest]
    try:
        return list(braceexpand(rest))
    except ValueError as error:
        raise ConfigError(f"the braces of {pattern!r} do not match: {error}") from error


def _open_filesystem(pattern: str) -> tuple[AbstractFileSystem, str]:
    try:
        return filesystem_of(pattern)
    except (ImportError, ValueError, OSError) as error:
        raise SourceError(
            f"cannot open {pattern!r}: {error}; check the URL's scheme and that its fsspec package is installed",
            remedy=access_remedy(error, pattern, "read") or NO_PACKAGE_REMEDY,
        ) from error


def _glob(fs: AbstractFileSystem, literal: str, glob: str, pattern: str, left_out: Counter[LeftOut]) -> list[Found]:
    infos = list_matching(fs, literal, glob, left_out)
    files = sorted((Found(fs, info["name"], info, by="glob") for info in infos), key=lambda found: found.path)
    if not files:
        others = f" (it matches {left_out_text(left_out)})" if left_out else ""
        raise SourceError(
            f"no file matches {text_of_path(literal + glob)!r} (from {pattern!r}){others}; check the path and quote it "
            "against the shell",
            remedy=spelling_remedy(pattern),
        )
    return files


def _info_of(fs: AbstractFileSystem, paths: Sequence[str], pattern: str) -> list[Found]:
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
    found: list[Found] = []
    for path in paths:
        try:
            info = listed.get(path) or answered(partial(fs.info, path))
        except FileNotFoundError as error:
            failure = source_error(f"cannot reach {path} (from {pattern!r})", error, pattern)
            if not failure.is_permanent:  # of the web: the server could not even be asked
                raise failure from error
            raise SourceError(
                f"{path} does not exist (from {pattern!r}); check the path", remedy=spelling_remedy(pattern)
            ) from None
        found.append(Found(fs, path, info))
    return found
