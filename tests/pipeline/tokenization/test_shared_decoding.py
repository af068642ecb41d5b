"""Samples decoded here and by helpers: the results are those of one process, in its order, whatever helpers do."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from itertools import count

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tatok.pipeline.decode.pieces import LongVideos
from tatok.pipeline.tokenization.chunks import StillThere
from tatok.pipeline.tokenization.clip_chunk import ClipChunk
from tatok.pipeline.tokenization.shared_decoding import NO_HELPERS, Decode, HelperLost, SharedDecoding
from tatok.schemas.errors import SourceError
from tatok.schemas.job import JobConfig
from tatok.schemas.records import Clip, Reject, Sample
from tests.support.parts import clip, reject

POISON = 1_000_000
NONE_LONG = LongVideos(JobConfig(source=("photos",), output="tokens"))
_CLIPS = [replace(clip(0, side=16), key=f"k{i}", sha256=f"{i:064}") for i in range(2000)]


def sample(index: int) -> Sample:
    return Sample(key=f"k{index}", uri="u", index=index, media="image", extension="png", payload=bytes(100))


def decode(sample: Sample) -> Iterator[Clip | Reject]:
    """Some have several clips, some are rejects, the poison takes its process along."""
    assert sample.index != POISON, "a crash"
    if sample.index % 7 == 3:
        yield reject(sample.index)
    for _ in range(sample.index % 3):
        yield _CLIPS[sample.index]


@contextmanager
def guarded() -> Iterator[Decode]:
    def survive(sample: Sample) -> Iterator[Clip | Reject]:
        if sample.index == POISON:
            yield Reject(key="k", uri="u", index=POISON, stage="decode", reason="decoder_crash", detail="died")
        else:
            yield from decode(sample)

    yield survive


class Sent:
    """A list at a helper, which is done, or lost after some chunks, when a test says so."""

    def __init__(self, items: Sequence[Sample | Reject], *, done: bool, lost_after: int | None) -> None:
        self.items, self.done, self.lost_after = items, done, lost_after

    def is_done(self) -> bool:
        return self.done

    def chunks(self) -> Iterator[ClipChunk | StillThere]:
        yield StillThere()
        for number, item in enumerate(self.items):
            if number == self.lost_after or (isinstance(item, Sample) and item.index == POISON):
                raise HelperLost
            yield ClipChunk.of([item] if isinstance(item, Reject) else list(decode(item)))


class SomeHelpers:
    """Have room, finish and die at random."""

    def __init__(self, seed: int, *, dying: float = 0.0) -> None:
        self.random, self.dying, self.sent = random.Random(seed), dying, list[Sent]()

    def __bool__(self) -> bool:
        return self.random.random() < 0.9

    def send(self, items: Sequence[Sample | Reject]) -> Sent | None:
        if self.random.random() < 0.4:
            return None
        lost_after = self.random.randrange(len(items)) if self.random.random() < self.dying else None
        self.sent.append(Sent(items, done=self.random.random() < 0.5, lost_after=lost_after))
        return self.sent[-1]


def names(results: Iterator[Clip | Reject | ClipChunk | StillThere]) -> list[tuple[str, str]]:
    """Clips by their checksum and rejects by their reason, in order."""
    found: list[tuple[str, str]] = []
    for each in results:
        if isinstance(each, ClipChunk):
            facts = iter(each.facts.to_pylist())
            for run in each.runs():
                if isinstance(run, Reject):
                    found.append((run.key, run.reason))
                else:
                    found += [(fact["key"], fact["sha256"]) for fact, _ in zip(facts, run.pixels, strict=False)]
        elif not isinstance(each, StillThere):
            found.append((each.key, each.reason if isinstance(each, Reject) else each.sha256))
    return found


def shared(helpers: object = NO_HELPERS, *, ahead_bytes: int = 1 << 20, decode: Decode = decode) -> SharedDecoding:
    return SharedDecoding(decode, guarded, helpers, long=NONE_LONG, list_bytes=1500, ahead_bytes=ahead_bytes)  # type: ignore[arg-type]


def alone(items: list[Sample | Reject]) -> list[tuple[str, str]]:
    found = []
    for item in items:
        found += [item] if isinstance(item, Reject) else list(decode(item))
    return names(iter(found))


@settings(max_examples=40)
@given(seed=st.integers(0, 10_000), count=st.integers(0, 120), dying=st.sampled_from([0.0, 0.3, 1.0]))
def test_the_order_is_that_of_one_process(seed: int, count: int, dying: float) -> None:
    items: list[Sample | Reject] = [reject(i) if i % 11 == 5 else sample(i) for i in range(count)]
    helpers = SomeHelpers(seed, dying=dying)
    ahead_bytes = random.Random(seed).choice([0, 2000, 1 << 20])
    assert names(shared(helpers, ahead_bytes=ahead_bytes).results(iter(items))) == alone(items)


def test_helpers_are_given_work() -> None:
    helpers = SomeHelpers(0)
    items = [sample(i) for i in range(200)]
    assert names(shared(helpers).results(iter(items))) == alone(items)
    assert sum(len(sent.items) for sent in helpers.sent) > 50
    assert all(len(sent.items) <= 15 for sent in helpers.sent), "a list ends at its bytes"


class Always(SomeHelpers):
    """Room without end, and nothing is lost by chance."""

    def __bool__(self) -> bool:
        return True

    def send(self, items: Sequence[Sample | Reject]) -> Sent | None:
        self.sent.append(Sent(items, done=False, lost_after=None))
        return self.sent[-1]


def test_a_sample_that_costs_a_helper_its_process_is_rejected_and_costs_no_second_one() -> None:
    items = [sample(i) for i in range(60)]
    items[20] = items[40] = sample(POISON)
    helpers = Always(0)
    results = shared(helpers, ahead_bytes=0).results(iter(items))
    found, signs = [], []
    for each in results:
        signs.append(each) if isinstance(each, StillThere) else found.append(each)
    assert [key for key in names(iter(found)) if key[1] == "decoder_crash"] == [("k", "decoder_crash")] * 2
    assert [key for key in names(iter(found)) if key[1] != "decoder_crash"] == alone(
        items[:20] + items[21:40] + items[41:]
    )
    assert StillThere(is_guarded=True) in signs, "whoever waits is told that a sample may take long"


def test_after_a_helper_that_died_by_chance_others_are_given_lists() -> None:
    helpers = Always(0)
    items = [sample(i) for i in range(300)]
    results = shared(helpers, ahead_bytes=0).results(iter(items))

    def kill_the_first(results: Iterator[Clip | Reject | ClipChunk | StillThere]) -> Iterator[object]:
        for each in results:
            helpers.sent[0].lost_after = 1
            yield each

    assert names(kill_the_first(results)) == alone(items)  # type: ignore[arg-type]
    assert sum(len(sent.items) for sent in helpers.sent) == 300


def test_without_helpers_no_sample_waits_for_the_next_to_be_read() -> None:
    read = []

    def items() -> Iterator[Sample]:
        for index in (1, 2, 4, 5):
            read.append(index)
            yield sample(index)

    next(iter(shared().results(items())))
    assert read == [1]


def test_what_is_decoded_before_its_turn_is_bounded() -> None:
    class OneSlowList(Always):
        def send(self, items: Sequence[Sample | Reject]) -> Sent | None:
            return super().send(items) if not self.sent else None

    decoded: list[int] = []

    def noting(sample: Sample) -> Iterator[Clip | Reject]:
        decoded.append(sample.index)
        yield from decode(sample)

    clip_bytes = _CLIPS[0].pixels.nbytes
    results = shared(OneSlowList(0), ahead_bytes=3 * clip_bytes, decode=noting).results(iter(map(sample, range(200))))
    first = next(results)
    assert isinstance(first, StillThere), "of the helper, whose turn it is"
    assert 0 < len(decoded) < 15


def test_what_a_store_does_to_a_helper_is_the_shards_own_failure() -> None:
    class Unread(Sent):
        def chunks(self) -> Iterator[ClipChunk | StillThere]:
            raise SourceError("the store is gone")

    class Failing(Always):
        def send(self, items: Sequence[Sample | Reject]) -> Sent | None:
            return Unread(items, done=True, lost_after=None)

    with pytest.raises(SourceError, match="the store is gone"):
        list(shared(Failing(0)).results(iter([sample(1)])))


def test_lists_become_longer_where_samples_are_quick() -> None:
    ticks = count(0.0, 0.001)
    helpers = SomeHelpers(3)
    clock: Callable[[], float] = lambda: next(ticks)  # noqa: E731
    sharing = SharedDecoding(
        decode, guarded, helpers, long=NONE_LONG, list_bytes=1 << 30, ahead_bytes=1 << 20, clock=clock
    )
    items = [sample(i) for i in range(2000)]
    assert names(sharing.results(iter(items))) == alone(items)
    assert len(helpers.sent[0].items) <= 4
    assert max(len(sent.items) for sent in helpers.sent) > 20
