from __future__ import annotations

from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tatok.pipeline.cluster.leases import (
    BACKOFF_S,
    DEATHS_APART_S,
    MAX_ATTEMPTS,
    MAX_DEATHS,
    MAX_DEATHS_IN_A_ROW,
    MAX_DEVICE_LOSSES,
    MOST_BACKOFF_S,
    RESTART_BACKOFF_S,
    STRAGGLER_S,
    Attempt,
    DeathsInARow,
    Failure,
    FailureKind,
    ShardLedger,
)
from tests.support.parts import report, shard

LOST = Failure(kind="source", message="lost")


class Clock:
    """Seconds that pass when a test says so."""

    now = 0.0

    def __call__(self) -> float:
        return self.now


def test_a_failed_shard_waits_and_goes_behind_the_others() -> None:
    clock = Clock()
    ledger = ShardLedger([shard("a"), shard("b")], clock=clock)
    first = ledger.lease()
    assert ledger.fail(first, LOST) == "again"
    clock.now = BACKOFF_S
    assert ledger.lease().shard == shard("b")
    assert ledger.lease() == Attempt(shard=first.shard, number=3, guarded=False)


def test_shards_that_fail_at_one_moment_come_in_that_order() -> None:
    ledger = ShardLedger([shard("b"), shard("a"), shard("c")], backoff_s=0, clock=Clock())
    for attempt in [ledger.lease() for _ in range(3)]:
        assert ledger.fail(attempt, LOST) == "again"
    assert [ledger.lease().shard.shard_id for _ in range(3)] == ["b", "a", "c"]


def test_back_off_doubles() -> None:
    clock = Clock()
    ledger = ShardLedger([shard("a")], clock=clock)
    for number in range(1, MAX_ATTEMPTS):
        assert ledger.fail(ledger.lease(), LOST) == "again"
        assert not ledger.has_waiting
        assert not ledger.is_finished
        clock.now += BACKOFF_S * 2 ** (number - 1) - 0.01
        assert not ledger.has_waiting
        clock.now += 0.01
        assert ledger.has_waiting
    assert ledger.fail(ledger.lease(), LOST) == "given_up"
    assert ledger.is_finished
    assert ledger.failed == {shard("a"): LOST}


def test_a_permanent_failure_is_not_repeated() -> None:
    ledger = ShardLedger([shard("a")])
    failure = Failure(kind="source", message="no such file", is_permanent=True)
    assert ledger.fail(ledger.lease(), failure) == "given_up"
    assert ledger.is_finished
    assert ledger.failed == {shard("a"): failure}


@pytest.mark.parametrize(
    ("kinds", "guarded"),
    [
        (["source"], False),
        (["tokenizer_died", "commit"], False),
        (["decoder_died"], True),
        (["decode_timeout"], True),
        (["decoder_died", "source"], True),
    ],
)
def test_after_a_lost_decoder_samples_are_decoded_one_by_one(kinds: list[str], guarded: bool) -> None:
    ledger = ShardLedger([shard("a")], backoff_s=0)
    for kind in kinds:
        ledger.fail(ledger.lease(), Failure(kind=kind, message=""))  # type: ignore[arg-type]
    assert ledger.lease().guarded is guarded


def test_a_shard_under_which_devices_fail_has_a_bound_of_its_own() -> None:
    ledger = ShardLedger([shard("a")], backoff_s=0)
    for kind in ["device_lost", "error"] * (MAX_ATTEMPTS - 1) + ["device_lost"] * (MAX_DEVICE_LOSSES - MAX_ATTEMPTS):
        assert ledger.fail(ledger.lease(), Failure(kind=kind, message="")) == "again"  # type: ignore[arg-type]
    assert ledger.fail(ledger.lease(), Failure(kind="device_lost", message="")) == "given_up"


def test_a_shard_whose_tokenizer_was_replaced_is_next_and_has_not_failed() -> None:
    ledger = ShardLedger([shard("a"), shard("b")])
    for number in range(1, 20):
        attempt = ledger.lease()
        assert attempt == Attempt(shard=shard("a"), number=number, guarded=False)
        assert ledger.fail(attempt, Failure(kind="tokenizer_replaced", message="")) == "again"
        assert ledger.has_waiting


def test_what_hangs_though_samples_have_deadlines_is_given_up() -> None:
    ledger = ShardLedger([shard("a")], backoff_s=0)
    hang = Failure(kind="decode_timeout", message="")
    assert ledger.fail(ledger.lease(), hang) == "again"
    assert ledger.fail(ledger.lease(), hang) == "given_up"


def test_a_straggler_is_handed_out_once_more() -> None:
    clock = Clock()
    ledger = ShardLedger([shard("a"), shard("b"), shard("c")], clock=clock)
    slow, quick, also_slow = ledger.lease(), ledger.lease(), ledger.lease()
    clock.now = 1000.0
    assert ledger.lease_straggler() is None, "nothing tells yet how long a shard takes"
    ledger.commit(quick, report(quick, seconds=400))
    assert ledger.lease_straggler() is None, "less than three times as long as another"
    clock.now = 1200.0
    twin = ledger.lease_straggler()
    assert twin is not None
    assert (twin.shard, twin == slow) == (slow.shard, False)
    assert ledger.lease_straggler() is None, "one twin is enough"
    assert ledger.commit(twin, report(twin))
    assert not ledger.is_open(slow)
    assert ledger.is_open(also_slow)
    assert not ledger.commit(slow, report(slow)), "the loser discards"
    assert ledger.fail(slow, LOST) == "elsewhere"
    assert [each.shard.shard_id for each in ledger.reports] == ["b", "a"]


def test_a_twin_that_fails_leaves_the_other_at_work() -> None:
    clock = Clock()
    ledger = ShardLedger([shard("a"), shard("b")], clock=clock)
    slow, quick = ledger.lease(), ledger.lease()
    ledger.commit(quick, report(quick))
    clock.now = STRAGGLER_S
    twin = ledger.lease_straggler()
    assert twin is not None
    assert ledger.fail(slow, LOST) == "elsewhere"
    assert ledger.is_open(twin)
    clock.now *= 2
    assert ledger.lease_straggler() is None, "or one twin after the other would hang, and the shard never fail"
    assert ledger.fail(twin, LOST) == "again"


def test_one_whose_twin_has_failed_is_not_in_the_way_of_another_straggler() -> None:
    clock = Clock()
    ledger = ShardLedger([shard("a"), shard("b"), shard("c")], clock=clock)
    quick, first, second = ledger.lease(), ledger.lease(), ledger.lease()
    ledger.commit(quick, report(quick))
    clock.now = STRAGGLER_S
    twin = ledger.lease_straggler()
    assert twin is not None
    assert ledger.fail(twin, LOST) == "elsewhere"
    other = ledger.lease_straggler()
    assert other is not None
    assert (twin.shard, other.shard) == (first.shard, second.shard)


@pytest.mark.parametrize("kind", ["decode_timeout", "tokenizer_died", "source", "no_progress"])
def test_what_hangs_for_longer_than_a_straggler_may_take_ends(kind: FailureKind) -> None:
    clock, deadline_s = Clock(), 1.5 * STRAGGLER_S
    ledger = ShardLedger([shard("quick"), shard("hangs")], clock=clock)
    quick, hangs = ledger.lease(), ledger.lease()
    ledger.commit(quick, report(quick))
    at_work = [(hangs, clock.now)]
    while not ledger.is_finished:
        clock.now += 1.0
        assert clock.now < 2 * (MAX_DEATHS + 1) * (deadline_s + MOST_BACKOFF_S), "it goes on for ever"
        overdue = [attempt for attempt, since in at_work if clock.now - since >= deadline_s]
        at_work = [(attempt, since) for attempt, since in at_work if attempt not in overdue]
        for attempt in overdue:
            ledger.fail(attempt, Failure(kind=kind, message=""))
        leased = ledger.lease() if ledger.has_waiting else ledger.lease_straggler()
        at_work += [] if leased is None else [(leased, clock.now)]
    assert list(ledger.failed) == [hangs.shard]


def test_no_twin_while_shards_wait() -> None:
    clock = Clock()
    ledger = ShardLedger([shard("a"), shard("b"), shard("c")], clock=clock)
    quick = ledger.lease()
    ledger.commit(quick, report(quick))
    ledger.lease()
    clock.now = 10 * STRAGGLER_S
    assert ledger.lease_straggler() is None


@given(
    st.integers(0, 6),
    st.lists(
        st.tuples(
            st.booleans(),
            st.sampled_from(["decoder_died", "source", "device_lost", "tokenizer_replaced"]),
            st.booleans(),
        ),
        max_size=60,
    ),
    st.data(),
)
def test_every_shard_ends_up_committed_or_failed_once(
    num_shards: int, outcomes: list[tuple[bool, str, bool]], data: st.DataObject
) -> None:
    shards = [shard(f"s{i}") for i in range(num_shards)]
    clock = Clock()
    ledger = ShardLedger(shards, clock=clock)
    script: Iterator[tuple[bool, str, bool]] = iter(outcomes)
    at_work: list[Attempt] = []
    while not ledger.is_finished:
        clock.now += data.draw(st.sampled_from([0.0, 1.0, 10.0, 50.0])) if ledger.has_waiting else 10.0
        while ledger.has_waiting and len(at_work) < 3:
            at_work.append(ledger.lease())
        if (twin := ledger.lease_straggler()) is not None:
            at_work.append(twin)
        attempt = at_work.pop(data.draw(st.integers(0, len(at_work) - 1)))
        is_good, kind, is_permanent = next(script, (True, "", False))
        if is_good:
            ledger.commit(attempt, report(attempt))
        else:
            ledger.fail(attempt, Failure(kind=kind, message="x", is_permanent=is_permanent))  # type: ignore[arg-type]
    settled = [item.shard for item in ledger.reports] + list(ledger.failed)
    assert sorted(settled, key=lambda item: item.shard_id) == shards
    assert ledger.rejects()["corrupt"] == 2 * len(ledger.reports)


def test_a_lost_node_counts_as_one_death_and_endless_dying_ends() -> None:
    clock = Clock()
    deaths = DeathsInARow(clock=clock)
    assert not any(deaths.add() for _ in range(100)), "all processes of one node"
    for _ in range(MAX_DEATHS_IN_A_ROW - 2):
        clock.now += DEATHS_APART_S + deaths.backoff_s
        assert not deaths.add()
    deaths.clear()
    for _ in range(MAX_DEATHS_IN_A_ROW - 1):
        clock.now += DEATHS_APART_S + deaths.backoff_s
        assert not deaths.add()
    clock.now += DEATHS_APART_S + deaths.backoff_s
    assert deaths.add()


@pytest.mark.parametrize("kinds", [["tokenizer_died"], ["decoder_died"], ["tokenizer_died", "decoder_died"]])
def test_deaths_of_a_shards_processes_count_as_one_attempt_together(kinds: list[FailureKind]) -> None:
    ledger = ShardLedger([shard("a")], backoff_s=0)
    for number in range(MAX_DEATHS - 1):
        assert ledger.fail(ledger.lease(), Failure(kind=kinds[number % len(kinds)], message="")) == "again"
    for _ in range(MAX_ATTEMPTS - 2):
        assert ledger.fail(ledger.lease(), LOST) == "again"
    assert ledger.fail(ledger.lease(), LOST) == "given_up"


def test_a_shard_that_costs_one_process_after_the_other_is_given_up() -> None:
    ledger = ShardLedger([shard("a")], backoff_s=0)
    died = Failure(kind="tokenizer_died", message="")
    assert [ledger.fail(ledger.lease(), died) for _ in range(MAX_DEATHS)] == ["again"] * (MAX_DEATHS - 1) + ["given_up"]


def test_deaths_that_are_nobodys_doing_never_count_and_are_waited_out_ever_longer() -> None:
    clock = Clock()
    ledger = ShardLedger([shard("a")], clock=clock)
    waits = []
    for _ in range(50):
        began = clock.now
        while not ledger.has_waiting:
            clock.now += 0.5
        waits.append(clock.now - began)
        assert ledger.fail(ledger.lease(), Failure(kind="tokenizer_died", message="", is_blameless=True)) == "again"
    assert waits[:4] == [0, BACKOFF_S, 2 * BACKOFF_S, 4 * BACKOFF_S]
    assert waits[-1] == MOST_BACKOFF_S
    for _ in range(MAX_ATTEMPTS - 1):
        clock.now += MOST_BACKOFF_S
        assert ledger.fail(ledger.lease(), LOST) == "again", "all of its attempts are left"


def test_the_next_process_waits_for_longer_after_each_death_in_a_row() -> None:
    clock = Clock()
    deaths = DeathsInARow(clock=clock)
    waits = []
    for _ in range(MAX_DEATHS_IN_A_ROW):
        deaths.add()
        waits.append(deaths.backoff_s)
        clock.now += DEATHS_APART_S + deaths.backoff_s
    assert waits[:4] == [0, RESTART_BACKOFF_S, 2 * RESTART_BACKOFF_S, 4 * RESTART_BACKOFF_S]
    assert waits[-1] == MOST_BACKOFF_S
    deaths.clear()
    assert deaths.backoff_s == 0
