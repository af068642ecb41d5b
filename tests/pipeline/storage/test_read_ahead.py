"""A file is read forward as it is, whatever the block; its next block is fetched meanwhile."""

from __future__ import annotations

import io
import threading

import fsspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tatok.pipeline.storage.options import storage_options
from tatok.pipeline.storage.read_ahead import ReadAhead
from tatok.pipeline.storage.source_file import open_forward


@given(
    data=st.binary(max_size=200),
    block_bytes=st.integers(1, 64),
    sizes=st.lists(st.integers(1, 80)),
    start=st.integers(0, 20),
)
def test_reads_what_is_there(data: bytes, block_bytes: int, sizes: list[int], start: int) -> None:
    with ReadAhead(io.BytesIO(data), block_bytes) as file:
        file.seek(start)
        found = b"".join(file.read(size) for size in sizes)
        assert data[start:].startswith(found)
        assert found + file.read() == data[start:]
        assert file.read(10) == b""


class Watched(io.BytesIO):
    """Tells which reads have begun, and fails where it is told to."""

    def __init__(self, data: bytes, fail_at: int = -1) -> None:
        super().__init__(data)
        self.begun = [threading.Event() for _ in range(10)]
        self._number, self._fail_at = 0, fail_at

    def read(self, size: int | None = -1) -> bytes:
        number, self._number = self._number, self._number + 1
        self.begun[number].set()
        if number == self._fail_at:
            raise ConnectionError("the store went away")
        return super().read(size)


def test_the_next_block_is_fetched_while_this_one_is_worked_on() -> None:
    stored = Watched(b"a" * 10 + b"b" * 10 + b"c" * 10)
    with ReadAhead(stored, 10) as file:
        assert file.read(3) == b"aaa"
        assert stored.begun[1].wait(5), "without being asked for"
        assert not stored.begun[2].wait(0.1), "but no further"


def test_what_fails_ahead_is_raised_when_it_is_asked_for() -> None:
    with ReadAhead(Watched(b"a" * 10 + b"b" * 10, fail_at=1), 10) as file:
        assert file.read(10) == b"a" * 10
        with pytest.raises(ConnectionError, match="went away"):
            file.read(10)


def test_buckets_are_read_ahead_unless_the_job_says_how(s3_bucket: str) -> None:
    fsspec.filesystem("s3").pipe_file(f"{s3_bucket}/ahead.tar", b"x" * 100)
    with storage_options({}), open_forward(f"s3://{s3_bucket}/ahead.tar") as file:
        assert isinstance(file, ReadAhead)
        assert file.read() == b"x" * 100
    with storage_options({"s3": {"default_cache_type": "bytes"}}):
        file = open_forward(f"s3://{s3_bucket}/ahead.tar")
        assert not isinstance(file, ReadAhead)
        assert file.read() == b"x" * 100
        file.close()
