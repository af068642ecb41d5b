from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest

from tatok.pipeline.cluster.leases import Attempt, Failure, FailureKind
from tatok.pipeline.cluster.scheduler import Scheduler
from tatok.pipeline.cluster.sizes import Sizes, plan_sizes
from tatok.pipeline.cluster.slots import MAX_FAILURES_IN_A_ROW, MAX_LOSSES_IN_A_ROW, Lease, Slots, TokenizerSlot
from tatok.pipeline.monitoring.events import Event, Notice
from tatok.schemas.job import JobConfig
from tests.support.parts import shard
from tests.support.simulated_calls import SimulatedCalls


def slot(most_leases: int = 2, **options: object) -> TokenizerSlot:
    return TokenizerSlot(actor=object(), most_leases=most_leases, is_ready=True, **options)  # type: ignore[arg-type]


def fail(
    slot: TokenizerSlot, num_commits: int, kind: FailureKind = "error", *, decoder: object = None, **options: bool
) -> bool:
    attempt = Attempt(shard=shard("a"), number=1, guarded=False)
    lease = Lease(attempt=attempt, slot=slot, decoder=decoder, alive_at=0.0)
    return slot.note_failure(lease, Failure(kind=kind, message="", **options), num_commits)


def test_a_tokenizer_that_fails_again_and_again_while_others_succeed_is_replaced() -> None:
    bad = slot()
    assert not any(fail(bad, num_commits) for num_commits in range(10, 10 + MAX_FAILURES_IN_A_ROW - 1))
    assert fail(bad, 20)


def test_where_nobody_succeeds_one_is_replaced_once_and_then_the_fault_is_elsewhere() -> None:
    bad = slot()
    assert [fail(bad, 10) for _ in range(MAX_FAILURES_IN_A_ROW)] == [False] * (MAX_FAILURES_IN_A_ROW - 1) + [True]
    bad.is_condemned = True
    successor = slot()
    successor.inherit(bad, 10)
    assert not any(fail(successor, 10) for _ in range(20))
    assert fail(successor, 11), "and now somebody does"


def test_one_that_has_succeeded_itself_needs_no_others() -> None:
    bad = slot()
    bad.note_commit()
    assert [fail(bad, 1) for _ in range(MAX_FAILURES_IN_A_ROW)] == [False] * (MAX_FAILURES_IN_A_ROW - 1) + [True]


def test_a_commit_in_between_clears_it() -> None:
    good = slot()
    for num_commits in range(20):
        assert not fail(good, 2 * num_commits)
        assert good.is_doubtful
        good.note_commit()
        assert not good.is_doubtful


@pytest.mark.parametrize("kind", ["source", "decode_timeout", "decoder_died"])
def test_what_its_decoder_met_is_not_its_own(kind: FailureKind) -> None:
    good = slot()
    assert not any(fail(good, number, kind, decoder="of its own") for number in range(20))
    assert not any(fail(good, number, is_permanent=True) for number in range(20))
    assert any(fail(good, number, kind) for number in range(20)), "in place there is no other process"


def test_a_place_where_one_process_after_the_other_fails_is_given_up_while_others_commit() -> None:
    at, num_commits = slot(), 100
    for number in range(MAX_LOSSES_IN_A_ROW):
        assert not at.is_hopeless(num_commits), number
        at.is_condemned = True
        before, at = at, slot()
        at.inherit(before, num_commits)
        assert not before.is_hopeless(num_commits), "nobody commits"
        assert at.is_doubtful
    assert before.is_hopeless(num_commits + 1)
    at.note_commit()
    assert not at.is_hopeless(num_commits + 2)


def test_a_process_that_dies_by_chance_says_nothing_of_its_place() -> None:
    at = slot()
    for _ in range(10):
        before, at = at, slot()
        at.inherit(before, 0)
        assert not at.is_doubtful
        assert not at.is_hopeless(1)


def test_who_has_idle_decoders_beside_it_comes_first() -> None:
    slots = Slots()
    here, there = slot(spare_leases=1), slot(spare_leases=1)
    for each, node in ((here, "here"), (there, "there")):
        slots.add(each)
        slots.make_ready(each, node)

    def give(slot: TokenizerSlot, count: int) -> None:
        slot.leases = dict.fromkeys(range(count))  # type: ignore[arg-type]
        slots.note_room(slot)

    give(there, 1)
    assert slots.best() is here
    assert slots.best({"there"}) is there
    give(there, 2)
    assert slots.best({"there"}) is there, "a spare one"
    give(there, 3)
    assert slots.best({"there"}) is here
    give(here, 2)
    assert slots.best({"there"}) is None, "the spare one is for neighbours"
    give(there, 0)
    assert slots.best({"here"}) is here
    give(here, 3)
    assert slots.best({"here"}) is there
    assert slots.nodes == {"here": 1, "there": 1}
    slots.remove(there)
    assert (slots.nodes, slots.num_ready) == ({"here": 1}, 1)


def test_who_has_failed_comes_last() -> None:
    slots = Slots()
    quick, doubtful = slot(most_leases=5), slot(most_leases=5)
    for each in (doubtful, quick):
        slots.add(each)
        slots.note_room(each)
    assert slots.best() is doubtful, "the first of equals"
    fail(doubtful, 0)
    quick.leases = dict.fromkeys(range(4))  # type: ignore[arg-type]
    assert slots.best() is quick, "though it has more to do"
    quick.leases = dict.fromkeys(range(5))  # type: ignore[arg-type]
    slots.note_room(quick)
    assert slots.best() is doubtful, "and works where nobody else can"
    slots.remove(doubtful)
    assert slots.best() is None


class FailsUntilReplaced(SimulatedCalls):
    """The first so many tokenizers fail whatever they are given."""

    def __init__(self, num_bad: int) -> None:
        super().__init__(0, failing=0.0, slow=0.0)
        self.num_bad, self.tokenizers = num_bad, list[Any]()

    def start_tokenizer(self, sizes: Sizes) -> Any:
        self.tokenizers.append(super().start_tokenizer(sizes))
        return self.tokenizers[-1]

    def run_shard(self, tokenizer: Any, attempt: Attempt, decoder: Any, fingerprint: Mapping[str, str]) -> Any:
        if tokenizer in self.tokenizers[self.num_bad :]:
            return super().run_shard(tokenizer, attempt, decoder, fingerprint)
        return self._due(1.0, Failure(kind="error", message="odd"))

    def resources(self) -> Mapping[str, float]:
        return {"CPU": 1.0}


@pytest.mark.parametrize("num_shards", [1, 2, 20])
def test_the_only_tokenizer_fails_from_its_start_and_its_successor_does_the_shards(num_shards: int) -> None:
    config = JobConfig(source=("a",), output="o")
    sizes = plan_sizes(config, num_shards=num_shards, num_cpus=1, num_gpus=0)
    shards = [shard(f"s{number}") for number in range(num_shards)]
    calls = FailsUntilReplaced(1)
    outcome = Scheduler(config, shards, sizes, calls, lambda spec: {}, lambda event: None).run()
    assert (len(outcome.reports), outcome.failed, len(calls.tokenizers)) == (num_shards, {}, 2)
    calls = FailsUntilReplaced(1000)
    outcome = Scheduler(config, shards, sizes, calls, lambda spec: {}, lambda event: None).run()
    assert (outcome.reports, len(outcome.failed), len(calls.tokenizers)) == ((), num_shards, 2), "no endless replacing"


class OneBrokenDevice(SimulatedCalls):
    """Only the second tokenizer that is started has a device that works."""

    num_started = 0

    def start_tokenizer(self, sizes: Sizes) -> Any:
        self.num_started += 1
        self.works = getattr(self, "works", set()) | ({self._next + 1} if self.num_started == 2 else set())
        return super().start_tokenizer(sizes)

    def run_shard(self, tokenizer: Any, attempt: Attempt, decoder: Any, fingerprint: Mapping[str, str]) -> Any:
        if tokenizer in self.works:
            return super().run_shard(tokenizer, attempt, decoder, fingerprint)
        return self._due(1.0, Failure(kind="device_lost", message="the device works no more"))

    def resources(self) -> Mapping[str, float]:
        return {"CPU": 6.0, "GPU": 2.0}


@pytest.mark.parametrize("seed", range(3))
def test_a_device_that_breaks_every_process_is_given_up_and_no_shard_with_it(seed: int) -> None:
    config = JobConfig(source=("a",), output="o")
    sizes = plan_sizes(config, num_shards=60, num_cpus=6, num_gpus=2)
    calls = OneBrokenDevice(seed, failing=0.0, slow=0.0)
    events: list[Event] = []
    shards = [shard(f"s{number}") for number in range(60)]
    outcome = Scheduler(config, shards, sizes, calls, lambda spec: {}, events.append).run()
    assert (len(outcome.reports), outcome.failed) == (60, {})
    assert calls.num_started == 2 + MAX_LOSSES_IN_A_ROW - 1
    told = [event.message for event in events if isinstance(event, Notice)]
    assert told.count("a tokenizer was replaced again and again and is given up; others continue") == 1
