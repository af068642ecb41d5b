"""What folders and globs hold, listed plainly: a disk by os.walk, stores by fsspec."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any

from tatok.pipeline.census.forward import is_local
from tatok.pipeline.census.tars import is_hidden
from tatok.schemas.urls import text_of_path

__all__ = ["files_below", "files_matching", "has_glob"]

_MAGIC = "*?["


def has_glob(path: str) -> bool:
    """Whether a path is a pattern; a URL's query and brackets are its own."""
    return any(char in path for char in ("*" if path.startswith(("http://", "https://")) else _MAGIC))


def files_below(fs: Any, folder: str) -> Iterator[str]:
    """The address of every file below a folder that is not hidden there; links to folders are not followed.

    A store's listing is in memory. Raises what the file system raises.
    """
    root = folder.rstrip("/") + "/"
    if not is_local(fs):
        fs.invalidate_cache()
        for path, info in fs.find(folder, detail=True).items():
            if info["type"] == "file" and not path.endswith("/") and not _is_hidden(path.removeprefix(root)):
                yield str(fs.unstrip_protocol(path))
        return
    for where, folders, names in os.walk(folder, onerror=_raise):
        folders[:] = [name for name in folders if not name.startswith(".")]
        texts = set[str]()
        for name in sorted(names):  # of two names that are spelt alike one is taken
            path = os.path.join(where, name)
            if not name.startswith(".") and os.path.isfile(path) and text_of_path(path) not in texts:
                texts.add(text_of_path(path))
                yield text_of_path(path)


def files_matching(fs: Any, pattern: str) -> Iterator[str]:
    """The address of every file that a glob matches; hidden names are not, unless the pattern asks for dots."""
    if not is_local(fs):
        fs.invalidate_cache()
    start = min(pattern.find(char) for char in _MAGIC if char in pattern)
    fixed = pattern[:start].rpartition("/")[0] + "/"
    asks_for_dots = any(part.startswith(".") and part not in (".", "..") for part in pattern[len(fixed) :].split("/"))
    for path, info in fs.glob(pattern, detail=True).items():
        if not asks_for_dots and _is_hidden(path.removeprefix(fixed)):
            continue
        if is_local(fs):
            if os.path.isfile(path):
                yield text_of_path(path)
        elif info["type"] == "file" and not path.endswith("/"):
            yield str(fs.unstrip_protocol(path))


def _is_hidden(path: str) -> bool:
    return is_hidden(path.encode("utf-8", "surrogateescape"))


def _raise(error: OSError) -> None:
    raise error
