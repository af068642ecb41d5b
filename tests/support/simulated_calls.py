"""The scheduler's cluster in virtual time: no process, no network."""

from __future__ import annotations

import heapq
import random
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tatok.pipeline.cluster.leases import Attempt, Failure
from tatok.pipeline.cluster.sizes import Sizes
from tatok.pipeline.cluster.workers.reports import Heartbeat, Pulse, Ready
from tatok.pipeline.monitoring.events import Throughput
from tatok.pipeline.tokenization.fingerprint import decoding_identity
from tatok.pipeline.tokenization.spec import TokenizerSpec
from tatok.schemas.job import JobConfig
from tatok.schemas.records import ShardReport

_ROWS_A_SHARD = 10_000
_TOKENS_A_ROW = 56
_SHARD_S = 5.0  # of a GPU at 2,000 images a second
_START_S = 30.0


@dataclass(frozen=True, slots=True)
class _Poll:
    tokenizer: int


class SimulatedCalls:
    """`tatok.pipeline.cluster.scheduler.Calls` in virtual time: no process, no network; references are numbers."""

    def __init__(self, seed: int, *, num_nodes: int = 1, failing: float = 0.001, slow: float = 0.0005) -> None:
        self._random = random.Random(seed)
        self._now = 0.0
        self._next = 0
        self._events: list[tuple[float, int]] = []  # a heap: due at, reference
        self._results: dict[int, Any] = {}
        self._due_at: dict[int, float] = {}  # reference -> when; other entries of the heap are void
        self._references: dict[Attempt, int] = {}
        self._workers: dict[Attempt, int] = {}  # of attempts to which there were loans
        self.lent: dict[Attempt, tuple[tuple[Any, ...], tuple[Any, ...]]] = {}  # the last loan of each
        self._at_work: dict[int, dict[Attempt, float]] = {}  # tokenizer -> attempt -> begun at
        self._num_nodes, self._failing, self._slow = num_nodes, failing, slow
        self._decoding = decoding_identity(JobConfig.model_validate({"source": "none", "output": "none"}))
        self.last_lease_at = 0.0
        self.num_leases = 0
        self._spec = TokenizerSpec(
            identity={"weights": "none"}, fingerprint="none", vocab_size=4096, patch_size=16, num_global=16
        )

    def now(self) -> float:
        return self._now

    def start_tokenizer(self, sizes: Sizes) -> Any:
        self._next += 1
        self._at_work[self._next] = {}
        return self._next

    def start_decoder(self, sizes: Sizes) -> Any:
        self._next += 1
        return -self._next

    def ready(self, actor: Any) -> Any:
        told = Ready(node=str(self.node(actor)), told=self._decoding if actor < 0 else self._spec)
        return self._due(_START_S * self._random.uniform(0.5, 2), told)

    def node(self, actor: int) -> int:
        """Where it is: they go round."""
        return abs(actor) % self._num_nodes

    def run_shard(self, tokenizer: Any, attempt: Attempt, decoder: Any, fingerprint: Mapping[str, str]) -> Any:
        # Several shards share the tokenizer, so each takes as many times longer.
        shared = len(self._at_work[tokenizer]) + 1
        took = shared * _SHARD_S * self._random.lognormvariate(0, 0.3)
        if self._random.random() < self._slow:
            took *= 20
        result: ShardReport | Failure = ShardReport(
            shard=attempt.shard,
            num_rows=_ROWS_A_SHARD,
            num_tokens=_ROWS_A_SHARD * _TOKENS_A_ROW,
            rejects={},
            seconds=took,
            part_sha256="0" * 64,
            part_bytes=1 << 20,
            row_group_rows=(_ROWS_A_SHARD,),
        )
        if self._random.random() < self._failing:
            result = Failure(kind="source", message="the connection was lost")
        self._at_work[tokenizer][attempt] = self._now
        self.last_lease_at, self.num_leases = self._now, self.num_leases + 1
        reference = self._due(took, result)
        self._results[reference] = (result, tokenizer, attempt)
        self._references[attempt] = reference
        return reference

    def lend(self, tokenizer: Any, attempt: Attempt, tokenizers: Sequence[Any], decoders: Sequence[Any]) -> None:
        """A tokenizer that is lent does as much as the shard's own; what a shard waits for is never a decoder."""
        self.lent[attempt] = tuple(tokenizers), tuple(decoders)
        reference = self._references.get(attempt)
        if reference is not None and (left_s := self._due_at[reference] - self._now) > 0:
            left_s *= self._workers.get(attempt, 1) / (1 + len(tokenizers))
            self._workers[attempt] = 1 + len(tokenizers)
            self._push(self._now + left_s, reference)

    def pulse(self, tokenizer: Any) -> Any:
        return self._due(0.001, _Poll(tokenizer))

    def wait(self, references: Iterable[Any], *, timeout_s: float) -> Sequence[Any]:
        deadline = self._now + timeout_s
        settled: list[int] = []
        while self._events and self._events[0][0] <= (self._now if settled else deadline):
            due_at, reference = heapq.heappop(self._events)
            if self._due_at.get(reference) == due_at:
                del self._due_at[reference]
                settled.append(reference)
                self._now = max(self._now, due_at)
        if not settled:
            self._now = deadline
            return ()
        return settled

    def result(self, reference: Any) -> Any:
        held = self._results.pop(reference)
        if isinstance(held, _Poll):
            at_work = self._at_work[held.tokenizer]
            return Pulse(heartbeats={attempt: self._heartbeat(at) for attempt, at in at_work.items()})
        if isinstance(held, tuple):
            result, tokenizer, attempt = held
            del self._at_work[tokenizer][attempt], self._references[attempt]
            return result
        return held

    def interrupt(self, actor: Any) -> None:
        raise AssertionError("no lease is silent in this simulation")

    def kill(self, actor: Any) -> None:
        """Decoders of failed attempts; nothing is kept of them."""

    def resources(self) -> Mapping[str, float]:
        return {"CPU": 8.0 * len(self._at_work), "GPU": float(len(self._at_work))}

    def _heartbeat(self, begun_at: float) -> Heartbeat:
        chunks = int((self._now - begun_at) * 10) + 1
        return Heartbeat(num_chunks=chunks, counts=Throughput(num_rows=chunks, num_tokens=chunks, num_rejects=0))

    def _due(self, seconds: float, result: Any) -> int:
        self._next += 1
        self._push(self._now + seconds, self._next)
        self._results[self._next] = result
        return self._next

    def _push(self, due_at: float, reference: int) -> None:
        self._due_at[reference] = due_at
        heapq.heappush(self._events, (due_at, reference))
