"""A source file, read or skipped through from its start to its end, decompressed where it is compressed."""

from __future__ import annotations

import bz2
import gzip
import lzma
import os
import zlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import IO, Any

import pyarrow as pa

from tatok.schemas.errors import SourceError
from tatok.schemas.urls import filesystem_of

__all__ = ["DAMAGE", "Forward", "is_local", "open_stored"]

# What the decompressors raise on bytes that are not what they should be; of stores, only SourceError comes out of here.
DAMAGE = (EOFError, zlib.error, lzma.LZMAError, pa.ArrowException, OSError, ValueError)

_BLOCK_BYTES = 4 << 20  # fetched at a time from a store
_SKIP_BYTES = 1 << 20
_DECOMPRESSORS: Mapping[bytes, Callable[[Any], Any]] = {
    b"\x1f\x8b": lambda file: gzip.GzipFile(fileobj=file),
    b"BZh": bz2.BZ2File,
    b"\xfd7zXZ\0": lzma.LZMAFile,
    b"\x28\xb5\x2f\xfd": lambda file: pa.CompressedInputStream(pa.PythonFile(file, mode="r"), "zstd"),
}


def is_local(fs: Any) -> bool:
    """Whether paths of this file system are those of the machine."""
    return "file" in ((fs.protocol,) if isinstance(fs.protocol, str) else fs.protocol)


class _Stored:
    """A file of a disk or store whose failures are SourceErrors, so that they are not taken for damage."""

    closed = False  # what pyarrow asks of a file

    def __init__(self, file: IO[bytes], uri: str, size: int | None) -> None:
        self.size = size
        self._file, self._uri = file, uri

    def read(self, size: int = -1) -> bytes:
        try:
            return self._file.read(size)
        except Exception as error:  # every fsspec backend has exceptions of its own
            raise SourceError(f"cannot read {self._uri}: {str(error) or type(error).__name__}") from error

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        try:
            return self._file.seek(offset, whence)
        except Exception as error:
            raise SourceError(f"cannot read {self._uri}: {str(error) or type(error).__name__}") from error

    def tell(self) -> int:
        return self._file.tell()

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return self.size is not None

    def writable(self) -> bool:
        return False

    def flush(self) -> None:
        """Nothing was written."""

    def close(self) -> None:
        """Whoever opened it closes it."""


@contextmanager
def open_stored(uri: str) -> Iterator[_Stored]:
    """A file by its address, for the time being; raises SourceError if the store refuses."""
    with ExitStack() as stack:
        try:
            fs, path = filesystem_of(uri)
            if is_local(fs):
                file = stack.enter_context(open(path, "rb"))
                size: int | None = os.fstat(file.fileno()).st_size
            else:
                file = stack.enter_context(fs.open(path, "rb", block_size=_BLOCK_BYTES))
                size = getattr(file, "size", None)  # a server may not say
        except Exception as error:
            raise SourceError(f"cannot open {uri}: {str(error) or type(error).__name__}") from error
        yield _Stored(file, uri, size)


class Forward:
    """Reads forward; what is skipped in an uncompressed file of known size is not read.

    `is_compressed` says whether bytes are decompressed on their way; then any of DAMAGE may come out of it, too.
    """

    def __init__(self, file: _Stored) -> None:
        head = file.read(max(map(len, _DECOMPRESSORS)))
        self.is_compressed = head.startswith(tuple(_DECOMPRESSORS))
        self.position = 0
        self._size = None if self.is_compressed else file.size
        self._head = b"" if self.is_compressed or file.seekable() else head
        self._file: Any = file
        if file.seekable():
            file.seek(0)
        elif self.is_compressed:
            self._file = _Again(head, file)
        decompress = next((start for magic, start in _DECOMPRESSORS.items() if head.startswith(magic)), None)
        if decompress is not None:
            self._file = decompress(self._file)

    def read(self, size: int) -> bytes:
        """The next `size` bytes, fewer only at the end."""
        data, self._head = self._head[:size], self._head[size:]
        while len(data) < size and (more := self._file.read(size - len(data))):
            data += more
        self.position += len(data)
        return data

    def skip(self, size: int) -> bool:
        """Go on by `size` bytes; False where the file ends before."""
        if self._size is not None:
            self.position += size
            if self.position > self._size:
                return False
            self._file.seek(self.position)
            return True
        while size > 0:
            data = self.read(min(size, _SKIP_BYTES))
            if not data:
                return False
            size -= len(data)
        return True

    def is_zero_to_the_end(self) -> bool:
        """Whether nothing but zeros follows; reads it all, or up to the first other byte."""
        while data := self.read(_SKIP_BYTES):
            if data.count(0) != len(data):
                return False
        return True


class _Again:
    """A file that cannot go back, with the bytes that were read from it already before it again."""

    closed = False

    def __init__(self, head: bytes, file: _Stored) -> None:
        self._head, self._file = head, file

    def read(self, size: int = -1) -> bytes:
        if not self._head:
            return self._file.read(size)
        data, self._head = (self._head, b"") if size < 0 else (self._head[:size], self._head[size:])
        return data + self._file.read(-1) if size < 0 else data

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return False

    def writable(self) -> bool:
        return False

    def flush(self) -> None:
        """Nothing was written."""

    def close(self) -> None:
        """Whoever opened it closes it."""
