"""Who helps with whose shard, in a simulated cluster: nobody while shards wait, everybody at the end, evenly."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import pytest

from tatok.pipeline.cluster.leases import Attempt, Failure
from tatok.pipeline.cluster.scheduler import Outcome, Scheduler
from tatok.pipeline.cluster.sizes import Sizes, count_pieces, plan_sizes
from tatok.pipeline.cluster.workers.reports import Pulse
from tatok.schemas.job import JobConfig
from tatok.schemas.records import Shard
from tests.support.parts import shard
from tests.support.simulated_calls import SimulatedCalls

CONFIG = JobConfig(source=("a",), output="o")


def large(count: int) -> list[Shard]:
    return [replace(shard(f"s{number}"), num_bytes=1 << 30) for number in range(count)]


class NotingCalls(SimulatedCalls):
    """Notes each loan, and how many shards had not been handed out then."""

    def __init__(self, num_shards: int, *, num_cpus: int = 4, num_gpus: int = 0, **options: float) -> None:
        super().__init__(0, **{"failing": 0.0, "slow": 0.0, **options})  # type: ignore[arg-type]
        self.num_shards, self.num_cpus, self.num_gpus = num_shards, num_cpus, num_gpus
        self.loans: list[tuple[int, Attempt, int, int]] = []  # shards that wait, whose, tokenizers, decoders
        self.tokenizers: list[Any] = []
        self.asked: list[Any] = []

    def start_tokenizer(self, sizes: Sizes) -> Any:
        self.tokenizers.append(super().start_tokenizer(sizes))
        return self.tokenizers[-1]

    def ready(self, actor: Any) -> Any:
        reference = super().ready(actor)
        self._push(self._now + 1, reference)  # all at once
        return reference

    def lend(self, tokenizer: Any, attempt: Attempt, tokenizers: Sequence[Any], decoders: Sequence[Any]) -> None:
        assert tokenizer not in tokenizers, "nobody helps himself"
        self.loans.append((self.num_shards - self.num_leases, attempt, len(tokenizers), len(decoders)))
        super().lend(tokenizer, attempt, tokenizers, decoders)
        at_work = {attempt for attempts in self._at_work.values() for attempt in attempts}
        lent = [each for to, (given, _) in self.lent.items() if to in at_work for each in given]
        assert len(set(lent)) == len(lent), "to one shard at a time"

    def resources(self) -> Mapping[str, float]:
        return {"CPU": float(self.num_cpus), "GPU": float(self.num_gpus)}


def run(calls: NotingCalls, config: JobConfig = CONFIG, **options: Any) -> Outcome:
    shards = large(calls.num_shards)
    sizes = plan_sizes(
        config,
        num_shards=len(shards),
        num_pieces=count_pieces(shards),
        num_cpus=calls.num_cpus,
        num_gpus=calls.num_gpus,
    )
    outcome = Scheduler(config, shards, replace(sizes, **options), calls, lambda spec: {}, lambda event: None).run()
    assert (len(outcome.reports), outcome.failed) == (len(shards), {})
    return outcome


def test_one_shard_has_every_tokenizer() -> None:
    calls = NotingCalls(1)
    run(calls)
    assert [(tokenizers, decoders) for _, _, tokenizers, decoders in calls.loans] == [(3, 0)]
    lonely = NotingCalls(1)
    run(lonely, JobConfig.model_validate({"source": "a", "output": "o", "resources": {"num_tokenizers": 1}}))
    assert lonely.loans == []
    assert calls.now() < lonely.now()


def test_one_shard_has_every_decoder() -> None:
    calls = NotingCalls(1, num_cpus=16, num_gpus=1)
    run(calls)
    assert calls.loans[-1][2:] == (0, 14), "all but its own, of 15"


def test_nobody_is_lent_while_shards_wait_and_then_it_is_even() -> None:
    calls = NotingCalls(26, num_cpus=8)
    run(calls)
    assert calls.loans
    assert all(num_waiting == 0 for num_waiting, *_ in calls.loans)
    calls = NotingCalls(3, num_cpus=8)
    run(calls)
    first = {attempt: tokenizers for _, attempt, tokenizers, _ in calls.loans[:3]}
    assert sorted(first.values()) == [1, 2, 2]
    assert max(tokenizers for _, _, tokenizers, _ in calls.loans) == 7, "the last one has all the others"


@pytest.mark.parametrize("num_gpus", [0, 2])
def test_a_shard_that_fails_is_served_before_helpers_are(num_gpus: int) -> None:
    class FailsOnce(NotingCalls):
        def run_shard(self, tokenizer: Any, attempt: Attempt, decoder: Any, fingerprint: Mapping[str, str]) -> Any:
            reference = super().run_shard(tokenizer, attempt, decoder, fingerprint)
            if attempt.number == 1:
                self._results[reference] = (Failure(kind="source", message="lost"), tokenizer, attempt)
            return reference

    calls = FailsOnce(3, num_cpus=8, num_gpus=num_gpus)
    run(calls)
    assert calls.num_leases == 4
    assert {attempt.number for _, attempt, *_ in calls.loans} >= {4}, "and it has helpers, too"


class BreaksOnce(NotingCalls):
    """The first attempt meets a device that works no more."""

    def run_shard(self, tokenizer: Any, attempt: Attempt, decoder: Any, fingerprint: Mapping[str, str]) -> Any:
        reference = super().run_shard(tokenizer, attempt, decoder, fingerprint)
        if attempt.number == 1:
            self._results[reference] = (Failure(kind="device_lost", message="broken"), tokenizer, attempt)
        return reference


def test_what_broke_a_device_puts_no_other_at_risk() -> None:
    calls = BreaksOnce(1, num_cpus=4)
    run(calls)
    assert {attempt.number for _, attempt, *_ in calls.loans} == {1}
    assert calls.num_leases == 2


class SilentHelper(NotingCalls):
    """One of the tokenizers answers nothing once it has loaded."""

    def pulse(self, tokenizer: Any) -> Any:
        return self._due(1e9, None) if tokenizer == self.tokenizers[1] else super().pulse(tokenizer)


def test_who_answers_nothing_is_not_lent() -> None:
    calls = SilentHelper(12, num_cpus=3)
    run(calls)
    lent = [each for tokenizers, _ in calls.lent.values() for each in tokenizers]
    assert lent
    assert calls.tokenizers[1] not in lent


class BrokenHelper(NotingCalls):
    """One of the tokenizers reports that its device works no more."""

    def result(self, reference: Any) -> Any:
        result = super().result(reference)
        return replace(result, broken="CUDA error") if isinstance(result, Pulse) and not result.heartbeats else result


def test_an_idle_tokenizer_whose_device_is_broken_is_replaced() -> None:
    calls = BrokenHelper(1, num_cpus=2, slow=1.0)
    run(calls)
    assert len(calls.tokenizers) > 2


class JoinedNode(NotingCalls):
    """Another node joins while the only shard is at work."""

    def resources(self) -> Mapping[str, float]:
        self.num_cpus = 4 if self.now() > 10 else 2
        return super().resources()


def test_a_node_that_joins_helps_with_the_last_shard() -> None:
    calls = JoinedNode(1, num_cpus=2, slow=1.0)
    run(calls)
    assert len(calls.tokenizers) == 4
    assert max(tokenizers for _, _, tokenizers, _ in calls.loans) == 3


def test_decoders_go_to_shards_of_their_node() -> None:
    class OfNodes(NotingCalls):
        def lend(self, tokenizer: Any, attempt: Attempt, tokenizers: Sequence[Any], decoders: Sequence[Any]) -> None:
            super().lend(tokenizer, attempt, tokenizers, decoders)
            self.nodes = {self.node(self.readers[attempt])} | {self.node(each) for each in decoders}

        def run_shard(self, tokenizer: Any, attempt: Attempt, decoder: Any, fingerprint: Mapping[str, str]) -> Any:
            self.readers = {**getattr(self, "readers", {}), attempt: decoder}
            return super().run_shard(tokenizer, attempt, decoder, fingerprint)

    calls = OfNodes(2, num_cpus=8, num_gpus=2, num_nodes=2)
    run(calls)
    first = {attempt: decoders for _, attempt, _, decoders in calls.loans[:2]}
    assert sum(first.values()) == 4, "six, of which two read"
    assert calls.loans[-1][3] == 5, "the last one has those of the other node, too"


@pytest.mark.parametrize(
    ("num_bytes", "num_samples", "pieces"),
    [(300_000, 3, 1), (8 << 20, None, 4), (6_000_000, 2500, 39), (1 << 40, None, 524_288)],
)
def test_a_tiny_shard_waits_for_no_second_model(num_bytes: int, num_samples: int | None, pieces: int) -> None:
    assert count_pieces([replace(shard(), num_bytes=num_bytes, stop=num_samples)]) == pieces
