"""A stored file, read forward: its next block is fetched while this one is worked on.

fsspec's own background cache does that too, but takes a block that comes shorter than asked for as if it were whole,
so that bytes would be missing in the middle of what is read.
"""

from __future__ import annotations

from concurrent.futures import Future
from typing import IO, Self

from tatok.pipeline.storage.background import begin

__all__ = ["ReadAhead"]


class ReadAhead:
    """Reads `file`, which has no cache of its own, by blocks; two of them are held. Closes it at the end."""

    def __init__(self, file: IO[bytes], block_bytes: int) -> None:
        self._file = file
        self._block_bytes = block_bytes
        self._block, self._at = b"", 0
        self._next: Future[bytes] | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def seek(self, offset: int) -> None:
        """Begin there; to be called before anything is read."""
        assert self._next is None, "it is read forward"
        self._file.seek(offset)

    def read(self, size: int = -1) -> bytes:
        """At most `size` bytes, b"" at the end of the file; fewer at the end of a block."""
        if size < 0:
            return b"".join(iter(lambda: self.read(self._block_bytes), b""))
        if self._at == len(self._block):
            self._block, self._at = self._take(), 0
        data = self._block[self._at : self._at + size]
        self._at += len(data)
        return data

    def close(self) -> None:
        """Close the file; a block that is under way is not waited for."""
        self._file.close()

    def _take(self) -> bytes:
        coming, self._next = self._next or begin(self._fetch), None
        block = coming.result()
        if block:
            self._next = begin(self._fetch)
        return block

    def _fetch(self) -> bytes:
        return self._file.read(self._block_bytes)
