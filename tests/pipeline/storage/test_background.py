from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tatok.pipeline.storage.background import AnsweringFile, answered, in_steps


def test_what_is_silent_is_a_timeout() -> None:
    with pytest.raises(TimeoutError, match=r"no answer within 0\.1 s"):
        answered(lambda: time.sleep(30), 0.1)
    with pytest.raises(ZeroDivisionError):
        answered(lambda: 1 // 0)
    assert answered(lambda: 1) == 1


def test_a_listing_may_be_long_but_not_stand_still() -> None:
    assert list(in_steps(lambda: iter(range(2500)))) == list(range(2500))
    assert list(in_steps(lambda: iter(()))) == []

    def stops_in_its_middle() -> Iterator[int]:
        yield from range(1500)
        time.sleep(30)

    taken: list[int] = []
    with pytest.raises(TimeoutError):
        taken.extend(in_steps(stops_in_its_middle, 0.2))
    assert taken == list(range(1000)), "the first page"


def test_a_files_reads_are_asked_for_and_all_else_is_the_files(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"abcdef")
    asked: list[bytes] = []

    def ask(read: Callable[[], bytes]) -> bytes:
        asked.append(read())
        return asked[-1]

    with AnsweringFile((tmp_path / "file").open("rb"), ask) as file:
        file.seek(2)
        assert (file.read(2), file.tell()) == (b"cd", 4)
    assert (asked, file.closed) == ([b"cd"], True)
