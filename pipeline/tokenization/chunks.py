"""Decoded results -> chunks that are worth sending to another process."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator

from tatok.schemas.records import Clip, Reject

__all__ = ["in_chunks"]


def in_chunks(
    results: Iterable[Clip | Reject],
    *,
    size: int,
    num_bytes: int,
    seconds: float,
    clock: Callable[[], float] = time.monotonic,
) -> Iterator[list[Clip | Reject]]:
    """Cut results, in their order, where a chunk's pixels come to `num_bytes`, or it has `size` and took `seconds`.

    What a chunk costs on its way hardly depends on its size, so small images go together by more than `size`, as long
    as nobody waits for them: of slow ones a chunk never holds more than `size`.
    """
    chunk, chunk_bytes, started = list[Clip | Reject](), 0, clock()
    for result in results:
        chunk.append(result)
        chunk_bytes += 0 if isinstance(result, Reject) else result.pixels.nbytes
        if chunk_bytes >= num_bytes or (len(chunk) >= size and clock() - started >= seconds):
            yield chunk
            chunk, chunk_bytes, started = [], 0, clock()
    if chunk:
        yield chunk
