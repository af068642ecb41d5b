"""What a run reports while it works, in the order in which it happens."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from tatok.schemas.records import Shard, ShardReport

__all__ = [
    "Event",
    "Load",
    "Notice",
    "OnEvent",
    "ShardCommitted",
    "ShardFailed",
    "ShardRetried",
    "ShardsPlanned",
    "Throughput",
]


@dataclass(frozen=True, slots=True, kw_only=True)
class ShardsPlanned:
    """The run knows its work."""

    num_shards: int
    num_committed: int
    pending_bytes: int
    run: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Throughput:
    """Counts of this run so far, shards at work included; never go down but where an attempt is lost.

    Of the rows, `num_clips` are clips of videos, with `num_frames` in all; the others are images. Rejects that the job
    asked for, duplicates and what its filter drops, are not among `num_rejects`.
    """

    num_rows: int
    num_tokens: int
    num_rejects: int
    num_clips: int = 0
    num_frames: int = 0

    def __add__(self, other: Throughput) -> Throughput:
        """Both together."""
        return Throughput(  # field by field: it is made with each commit, of millions
            num_rows=self.num_rows + other.num_rows,
            num_tokens=self.num_tokens + other.num_tokens,
            num_rejects=self.num_rejects + other.num_rejects,
            num_clips=self.num_clips + other.num_clips,
            num_frames=self.num_frames + other.num_frames,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class ShardCommitted:
    """One more part is published."""

    report: ShardReport
    attempt: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class ShardRetried:
    """An attempt failed and the shard waits for another."""

    shard: Shard
    reason: str
    attempt: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class ShardFailed:
    """The shard is given up for this run."""

    shard: Shard
    reason: str
    attempt: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Load:
    """How busy the run is: queues now, and since the start the seconds of all tokenizers together.

    `encode_s` and `wait_s` were spent encoding, and by their shards waiting for decoded clips; `tokenizer_s` is how
    long the tokenizers have been ready.
    """

    num_waiting: int = 0
    num_at_work: int = 0
    num_tokenizers: int = 0
    num_idle_decoders: int = 0
    encode_s: float = 0.0
    wait_s: float = 0.0
    tokenizer_s: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Notice:
    """Something that the user should know and the run survives."""

    message: str


Event = ShardsPlanned | Throughput | Load | ShardCommitted | ShardRetried | ShardFailed | Notice
OnEvent = Callable[[Event], None]
