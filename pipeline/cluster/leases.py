"""Which shards wait, which are at work, which are done or given up: retries with back-off and bounds, no Ray."""

from __future__ import annotations

import heapq
import math
import statistics
import time
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import count
from typing import Literal

from tatok.pipeline.monitoring.events import Throughput
from tatok.schemas.records import Shard, ShardReport

__all__ = ["MAX_DEATHS_IN_A_ROW", "SAMPLES_FAULT", "Attempt", "DeathsInARow", "Failure", "ShardLedger"]

FailureKind = Literal[
    "decode_timeout",
    "decoder_died",
    "tokenizer_died",
    "no_progress",  # of its tokenizer, for longer than a lease lasts
    "device_lost",  # the tokenizer's device works no more for its process; this attempt was the first to meet it
    "tokenizer_replaced",  # for such a reason, under this attempt
    "source",
    "commit",
    "error",
]
MAX_ATTEMPTS = 3
MAX_DEVICE_LOSSES = 4  # of one shard, besides: a device fails by itself, but something in a shard may break each one
# Of one shard's processes: one death in all counts as an attempt. A shard that costs so many is at fault all the same.
MAX_DEATHS = 6
BACKOFF_S = 2.0  # before the second attempt; doubled before each further one
MOST_BACKOFF_S = 60.0
STRAGGLER_S = 30.0
STRAGGLER_RATIO = 3.0  # to the median time of the latest committed shards
_LATEST = 1000
MAX_DEATHS_IN_A_ROW = 10  # with their back-off and what a start takes, about five minutes
DEATHS_APART_S = 10.0
RESTART_BACKOFF_S = 2.0  # before a process is started after a second death in a row; doubled after each further one
_DEATHS = ("decoder_died", "tokenizer_died")
_COSTLY = (*_DEATHS, "no_progress", "device_lost")
# What may be one sample's doing: the next attempt decodes in a process that finds out which.
SAMPLES_FAULT = ("decode_timeout", "decoder_died")


@dataclass(frozen=True, slots=True, kw_only=True)
class Failure:
    """Why one attempt at a shard ended without a commit; a permanent failure would be the same again.

    `is_blameless`: a process died, and Ray says that its node went, or that the memory of its node was short, which may
    be anybody's doing.
    """

    kind: FailureKind
    message: str
    is_permanent: bool = False
    is_blameless: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Attempt:
    """One lease of a shard; `number` tells the leases of a run apart.

    `guarded` says that an earlier one lost its decoder, so that each sample is to be decoded in a child process.
    `alone`: an earlier one met a device that works no more, which is to be no other tokenizer's fate.
    """

    shard: Shard
    number: int
    guarded: bool
    alone: bool = False

    def __hash__(self) -> int:
        return self.number  # a shard's many fields would be hashed at every look-up


class ShardLedger:
    """Hands out each shard until it is committed or its attempts are used up.

    Shards go out in order. One that failed waits `backoff_s`, twice that after the next failure, and goes behind those
    that have not failed, so that a poisoned shard does not hold up the healthy ones. A permanent failure is not
    repeated; one that is no fault of the shard does not count. Processes die for reasons of their own: all deaths of a
    shard's processes together count as one attempt, and blameless ones not at all; only a shard that costs one process
    after the other is given up for it. At the end of a run a straggler may be handed out once more; the first commit
    settles both attempts, and where both fail the later failure counts. There is no third one beside them: what hangs
    for longer than a straggler may take would have one twin after the other, and never fail.
    `clock` gives seconds and never goes back.
    """

    def __init__(
        self, shards: Iterable[Shard], *, backoff_s: float = BACKOFF_S, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._fresh = deque(shards)
        self._delayed: list[tuple[float, int, Shard]] = []  # a heap: ready at, order, shard
        self._num_delayed = count()  # a node that is lost fails several leases at one moment
        self._num_leases = 0
        self._backoff_s = backoff_s
        self._clock = clock
        self._failures: dict[str, list[Failure]] = {}
        self._at_work: dict[str, dict[Attempt, float]] = {}  # shard id -> attempt -> leased at
        self._twinned = set[str]()  # ids of those at work that were handed out once more
        self.reports: list[ShardReport] = []
        self.committed = Throughput(num_rows=0, num_tokens=0, num_rejects=0)
        self._latest_s: deque[float] = deque(maxlen=_LATEST)  # that shards took
        self.failed: dict[Shard, Failure] = {}

    @property
    def is_finished(self) -> bool:
        """Every shard is committed or given up."""
        return not self._fresh and not self._delayed and not self._at_work

    @property
    def num_unsettled(self) -> int:
        """Shards that are neither committed nor given up."""
        return len(self._fresh) + len(self._delayed) + len(self._at_work)

    def unsettled(self) -> Iterator[Shard]:
        """Those shards, in no order that means anything."""
        yield from self._fresh
        yield from (shard for _, _, shard in self._delayed)
        yield from (next(iter(attempts)).shard for attempts in self._at_work.values())

    @property
    def has_waiting(self) -> bool:
        """A shard can be leased now."""
        return bool(self._fresh) or (bool(self._delayed) and self._delayed[0][0] <= self._clock())

    def lease(self) -> Attempt:
        """Take the next shard; call it only where `has_waiting`."""
        return self._lease(self._fresh.popleft() if self._fresh else heapq.heappop(self._delayed)[2])

    def lease_straggler(self) -> Attempt | None:
        """Take the shard that has been at work longest once more, where all are out and it takes far too long.

        None where shards wait, where no shard has been at work for `STRAGGLER_S` and for several times as long as
        committed ones took, or where the one that has is at work twice. One of which a twin has failed has no other.
        """
        shard = self._straggler
        if shard is None:
            return None
        self._twinned.add(shard.shard_id)
        return self._lease(shard)

    @property
    def has_straggler(self) -> bool:
        """Whether `lease_straggler` would take one."""
        return self._straggler is not None

    @property
    def _straggler(self) -> Shard | None:
        if self._fresh or self._delayed:
            return None
        at_work = (
            attempts
            for shard_id, attempts in self._at_work.items()
            if len(attempts) > 1 or shard_id not in self._twinned
        )
        attempts = min(at_work, key=lambda attempts: min(attempts.values()), default={})
        took = self._latest_s
        patience_s = max(STRAGGLER_S, STRAGGLER_RATIO * statistics.median(took) if took else math.inf)
        if len(attempts) != 1 or self._clock() - min(attempts.values()) < patience_s:
            return None
        return next(iter(attempts)).shard

    def has_cost_a_process(self, shard: Shard) -> bool:
        """Whether one died under it before, or had to be replaced, by no known fault of another."""
        return any(each.kind in _COSTLY and not each.is_blameless for each in self._failures.get(shard.shard_id, ()))

    def is_open(self, attempt: Attempt) -> bool:
        """Whether the attempt's shard still waits for its outcome; another one may have settled it."""
        return attempt in self._at_work.get(attempt.shard.shard_id, {})

    def commit(self, attempt: Attempt, report: ShardReport) -> bool:
        """Settle a lease: the shard's part is published; False where a twin was settled before, which is fine."""
        if not self.settle(attempt):
            return False
        self.reports.append(report)
        self._latest_s.append(report.seconds)
        self.committed += Throughput(
            num_rows=report.num_rows,
            num_tokens=report.num_tokens,
            num_rejects=report.num_faults,
            num_clips=report.num_clips,
            num_frames=report.num_frames,
        )
        return True

    def settle(self, attempt: Attempt) -> bool:
        """There is nothing left to do for the attempt's shard; False where that was so before."""
        if not self.is_open(attempt):
            return False
        self._end(attempt.shard)
        return True

    def fail(self, attempt: Attempt, failure: Failure) -> Literal["again", "given_up", "elsewhere"]:
        """Settle a lease without a commit: the shard is tried again, given up, or a twin has it (or had it)."""
        if not self.is_open(attempt):
            return "elsewhere"
        shard = attempt.shard
        attempts = self._at_work[shard.shard_id]
        del attempts[attempt]
        if attempts:
            return "elsewhere"
        self._end(shard)
        if failure.kind == "tokenizer_replaced":
            self._fresh.appendleft(shard)
            return "again"
        failures = self._failures.setdefault(shard.shard_id, [])
        failures.append(failure)
        # Guarded, every sample has a deadline: what hangs all the same is the source.
        hangs_again = attempt.guarded and failure.kind == "decode_timeout"
        if failure.is_permanent or hangs_again or _is_over(failures):
            self.failed[shard] = failure
            return "given_up"
        ready_at = self._clock() + min(self._backoff_s * 2 ** (len(failures) - 1), MOST_BACKOFF_S)
        heapq.heappush(self._delayed, (ready_at, next(self._num_delayed), shard))
        return "again"

    def rejects(self) -> Counter[str]:
        """Reason -> count, over the shards committed so far."""
        counts = Counter[str]()
        for report in self.reports:
            counts.update(report.rejects)
        return counts

    def _end(self, shard: Shard) -> None:
        del self._at_work[shard.shard_id]
        self._twinned.discard(shard.shard_id)

    def _lease(self, shard: Shard) -> Attempt:
        failures = self._failures.get(shard.shard_id, [])
        self._num_leases += 1
        attempt = Attempt(
            shard=shard,
            number=self._num_leases,
            guarded=any(failure.kind in SAMPLES_FAULT for failure in failures),
            alone=any(failure.kind == "device_lost" for failure in failures),
        )
        self._at_work.setdefault(shard.shard_id, {})[attempt] = self._clock()
        return attempt


def _is_over(failures: Sequence[Failure]) -> bool:
    """Whether a shard has used up its attempts."""
    num_losses = sum(each.kind == "device_lost" for each in failures)
    num_deaths = sum(each.kind in _DEATHS and not each.is_blameless for each in failures)
    num_others = sum(each.kind not in ("device_lost", *_DEATHS) for each in failures)
    is_used_up = num_others + min(num_deaths, 1) >= MAX_ATTEMPTS
    return is_used_up or num_losses >= MAX_DEVICE_LOSSES or num_deaths >= MAX_DEATHS


class DeathsInARow:
    """Counts processes that die without a commit in between: after so many the fault is not in one shard.

    Deaths within `DEATHS_APART_S` count as one, since a node that is lost takes all of its processes with it; so do
    those that come while a successor is still held back.
    """

    def __init__(self, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._count, self._last = 0, -math.inf

    def add(self) -> bool:
        """Count a death; whether there were too many."""
        now = self._clock()
        if now - self._last >= DEATHS_APART_S + self.backoff_s:
            self._count, self._last = self._count + 1, now
        return self._count >= MAX_DEATHS_IN_A_ROW

    @property
    def backoff_s(self) -> float:
        """How long to wait before the next process is started: not at all after the first death."""
        return 0.0 if self._count < 2 else min(RESTART_BACKOFF_S * 2 ** (self._count - 2), MOST_BACKOFF_S)

    def clear(self) -> None:
        """A shard was committed."""
        self._count = 0
