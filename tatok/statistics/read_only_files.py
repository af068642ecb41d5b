"""A fixed set of files under names of our own, as a file system that DuckDB can read and nothing else.

DuckDB's threads share one handle of a file: each seeks, then reads. So a handle keeps a position for every thread; with
a shared one, threads would read each other's bytes.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from fsspec.spec import AbstractFileSystem

__all__ = ["PROTOCOL", "ReadOnlyFiles", "StoredFile"]

PROTOCOL = "tatok"
_TAIL_BYTES = 64 << 10  # a Parquet footer, as a rule
_MODIFIED = datetime(2000, 1, 1, tzinfo=UTC)  # parts never change; DuckDB asks all the same


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredFile:
    """A file on some file system; `num_bytes` is None where it must be asked for."""

    fs: AbstractFileSystem
    path: str
    num_bytes: int | None = None


class ReadOnlyFiles(AbstractFileSystem):
    """Files by name, such as "tatok://data/part-1.parquet"; all that can be done with them is to read them."""

    protocol = PROTOCOL
    cachable = False

    def __init__(self, files: Mapping[str, StoredFile]) -> None:
        super().__init__()
        self.failure: tuple[str, Exception] | None = None
        """The first file that could not be read, and why: DuckDB's own errors do not keep them."""
        self._files = dict(files)

    @property
    def urls(self) -> list[str]:
        """Every file's full name."""
        return [f"{PROTOCOL}://{name}" for name in self._files]

    def open(self, path: str, mode: str = "rb", **options: Any) -> _File:
        """Raises PermissionError for any mode but reading, FileNotFoundError for any other name."""
        if mode != "rb":
            raise PermissionError(f"{path} can only be read")
        return _File(self._file(path), self._failed)

    def info(self, path: str, **options: Any) -> dict[str, Any]:
        """Name, type and size, as fsspec wants them."""
        file = self._file(path)
        return {"name": self._strip_protocol(path), "type": "file", "size": _num_bytes(file)}

    def ls(self, path: str, detail: bool = True, **options: Any) -> list[Any]:
        """There are no folders."""
        raise FileNotFoundError(path)

    def modified(self, path: str) -> datetime:
        """The same moment for every file."""
        return _MODIFIED

    def _failed(self, path: str, error: Exception) -> None:
        self.failure = self.failure or (path, error)

    def _file(self, path: str) -> StoredFile:
        name = self._strip_protocol(path)
        if name not in self._files:
            raise FileNotFoundError(path)
        return self._files[name]


class _File:
    """What DuckDB uses of a Python file; safe for many threads that each seek before they read."""

    def __init__(self, file: StoredFile, on_failure: Callable[[str, Exception], None]) -> None:
        self.closed = False
        self._file = file
        self._on_failure = on_failure
        self._num_bytes = _num_bytes(file)
        self._tail: bytes | None = None
        self._thread = threading.local()

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return getattr(self._thread, "position", 0)

    def seek(self, offset: int, whence: int = 0) -> int:
        start = (0, self.tell(), self._num_bytes)[whence]
        self._thread.position = start + offset
        return self._thread.position

    def read(self, num_bytes: int = -1) -> bytes:
        start = self.tell()
        stop = self._num_bytes if num_bytes < 0 else min(start + num_bytes, self._num_bytes)
        if stop <= start:
            return b""
        block = self._read(start, stop)
        self._thread.position = start + len(block)
        return block

    def close(self) -> None:
        self.closed = True

    def _read(self, start: int, stop: int) -> bytes:
        # The end is read several times, a few bytes each; of a bucket each would be a request.
        first = max(self._num_bytes - _TAIL_BYTES, 0)
        if start < first:
            return self._fetch(start, stop)
        if self._tail is None:
            self._tail = self._fetch(first, self._num_bytes)
        return self._tail[start - first : stop - first]

    def _fetch(self, start: int, stop: int) -> bytes:
        try:
            block = self._file.fs.cat_file(self._file.path, start=start, end=stop)
            if len(block) != stop - start:
                raise OSError(f"it ends early: {len(block)} bytes at {start}, expected {stop - start}")
            return block
        except OSError as error:
            self._on_failure(self._file.path, error)
            raise


def _num_bytes(file: StoredFile) -> int:
    return file.fs.size(file.path) if file.num_bytes is None else file.num_bytes
