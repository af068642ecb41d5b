"""Events of a run -> JSON lines, each with its time, run, and where it is about one the shard and the attempt."""

from __future__ import annotations

import json
from dataclasses import asdict
from datetime import UTC, datetime
from typing import Any, TextIO

from tatok.pipeline.monitoring.events import (
    Event,
    Load,
    Notice,
    ShardCommitted,
    ShardFailed,
    ShardRetried,
    ShardsPlanned,
    Throughput,
)
from tatok.pipeline.monitoring.figures import RunFigures

__all__ = ["RunLog"]


class RunLog:
    """Writes a line for every event but counts, and the figures at most every `interval_s` seconds.

    The last line of a run that ends well holds its final figures; call `close` for it.
    """

    def __init__(self, stream: TextIO, *, interval_s: float = 10.0) -> None:
        self._stream = stream
        self._interval_s = interval_s
        self._figures = RunFigures()
        self._written_at: datetime | None = None

    def __call__(self, event: Event) -> None:
        """Take note of an event, and write what is due."""
        self._figures.take(event)
        match event:
            case ShardsPlanned():
                self._write("planned", num_shards=event.num_shards, num_committed=event.num_committed)
            case ShardCommitted(report=report, attempt=attempt):
                counts = {"num_rows": report.num_rows, "num_tokens": report.num_tokens, "rejects": dict(report.rejects)}
                shard = {"shard": report.shard.shard_id, "uri": report.shard.uri, "attempt": attempt}
                self._write("committed", **shard, **counts, seconds=round(report.seconds, 3))
            case ShardRetried() | ShardFailed():
                kind = "retried" if isinstance(event, ShardRetried) else "failed"
                shard = {"shard": event.shard.shard_id, "uri": event.shard.uri, "attempt": event.attempt}
                self._write(kind, **shard, reason=event.reason)
            case Notice():
                self._write("notice", message=event.message)
            case Throughput() | Load():
                now = datetime.now(UTC)
                if self._written_at is None or (now - self._written_at).total_seconds() >= self._interval_s:
                    self._written_at = now
                    self._write_figures()

    def close(self) -> None:
        """Write the figures once more."""
        self._write_figures()

    def _write_figures(self) -> None:
        figures = asdict(self._figures.now())
        figures["reject_reasons"] = dict(figures["reject_reasons"])
        self._write("figures", **figures)

    def _write(self, event: str, **fields: Any) -> None:
        time = datetime.now(UTC).isoformat(timespec="milliseconds")
        line = {"time": time, "event": event, "run": self._figures.run} | fields
        self._stream.write(json.dumps(line, ensure_ascii=False) + "\n")
        self._stream.flush()
