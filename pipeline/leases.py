"""Which shards wait, which are at work, which are done or given up: retries with back-off and bounds, no Ray."""

from __future__ import annotations

import heapq
import time
from collections import Counter, deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Literal

from schemas.records import Shard, ShardReport

__all__ = ["Attempt", "Failure", "ShardLedger"]

FailureKind = Literal["decode_timeout", "decoder_died", "tokenizer_died", "source", "commit", "error"]
MAX_ATTEMPTS = 3
BACKOFF_S = 2.0  # before the second attempt; doubled before each further one
# What may be one sample's doing: the next attempt decodes in a process that tells which.
_SAMPLES_FAULT = ("decode_timeout", "decoder_died")


@dataclass(frozen=True, slots=True, kw_only=True)
class Failure:
    """Why one attempt at a shard ended without a commit; a permanent failure would be the same again."""

    kind: FailureKind
    message: str
    is_permanent: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Attempt:
    """One lease of a shard, the `number`th from 1.

    `guarded` says that an earlier one lost its decoder, so that each sample is to be decoded in a child process.
    """

    shard: Shard
    number: int
    guarded: bool


class ShardLedger:
    """Hands out each shard until it is committed or its attempts are used up.

    Shards go out in order. One that failed waits `backoff_s`, twice that after the next failure, and goes behind those
    that have not failed, so that a poisoned shard does not hold up the healthy ones. A permanent failure is not
    repeated. `clock` tells seconds and never goes back.
    """

    def __init__(
        self, shards: Iterable[Shard], *, backoff_s: float = BACKOFF_S, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._fresh = deque(shards)
        self._delayed: list[tuple[float, int, Shard]] = []  # a heap: ready at, order, shard
        self._num_delayed = 0
        self._backoff_s = backoff_s
        self._clock = clock
        self._failures: dict[str, list[Failure]] = {}
        self.at_work: dict[str, Attempt] = {}
        self.reports: list[ShardReport] = []
        self.failed: dict[Shard, Failure] = {}

    @property
    def is_finished(self) -> bool:
        """Every shard is committed or given up."""
        return not self._fresh and not self._delayed and not self.at_work

    @property
    def has_waiting(self) -> bool:
        """A shard can be leased now."""
        return bool(self._fresh) or (bool(self._delayed) and self._delayed[0][0] <= self._clock())

    def lease(self) -> Attempt:
        """Take the next shard; call it only where `has_waiting`."""
        shard = self._fresh.popleft() if self._fresh else heapq.heappop(self._delayed)[2]
        failures = self._failures.get(shard.shard_id, [])
        attempt = Attempt(
            shard=shard,
            number=len(failures) + 1,
            guarded=any(failure.kind in _SAMPLES_FAULT for failure in failures),
        )
        self.at_work[shard.shard_id] = attempt
        return attempt

    def commit(self, report: ShardReport) -> None:
        """Settle a lease: the shard's part is published."""
        del self.at_work[report.shard.shard_id]
        self.reports.append(report)

    def fail(self, attempt: Attempt, failure: Failure) -> bool:
        """Settle a lease without a commit; True where the shard will be tried again."""
        shard = attempt.shard
        del self.at_work[shard.shard_id]
        failures = self._failures.setdefault(shard.shard_id, [])
        failures.append(failure)
        # Guarded, every sample has a deadline: what hangs all the same is the source.
        hangs_again = attempt.guarded and failure.kind == "decode_timeout"
        if failure.is_permanent or hangs_again or len(failures) >= MAX_ATTEMPTS:
            self.failed[shard] = failure
            return False
        ready_at = self._clock() + self._backoff_s * 2 ** (len(failures) - 1)
        heapq.heappush(self._delayed, (ready_at, self._num_delayed, shard))
        self._num_delayed += 1
        return True

    def rejects(self) -> Counter[str]:
        """Reason -> count, over the shards committed so far."""
        counts = Counter[str]()
        for report in self.reports:
            counts.update(report.rejects)
        return counts
