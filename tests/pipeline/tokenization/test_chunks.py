"""Where chunks end: by bytes, or by number once they have taken their time."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import count

import numpy as np

from tatok.pipeline.tokenization.chunks import in_chunks
from tatok.schemas.records import Clip, Crop, Reject


def clip(index: int, side: int = 8) -> Clip:
    return Clip(
        key=str(index),
        uri="a.tar",
        index=index,
        media="image",
        pixels=np.zeros((1, 3, side, side), np.uint8),
        width=side,
        height=side,
        crop=Crop(left=0, top=0, width=side, height=side),
        sha256="",
    )


def reject(index: int) -> Reject:
    return Reject(key=str(index), uri="a.tar", index=index, stage="decode", reason="corrupt", detail="")


def sizes(results: list[Clip | Reject], *, num_bytes: int, seconds: float) -> list[int]:
    """Of chunks of at least 4, by a clock that tells one second more each time that it is asked."""
    ticks = map(float, count())
    chunks = list(in_chunks(results, size=4, num_bytes=num_bytes, seconds=seconds, clock=lambda: next(ticks)))
    assert [result for chunk in chunks for result in chunk] == results
    return [len(chunk) for chunk in chunks]


def test_quick_small_results_go_together() -> None:
    assert sizes([clip(i) for i in range(40)], num_bytes=16 * 192, seconds=1e9) == [16, 16, 8]
    assert sizes([clip(i) for i in range(40)], num_bytes=1 << 20, seconds=1e9) == [40]


def test_nothing_waits_for_long() -> None:
    assert sizes([clip(i) for i in range(10)], num_bytes=1 << 20, seconds=0.0) == [4, 4, 2]
    # From the fourth result on the clock is asked once a result, and the first answer is a second after the start.
    assert sizes([clip(i) for i in range(14)], num_bytes=1 << 20, seconds=3.0) == [6, 6, 2]


def test_large_clips_end_a_chunk_before_its_size() -> None:
    assert sizes([clip(0, 32), clip(1, 32), clip(2, 32)], num_bytes=2 * 3 * 32 * 32, seconds=1e9) == [2, 1]


def test_rejects_have_no_bytes_but_take_time() -> None:
    assert sizes([reject(i) for i in range(9)], num_bytes=1, seconds=0.0) == [4, 4, 1]
    assert sizes([reject(0), clip(1), reject(2)], num_bytes=1, seconds=1e9) == [2, 1]


def test_results_are_taken_as_they_are_needed() -> None:
    taken = []

    def results() -> Iterator[Clip]:
        for index in range(8):
            taken.append(index)
            yield clip(index)

    next(in_chunks(results(), size=4, num_bytes=1 << 20, seconds=0.0))
    assert taken == [0, 1, 2, 3]
