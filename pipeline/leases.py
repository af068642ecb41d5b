"""Which shards wait, which are at work, which are done or given up: retries with bounds, no Ray."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from schemas.records import Shard, ShardReport

__all__ = ["Failure", "ShardLedger"]

FailureKind = Literal["decode_timeout", "decoder_died", "tokenizer_died", "source", "commit", "error"]
MAX_ATTEMPTS = 3
MAX_TIMEOUTS = 2  # a decoder that hangs once more on the same shard will hang for ever


@dataclass(frozen=True, slots=True, kw_only=True)
class Failure:
    """Why one attempt at a shard ended without a commit."""

    kind: FailureKind
    message: str


class ShardLedger:
    """Hands out each shard until it is committed or its attempts are used up.

    Shards go out in order; one that failed goes to the end of the queue, so that a poisoned shard does not hold up
    the healthy ones.
    """

    def __init__(self, shards: Iterable[Shard]) -> None:
        self._waiting = deque(shards)
        self._failures: dict[str, list[Failure]] = {}
        self.at_work: dict[str, Shard] = {}
        self.reports: list[ShardReport] = []
        self.failed: dict[Shard, Failure] = {}

    @property
    def is_finished(self) -> bool:
        """Every shard is committed or given up."""
        return not self._waiting and not self.at_work

    @property
    def has_waiting(self) -> bool:
        """A shard can be leased."""
        return bool(self._waiting)

    def lease(self) -> Shard:
        """Take the next shard."""
        shard = self._waiting.popleft()
        self.at_work[shard.shard_id] = shard
        return shard

    def commit(self, report: ShardReport) -> None:
        """Settle a lease: the shard's part is published."""
        del self.at_work[report.shard.shard_id]
        self.reports.append(report)

    def fail(self, shard: Shard, failure: Failure) -> bool:
        """Settle a lease without a commit; True where the shard will be tried again."""
        del self.at_work[shard.shard_id]
        failures = self._failures.setdefault(shard.shard_id, [])
        failures.append(failure)
        timeouts = sum(past.kind == "decode_timeout" for past in failures)
        if len(failures) >= MAX_ATTEMPTS or timeouts >= MAX_TIMEOUTS:
            self.failed[shard] = failure
            return False
        self._waiting.append(shard)
        return True

    def rejects(self) -> Counter[str]:
        """Reason -> count, over the shards committed so far."""
        counts = Counter[str]()
        for report in self.reports:
            counts.update(report.rejects)
        return counts
