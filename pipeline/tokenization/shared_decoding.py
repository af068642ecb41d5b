"""Samples, read once -> results in their order, decoded here and by helpers; no Ray.

The reader keeps the order and everything that decides what a row is. Helpers are given short lists of raw samples, and
whatever nobody has room for the reader decodes itself meanwhile, so that nobody waits while there is work. A helper
that is lost costs its list's time: the list is decoded again here, each sample in a child process. Where that finds a
sample that takes its process along, all further ones of the shard are decoded so, as in the attempt after a crash.

A long video is given to nobody as a whole. It is begun here, and once anybody helps, what is left of it is cut into
pieces, which are lists of their own. Where a piece is not what the cut foresaw, the whole goes on here.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import AbstractContextManager, ExitStack, closing
from dataclasses import dataclass
from itertools import takewhile
from typing import Protocol

from tatok.pipeline.decode.pieces import ELSEWHERE, LongVideos, SamplePiece
from tatok.pipeline.tokenization.chunks import StillThere
from tatok.pipeline.tokenization.clip_chunk import ClipChunk
from tatok.schemas.records import Clip, Reject, Sample

__all__ = ["NO_HELPERS", "Expected", "HelperLost", "Helpers", "Item", "SentSamples", "SharedDecoding"]

_LIST_S = 0.1  # that a list should take whoever decodes it
_FIRST_LIST, _LONGEST_LIST = 4, 256  # samples
_ALIVE_S = 1.0  # without a result, after which a sign of life is due
_MOST_LISTS = 256
_LOST = "helper_lost"  # of a piece; no row's
_CULPRITS = ("decoder_crash", "decoder_hang")

Item = Sample | SamplePiece | Reject
Result = Clip | Reject
Decode = Callable[[Sample], Iterator[Result]]


class HelperLost(Exception):
    """A helper is dead, or does not answer; it gets no more lists."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Expected:
    """What a list brings to whoever is given it: pictures, as far as known (of a whole video one), and raw bytes."""

    num_pictures: int
    has_videos: bool
    payload_bytes: int

    @staticmethod
    def of(items: Sequence[Item]) -> Expected:
        """Of a list."""
        samples = [item for item in items if isinstance(item, Sample)]
        pieces = [item for item in items if isinstance(item, SamplePiece)]
        return Expected(
            num_pictures=len(samples) + sum(piece.num_pictures for piece in pieces),
            has_videos=bool(pieces) or any(sample.media == "video" for sample in samples),
            payload_bytes=sum(len(sample.payload) for sample in samples),
        )


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

    `long` knows which of them are long videos, and cuts them.

    `guarded` opens a decoder that survives any sample. A list ends at `list_bytes` of raw samples. `ahead_bytes` of
    pixels this process holds of lists that must wait for others before them.
    """

    def __init__(
        self,
        decode: Decode,
        guarded: Callable[[], AbstractContextManager[Decode]],
        helpers: Helpers,
        *,
        long: LongVideos,
        list_bytes: int,
        ahead_bytes: int,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._decode = decode
        self._guarded = guarded
        self._helpers = helpers
        self._long = long
        self._list_bytes = list_bytes
        self._ahead_bytes = ahead_bytes
        self._clock = clock
        self._seconds, self._count = 0.0, 0  # of decoding here
        self._told_at = clock()
        self._stack = ExitStack()
        self._guard: Decode | None = None  # once a sample was found that needs it
        self._thread = ThreadPoolExecutor(1)  # for what gives no sign of life

    def results(self, items: Iterator[Item]) -> Iterator[Result | ClipChunk | StillThere]:
        """Of every item, in their order; in chunks, where they come from helpers."""
        self._stack.callback(self._thread.shutdown, wait=False)
        with self._stack:
            for each in self._in_order(items):
                self._told_at = self._clock()
                yield each

    def _in_order(self, items: Iterator[Item]) -> Iterator[Result | ClipChunk | StillThere]:
        waiting = deque[_Here | _There]()
        for some in self._lists(items):
            is_long = any(isinstance(item, Sample) and item in self._long for item in some)
            sent = self._helpers.send(some) if self._guard is None and not is_long else None
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
        """One by one where nobody helps, so that no sample waits for the next to be read; so are long videos."""
        some, num_bytes = list[Item](), 0
        for item in items:
            if isinstance(item, SamplePiece) or (isinstance(item, Sample) and item in self._long):
                if some:
                    yield some
                yield [item]
                some, num_bytes = [], 0
                continue
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

    def _here(self, items: Iterable[Item]) -> Iterator[Result | ClipChunk | StillThere]:
        for item in items:
            if isinstance(item, Reject):
                yield item
            elif isinstance(item, SamplePiece):
                yield from self._long.decode(item)
            elif self._guard is not None:
                yield StillThere(is_guarded=True)
                yield from self._guard(item)
            elif item in self._long:
                yield from self._begun_here(item)
            else:
                yield from self._timed(self._decode(item))

    def _begun_here(self, sample: Sample) -> Iterator[Result | ClipChunk | StillThere]:
        """A long video: the whole, until somebody helps; then its pieces, or where one fails, the whole again."""
        num_given, num_in_pieces, was_cut = 0, 0, False
        with self._long.on_disk(sample) as local, closing(self._timed(self._decode(local))) as whole:
            for result in whole:
                if num_in_pieces and isinstance(result, Clip):  # it was given, out of a piece
                    num_in_pieces -= 1
                    yield StillThere()
                    continue
                yield result
                num_given += 1
                if was_cut or not isinstance(result, Clip) or not self._helpers:
                    continue
                if num_given % self._long.results_per_clip:
                    continue  # further crops of the same frames follow
                was_cut, failures = True, list[Reject]()
                cut = self._thread.submit(self._long.cut, local, result, num_given)
                while not wait([cut], timeout=_ALIVE_S).done:
                    yield StillThere()
                pieces = cut.result()
                for each in self._in_pieces(pieces, failures):
                    yield each
                    num_in_pieces += _num_results(each)
                num_given += num_in_pieces
                if pieces and not failures:
                    return
                if any(failure.reason == _LOST for failure in failures):
                    break
            else:
                return
        yield from self._again([sample], num_given)

    def _in_pieces(
        self, pieces: Iterable[SamplePiece], failures: list[Reject]
    ) -> Iterator[Result | ClipChunk | StillThere]:
        """The results of the pieces before the first that fails; what others were given by then is theirs to finish."""
        for each in self._in_order(takewhile(lambda _: not failures, pieces)):
            failures.extend(_rejects(each))
            yield StillThere() if failures else each

    def _timed(self, results: Iterator[Result]) -> Generator[Result]:
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
                if any(reject.reason == ELSEWHERE for reject in _rejects(each)):
                    yield from self._here(some.items)
                    return
                num_results += _num_results(each)
                yield each
        except HelperLost:
            rest = list[Sample | Reject]()
            for item in some.items:
                if isinstance(item, SamplePiece):  # a list of its own
                    yield item.reject(_LOST, "a helper was lost")
                else:
                    rest.append(item)
            yield from self._again(rest, num_results)

    def _again(self, items: Sequence[Sample | Reject], num_given: int) -> Iterator[Result | StillThere]:
        """All but the first results of a list, decoded so that none of its samples can do harm."""
        if not items:
            return
        guard = self._guard or self._stack.enter_context(self._guarded())
        num_results = 0
        for item in items:
            if isinstance(item, Sample):
                yield StillThere(is_guarded=True)
            for each in guard(item) if isinstance(item, Sample) else (item,):
                num_results += 1
                if isinstance(each, Reject) and each.reason in _CULPRITS:
                    self._guard = guard
                yield each if num_results > num_given else StillThere(is_guarded=True)


class _There:
    """A list at a helper."""

    def __init__(self, items: Sequence[Item], sent: SentSamples) -> None:
        self.items, self.sent = items, sent

    def is_done(self) -> bool:
        return self.sent.is_done()


class _Here:
    """A list that is decoded here before its turn, as far as memory goes."""

    def __init__(self, results: Iterator[Result | ClipChunk | StillThere]) -> None:
        self.num_bytes = 0
        self._rest = results
        self._held = deque[Result | ClipChunk]()

    def fetch(self, most_bytes: int) -> bool:
        """One result more; False where there is none, or enough are held."""
        if self.num_bytes >= most_bytes:
            return False
        each = next(self._rest, None)
        if isinstance(each, Clip):
            self.num_bytes += each.pixels.nbytes
        elif isinstance(each, ClipChunk):
            self.num_bytes += each.nbytes
        if isinstance(each, Clip | ClipChunk | Reject):
            self._held.append(each)
        return each is not None

    def is_done(self) -> bool:
        """What is left is decoded when its turn has come."""
        return True

    def results(self) -> Iterator[Result | ClipChunk | StillThere]:
        while self._held:
            yield self._held.popleft()
        yield from self._rest


def _rejects(each: Result | ClipChunk | StillThere) -> list[Reject]:
    if isinstance(each, ClipChunk):
        return [item for item in each.order if isinstance(item, Reject)]
    return [each] if isinstance(each, Reject) else []


def _num_results(each: Result | ClipChunk | StillThere) -> int:
    if isinstance(each, ClipChunk):
        return len(each)
    return 0 if isinstance(each, StillThere) else 1
