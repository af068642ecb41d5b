"""A source as people write it -> the files and folders that it names: paths, globs, braces, URLs."""

from __future__ import annotations

import os
import re
from collections import Counter, defaultdict
from collections.abc import Sequence
from functools import partial
from itertools import groupby
from operator import itemgetter
from typing import Any, NamedTuple

from braceexpand import braceexpand
from fsspec.spec import AbstractFileSystem
from fsspec.utils import glob_translate

from tatok.pipeline.planning.found import Found, Way, uri_of
from tatok.pipeline.storage.background import answered
from tatok.pipeline.storage.listing import as_glob, is_local, list_directly_in, list_matching
from tatok.pipeline.storage.remedies import NO_PACKAGE_REMEDY, access_remedy, spelling_remedy
from tatok.pipeline.storage.source_file import source_error
from tatok.schemas.errors import ConfigError, SourceError, TatokError
from tatok.schemas.records import LeftOut, left_out_text
from tatok.schemas.urls import filesystem_of, text_of_path

__all__ = ["Expanded", "expand_pattern", "would_match"]

_LIST_FROM = 8  # this many names in one folder are cheaper to list than to stat one by one
_WILD = re.compile(r"[*?[{]")
_HTTP = ("http://", "https://")


class Expanded(NamedTuple):
    """What a pattern names, and path and address of the folder in which all that it can match lies, for ever."""

    found: Found
    folder: str
    folder_uri: str


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
        found = _found(fs, literal, rest, pattern, left_out)
        return Expanded(found, folder=fixed or "/", folder_uri=uri_of(fs, fixed or "/"))
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


def _found(fs: AbstractFileSystem, literal: str, rest: str, pattern: str, left_out: Counter[LeftOut]) -> Found:
    paths: list[str] = []
    infos: list[dict[str, Any]] = []
    ways: list[Way] = []
    names = [(name, "*" if (literal + name).startswith(_HTTP) else "*?[") for name in _expand_braces(rest, pattern)]
    for is_glob, group in groupby(names, key=lambda each: any(char in each[0] for char in each[1])):
        if is_glob:
            for name, _ in group:
                matches = _glob(fs, literal, name, pattern, left_out)
                paths += [info["name"] for info in matches]
                infos += matches
        else:
            named = [literal + name for name, _ in group]
            paths += named
            infos += _infos_of(fs, named, pattern)
        ways += ["glob" if is_glob else "name"] * (len(paths) - len(ways))
    return Found.of(fs, paths, infos, ways)


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


def _glob(
    fs: AbstractFileSystem, literal: str, glob: str, pattern: str, left_out: Counter[LeftOut]
) -> list[dict[str, Any]]:
    infos = sorted(list_matching(fs, literal, glob, left_out), key=itemgetter("name"))
    if not infos:
        others = f" (it matches {left_out_text(left_out)})" if left_out else ""
        raise SourceError(
            f"no file matches {text_of_path(literal + glob)!r} (from {pattern!r}){others}; check the path and quote it "
            "against the shell",
            remedy=spelling_remedy(pattern),
        )
    return infos


def _infos_of(fs: AbstractFileSystem, paths: Sequence[str], pattern: str) -> list[dict[str, Any]]:
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
    infos: list[dict[str, Any]] = []
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
        infos.append(info)
    return infos
