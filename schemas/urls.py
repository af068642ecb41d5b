"""Where a URL or a path of this machine leads: its file system, and the path in that."""

from __future__ import annotations

from typing import IO, cast

import fsspec
from fsspec import AbstractFileSystem

__all__ = ["filesystem_of", "open_to_read"]


def filesystem_of(url: str) -> tuple[AbstractFileSystem, str]:
    """The file system of a URL, and the path in it.

    Text without "://" is a path of this machine, and every character of it is meant: fsspec would take "::" for a chain
    of file systems. Raises ImportError or ValueError where the URL's scheme has no backend.
    """
    if "://" in url:
        return cast("tuple[AbstractFileSystem, str]", fsspec.core.url_to_fs(url))
    fs = fsspec.filesystem("file")
    return fs, str(fs._strip_protocol(url))


def open_to_read(url: str) -> IO[bytes]:
    """Open the one file of a URL or path, whatever characters are in its name; it is never taken for a pattern."""
    fs, path = filesystem_of(url)
    return cast("IO[bytes]", fs.open(path, "rb"))
