"""Where a URL or a path of this machine leads: its file system, and the path in that."""

from __future__ import annotations

import os
import re
from typing import IO, cast

import fsspec
from fsspec import AbstractFileSystem

__all__ = ["filesystem_of", "local_path", "open_to_read", "text_of_path"]

_ESCAPED_BYTE = re.compile(r"\\x([89a-f][0-9a-f])")


def filesystem_of(url: str) -> tuple[AbstractFileSystem, str]:
    """The file system of a URL, and the path in it.

    Text without "://" is a path of this machine, and every character of it is meant: fsspec would take "::" for a chain
    of file systems. Such a path is the one of `local_path`. Raises ImportError or ValueError where the URL's scheme has
    no backend.
    """
    if "://" in url:
        return cast("tuple[AbstractFileSystem, str]", fsspec.core.url_to_fs(url))
    fs = fsspec.filesystem("file")
    return fs, local_path(str(fs._strip_protocol(url)))


def text_of_path(path: str) -> str:
    """A path of this machine as text that every file and column takes.

    Names on disks are bytes. Where they are no UTF-8, Python holds the others as surrogates, which nothing can encode;
    here they become "\\xNN", as in the names of a tar's members.
    """
    return path.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")


def local_path(text: str) -> str:
    """The path that `text_of_path` made this text of, for the operating system; any other path as it is.

    A name that is there as it is written is meant, whatever it looks like.
    """
    if not _ESCAPED_BYTE.search(text):
        return text
    found = "/" if text.startswith("/") else ""
    for name in text.split("/"):
        path = os.path.join(found, name)
        if name and not os.path.lexists(path):
            raw = _ESCAPED_BYTE.sub(lambda byte: chr(0xDC00 + int(byte[1], 16)), name)
            path = os.path.join(found, raw) if os.path.lexists(os.path.join(found, raw)) else path
        found = path
    return found


def open_to_read(url: str) -> IO[bytes]:
    """Open the one file of a URL or path, whatever characters are in its name; it is never taken for a pattern."""
    fs, path = filesystem_of(url)
    return cast("IO[bytes]", fs.open(path, "rb"))
