"""One stored source file, open for reading: the store's failures told from the data's."""

from __future__ import annotations

from contextlib import suppress
from typing import IO

import fsspec

from pipeline.permanent import is_permanent
from schemas.errors import SourceError

__all__ = ["SourceReader", "open_source", "source_error"]


def source_error(what: str, error: Exception) -> SourceError:
    """The SourceError for an exception of an fsspec backend, all of which have exceptions of their own."""
    return SourceError(f"{what}: {str(error) or type(error).__name__}", is_permanent=is_permanent(error))


def open_source(uri: str) -> IO[bytes]:
    """Open a source file; raises SourceError where the store refuses."""
    try:
        return fsspec.open(uri, "rb").open()
    except Exception as error:
        raise source_error(f"cannot open {uri}", error) from error


class SourceReader:
    """Reads forward and counts bytes.

    A file that ends before the size that it was planned with was cut by the store or on its way: the data may be
    whole, so that is no damage of the data but a SourceError.
    """

    closed = False  # what pyarrow.PythonFile asks of a file

    def __init__(self, file: IO[bytes], uri: str, *, num_bytes: int) -> None:
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
        """At most `size` bytes, b"" at the end of the file; raises SourceError where the store fails."""
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
                f"cannot read {self._uri} at byte {self.num_bytes}: {error!r}", is_permanent=is_permanent(error)
            ) from error
        self.num_bytes += len(data)
        if not data and size and self.num_bytes < self._expected_bytes:
            raise SourceError(
                f"{self._uri} ended after {self.num_bytes} of {self._expected_bytes} bytes: the connection was cut, or "
                "the file was replaced after it was listed; run the job again"
            )
        return data
