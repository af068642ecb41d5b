"""One stored source file, open for reading: the store's failures told from the data's."""

from __future__ import annotations

from contextlib import suppress
from typing import IO

from fsspec.spec import AbstractFileSystem

from tatok.pipeline.storage.failures import is_permanent
from tatok.pipeline.storage.read_ahead import ReadAhead
from tatok.pipeline.storage.remedies import access_remedy
from tatok.schemas.errors import SourceError
from tatok.schemas.urls import filesystem_of, open_to_read

__all__ = ["SourceReader", "open_forward", "open_source", "source_error"]

_BLOCK_BYTES = 8 << 20  # measured on S3 (docs/results/read-ahead.md)
_FAR = frozenset({"s3", "gs", "abfs", "hf", "http"})  # protocols whose files can be read without a cache, by ranges


def source_error(what: str, error: Exception, url: str) -> SourceError:
    """The SourceError for an exception of an fsspec backend, all of which have exceptions of their own."""
    permanent, remedy = is_permanent(error), access_remedy(error, url, "read")
    told: BaseException = error
    if isinstance(error, FileNotFoundError) and not permanent and error.__cause__ is not None:
        told = error.__cause__  # "not found" is what fsspec says of a web server that does not answer
    if isinstance(told, TimeoutError) and not str(told):
        return SourceError(f"{what}: no answer in time", is_permanent=permanent, remedy=remedy)
    return SourceError(f"{what}: {str(told) or type(told).__name__}", is_permanent=permanent, remedy=remedy)


def open_source(uri: str) -> IO[bytes]:
    """Open a source file; raises SourceError if the store refuses."""
    try:
        return open_to_read(uri)
    except Exception as error:
        raise source_error(f"cannot open {uri}", error, uri) from error


def open_forward(uri: str) -> IO[bytes] | ReadAhead:
    """Open a source file to be read from one place on; raises SourceError if the store refuses."""
    try:
        fs, path = filesystem_of(uri)
        block_bytes = _block_bytes(fs)
        if block_bytes is None:
            return fs.open(path, "rb")
        return ReadAhead(fs.open(path, "rb", block_size=block_bytes, cache_type="none"), block_bytes)
    except Exception as error:
        raise source_error(f"cannot open {uri}", error, uri) from error


def _block_bytes(fs: AbstractFileSystem) -> int | None:
    """How much to fetch at a time; None where that is the backend's business, or the job's storage options say how."""
    protocols = (fs.protocol,) if isinstance(fs.protocol, str) else fs.protocol
    given = fs.storage_options
    if not _FAR.intersection(protocols) or "default_cache_type" in given or "cache_type" in given:
        return None
    return given.get("default_block_size", given.get("block_size", _BLOCK_BYTES)) or None


class SourceReader:
    """Reads forward and counts bytes.

    A file that ends before the size that it was planned with was cut by the store or on its way: the data may be
    whole, so that is no damage of the data but a SourceError.
    """

    closed = False  # what pyarrow.PythonFile asks of a file

    def __init__(self, file: IO[bytes] | ReadAhead, uri: str, *, num_bytes: int) -> None:
        self.num_bytes = 0
        self._file = file
        self._uri = uri
        self._expected_bytes = num_bytes
        self._ahead = b""

    def peek(self, size: int) -> bytes:
        """The next bytes, which stay to be read; fewer at the end of the file."""
        while len(self._ahead) < size:
            data = self._read(size - len(self._ahead))
            if not data:
                break
            self._ahead += data
        return self._ahead[:size]

    def read(self, size: int = -1) -> bytes:
        """At most `size` bytes, b"" at the end of the file; raises SourceError if the store fails."""
        if self._ahead:
            data, self._ahead = (self._ahead, b"") if size < 0 else (self._ahead[:size], self._ahead[size:])
            return data + self._read(-1) if size < 0 else data
        return self._read(size)

    def close(self) -> None:
        """Close the file."""
        with suppress(Exception):  # nothing was written: a failing close loses nothing
            self._file.close()

    def _read(self, size: int) -> bytes:
        try:
            data = self._file.read(size)
        except Exception as error:
            raise SourceError(
                f"cannot read {self._uri} at byte {self.num_bytes}: {error!r}",
                is_permanent=is_permanent(error),
                remedy=access_remedy(error, self._uri, "read"),
            ) from error
        self.num_bytes += len(data)
        if not data and size and self.num_bytes < self._expected_bytes:
            raise SourceError(
                f"{self._uri} ended after {self.num_bytes} of {self._expected_bytes} bytes: the connection was cut, or "
                "the file was replaced after it was listed; run the job again"
            )
        return data
