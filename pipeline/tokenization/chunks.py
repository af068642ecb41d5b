"""Decoded results -> chunks that are worth sending to another process."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

from tatok.pipeline.tokenization.clip_chunk import ClipChunk
from tatok.schemas.records import Clip, Reject

__all__ = ["StillThere", "in_chunks"]


@dataclass(frozen=True, slots=True)
class StillThere:
    """Nothing yet, but work continues: so that nobody takes the decoder for one that hangs.

    `is_guarded`: what comes next may take as long as a sample may in a child process, and that process's start.
    """

    is_guarded: bool = False


def in_chunks(
    results: Iterable[Clip | Reject | ClipChunk | StillThere],
    *,
    size: int,
    num_bytes: int,
    seconds: float,
    clock: Callable[[], float] = time.monotonic,
) -> Iterator[list[Clip | Reject] | ClipChunk | StillThere]:
    """Cut results, in their order, where a chunk's pixels come to `num_bytes`, or it has `size` and took `seconds`.

    What is a chunk already, of another process, ends the one before it and passes; so does a sign of life.
    What a chunk costs on its way hardly depends on its size, so small images go together by more than `size`, as long
    as nobody waits for them: of slow ones a chunk never holds more than `size`.
    """
    chunk, chunk_bytes, started = list[Clip | Reject](), 0, clock()
    for result in results:
        if isinstance(result, ClipChunk | StillThere):
            if chunk:
                yield chunk
            yield result
            chunk, chunk_bytes, started = [], 0, clock()
            continue
        chunk.append(result)
        chunk_bytes += 0 if isinstance(result, Reject) else result.pixels.nbytes
        if chunk_bytes >= num_bytes or (len(chunk) >= size and clock() - started >= seconds):
            yield chunk
            chunk, chunk_bytes, started = [], 0, clock()
    if chunk:
        yield chunk
