"""Events of a run -> its figures: the one source of the display, the log and the metrics, so that they agree."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass

from tatok.pipeline.monitoring.events import (
    Event,
    Load,
    ShardCommitted,
    ShardFailed,
    ShardRetried,
    ShardsPlanned,
    Throughput,
)

__all__ = ["Figures", "RunFigures"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Figures:
    """Of one run so far; rows, tokens and rejects count shards at work, the rest what is committed.

    Rows are images, but for `num_clips`, which are clips of videos with `num_frames` in all.
    `gpu_idle_share` is the share of the tokenizers' time in which they did not encode. `reject_reasons` are those of
    committed shards. Stages: `encode_s` and `wait_s` are seconds of all tokenizers, encoding and waiting for clips;
    `tokenizer_s` is how long they have been ready.
    """

    num_shards: int = 0
    num_committed: int = 0
    num_retried: int = 0
    num_failed: int = 0
    num_waiting: int = 0
    num_at_work: int = 0
    num_tokenizers: int = 0
    num_idle_decoders: int = 0
    num_rows: int = 0
    num_clips: int = 0
    num_frames: int = 0
    num_tokens: int = 0
    num_rejects: int = 0
    reject_reasons: tuple[tuple[str, int], ...] = ()
    num_bytes: int = 0
    pending_bytes: int = 0
    encode_s: float = 0.0
    wait_s: float = 0.0
    tokenizer_s: float = 0.0
    gpu_idle_share: float = 0.0
    seconds: float = 0.0

    @property
    def num_pictures(self) -> int:
        """Images and frames of clips."""
        return self.num_rows - self.num_clips + self.num_frames

    @property
    def rows_per_s(self) -> float:
        """Since the first row; 0 in the first second."""
        return self.num_rows / self.seconds if self.seconds > 1 else 0.0

    @property
    def pictures_per_s(self) -> float:
        """As `rows_per_s`."""
        return self.num_pictures / self.seconds if self.seconds > 1 else 0.0

    @property
    def tokens_per_s(self) -> float:
        """As `rows_per_s`."""
        return self.num_tokens / self.seconds if self.seconds > 1 else 0.0


class RunFigures:
    """Keeps the figures of a run; feed it every event in order."""

    def __init__(self, *, clock: Callable[[], float] = lambda: time.monotonic()) -> None:
        self.run = ""
        self._clock = clock
        self._planned: ShardsPlanned | None = None
        self._counts = Throughput(num_rows=0, num_tokens=0, num_rejects=0)
        self._load = Load()
        self._first_counts_at: float | None = None
        self._num_done = self._num_retried = self._num_failed = self._num_bytes = 0
        self._reasons = Counter[str]()

    def take(self, event: Event) -> None:
        """Take note of an event."""
        match event:
            case ShardsPlanned():
                self._planned, self.run = event, event.run
            case Throughput():
                self._counts = event
                if self._first_counts_at is None and event.num_rows + event.num_rejects:
                    self._first_counts_at = self._clock()
            case Load():
                self._load = event
            case ShardCommitted():
                self._num_done += 1
                self._num_bytes += event.report.shard.num_bytes
                self._reasons.update(event.report.rejects)
            case ShardRetried():
                self._num_retried += 1
            case ShardFailed():
                self._num_failed += 1

    def now(self) -> Figures:
        """The figures as of the last event."""
        planned, load, counts = self._planned, self._load, self._counts
        busy = load.encode_s / load.tokenizer_s if load.tokenizer_s else 0.0
        return Figures(
            num_shards=planned.num_shards if planned else 0,
            num_committed=(planned.num_committed if planned else 0) + self._num_done,
            num_retried=self._num_retried,
            num_failed=self._num_failed,
            num_waiting=load.num_waiting,
            num_at_work=load.num_at_work,
            num_tokenizers=load.num_tokenizers,
            num_idle_decoders=load.num_idle_decoders,
            num_rows=counts.num_rows,
            num_clips=counts.num_clips,
            num_frames=counts.num_frames,
            num_tokens=counts.num_tokens,
            num_rejects=counts.num_rejects,
            reject_reasons=tuple(sorted(self._reasons.items())),
            num_bytes=self._num_bytes,
            pending_bytes=max((planned.pending_bytes if planned else 0) - self._num_bytes, 0),
            encode_s=load.encode_s,
            wait_s=load.wait_s,
            tokenizer_s=load.tokenizer_s,
            gpu_idle_share=max(0.0, 1.0 - busy) if load.tokenizer_s else 0.0,
            seconds=0.0 if self._first_counts_at is None else self._clock() - self._first_counts_at,
        )
