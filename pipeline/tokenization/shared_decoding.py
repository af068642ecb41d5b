"""Samples, read once -> results in their order, decoded here and by helpers; no Ray.

The reader keeps the order and everything that decides what a row is. Helpers are given short lists of raw samples, and
whatever nobody has room for the reader decodes itself meanwhile, so that nobody waits while there is work. A helper
that is lost costs its list's time: the list is decoded again here, each sample in a child process. Where that finds a
sample that takes its process along, all further ones of the shard are decoded so, as in the attempt after a crash.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack
from typing import Protocol

from tatok.pipeline.tokenization.chunks import StillThere
from tatok.pipeline.tokenization.clip_chunk import ClipChunk
from tatok.schemas.records import Clip, Reject, Sample

__all__ = ["NO_HELPERS", "HelperLost", "Helpers", "SentSamples", "SharedDecoding"]

_LIST_S = 0.1  # that a list should take whoever decodes it
_FIRST_LIST, _LONGEST_LIST = 4, 256  # samples
_ALIVE_S = 1.0  # without a result, after which a sign of life is due
_MOST_LISTS = 256
_CULPRITS = ("decoder_crash", "decoder_hang")

Item = Sample | Reject
Result = Clip | Reject
Decode = Callable[[Sample], Iterator[Result]]


class HelperLost(Exception):
    """A helper is dead, or does not answer; it gets no more lists."""


class SentSamples(Protocol):
    """A list that a helper was given."""

    def is_done(self) -> bool:
        """Whether the helper has finished with it, or is lost."""

    def chunks(self) -> Iterator[ClipChunk | StillThere]:
        """What became of the samples, in their order. Raises HelperLost, and the SourceError that the helper met."""


class Helpers(Protocol):
    """Processes that decode for this one, as many as there are at the moment."""

    def __bool__(self) -> bool:
        """Whether there are any."""

    def send(self, items: Sequence[Item]) -> SentSamples | None:
        """Give the list to one that has room; None where none has."""


class _NoHelpers:
    def __bool__(self) -> bool:
        return False

    def send(self, items: Sequence[Item]) -> None:
        return None


NO_HELPERS: Helpers = _NoHelpers()


class SharedDecoding:
    """The results of one shard's samples.

    `guarded` opens a decoder that survives any sample. A list ends at `list_bytes` of raw samples. `ahead_bytes` of
    pixels this process holds of lists that must wait for others before them.
    """

    def __init__(
        self,
        decode: Decode,
        guarded: Callable[[], AbstractContextManager[Decode]],
        helpers: Helpers,
        *,
        list_bytes: int,
        ahead_bytes: int,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._decode = decode
        self._guarded = guarded
        self._helpers = helpers
        self._list_bytes = list_bytes
        self._ahead_bytes = ahead_bytes
        self._clock = clock
        self._seconds, self._count = 0.0, 0  # of decoding here
        self._told_at = clock()
        self._stack = ExitStack()
        self._guard: Decode | None = None  # once a sample was found that needs it

    def results(self, items: Iterator[Item]) -> Iterator[Result | ClipChunk | StillThere]:
        """Of every item, in their order; in chunks, where they come from helpers."""
        with self._stack:
            for each in self._in_order(items):
                self._told_at = self._clock()
                yield each

    def _in_order(self, items: Iterator[Item]) -> Iterator[Result | ClipChunk | StillThere]:
        waiting = deque[_Here | _There]()
        for some in self._lists(items):
            sent = self._helpers.send(some) if self._guard is None else None
            if sent is not None:
                waiting.append(_There(some, sent))
            elif not waiting:
                yield from self._here(some)
            else:
                here = _Here(self._here(some))
                waiting.append(here)
                while self._guard is None and here.fetch(self._ahead_bytes):
                    if self._clock() - self._told_at > _ALIVE_S:
                        yield StillThere()
            while waiting and (waiting[0].is_done() or self._is_full(waiting)):
                yield from self._given_out(waiting.popleft())
        while waiting:
            yield from self._given_out(waiting.popleft())

    def _lists(self, items: Iterator[Item]) -> Iterator[list[Item]]:
        """One by one where nobody helps, so that no sample waits for the next to be read."""
        some, num_bytes = list[Item](), 0
        for item in items:
            some.append(item)
            num_bytes += len(item.payload) if isinstance(item, Sample) else 0
            if not self._helpers or len(some) >= self._list_length or num_bytes >= self._list_bytes:
                yield some
                some, num_bytes = [], 0
        if some:
            yield some

    @property
    def _list_length(self) -> int:
        if not self._count:
            return _FIRST_LIST
        return round(min(max(_LIST_S * self._count / max(self._seconds, 1e-9), 1), _LONGEST_LIST))

    def _is_full(self, waiting: Sequence[_Here | _There]) -> bool:
        held = sum(each.num_bytes for each in waiting if isinstance(each, _Here))
        return held >= self._ahead_bytes or len(waiting) >= _MOST_LISTS

    def _here(self, items: Iterable[Item]) -> Iterator[Result | StillThere]:
        for item in items:
            if isinstance(item, Reject):
                yield item
            elif self._guard is not None:
                yield StillThere(is_guarded=True)
                yield from self._guard(item)
            else:
                yield from self._timed(self._decode(item))

    def _timed(self, results: Iterator[Result]) -> Iterator[Result]:
        self._count += 1
        while True:
            started = self._clock()
            result = next(results, None)
            self._seconds += self._clock() - started
            if result is None:
                return
            yield result

    def _given_out(self, some: _Here | _There) -> Iterator[Result | ClipChunk | StillThere]:
        if isinstance(some, _Here):
            yield from some.results()
            return
        num_results = 0
        try:
            for each in some.sent.chunks():
                num_results += len(each) if isinstance(each, ClipChunk) else 0
                yield each
        except HelperLost:
            yield from self._again(some.items, num_results)

    def _again(self, items: Iterable[Item], num_given: int) -> Iterator[Result | StillThere]:
        """All but the first results of a list, decoded so that none of its samples can do harm."""
        guard = self._guard or self._stack.enter_context(self._guarded())
        num_results = 0
        for item in items:
            if isinstance(item, Sample):
                yield StillThere(is_guarded=True)
            for each in guard(item) if isinstance(item, Sample) else (item,):
                num_results += 1
                if isinstance(each, Reject) and each.reason in _CULPRITS:
                    self._guard = guard
                if num_results > num_given:
                    yield each


class _There:
    """A list at a helper."""

    def __init__(self, items: Sequence[Item], sent: SentSamples) -> None:
        self.items, self.sent = items, sent

    def is_done(self) -> bool:
        return self.sent.is_done()


class _Here:
    """A list that is decoded here before its turn, as far as memory goes."""

    def __init__(self, results: Iterator[Result | StillThere]) -> None:
        self.num_bytes = 0
        self._rest = results
        self._held = deque[Result]()

    def fetch(self, most_bytes: int) -> bool:
        """One result more; False where there is none, or enough are held."""
        if self.num_bytes >= most_bytes:
            return False
        each = next(self._rest, None)
        if isinstance(each, Clip):
            self.num_bytes += each.pixels.nbytes
        if isinstance(each, Clip | Reject):
            self._held.append(each)
        return each is not None

    def is_done(self) -> bool:
        """What is left is decoded when its turn has come."""
        return True

    def results(self) -> Iterator[Result | StillThere]:
        while self._held:
            yield self._held.popleft()
        yield from self._rest
