"""Events of a run -> a live display on a terminal, plain lines elsewhere."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from types import TracebackType
from typing import Self, TextIO

from rich.console import Console
from rich.live import Live
from rich.table import Table
from rich.text import Text

from schemas.records import Shard, ShardReport

__all__ = [
    "Event",
    "Notice",
    "OnEvent",
    "ProgressDisplay",
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


@dataclass(frozen=True, slots=True, kw_only=True)
class Throughput:
    """Counts of this run so far, shards at work included; never go down but where an attempt is lost.

    Rejects that the job asked for, duplicates and what its filter drops, are not among `num_rejects`.
    """

    num_rows: int
    num_tokens: int
    num_rejects: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ShardCommitted:
    """One more part is published."""

    report: ShardReport


@dataclass(frozen=True, slots=True, kw_only=True)
class ShardRetried:
    """An attempt failed and the shard waits for another."""

    shard: Shard
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ShardFailed:
    """The shard is given up for this run."""

    shard: Shard
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Notice:
    """Something that the user should know and the run survives."""

    message: str


Event = ShardsPlanned | Throughput | ShardCommitted | ShardRetried | ShardFailed | Notice
OnEvent = Callable[[Event], None]


class ProgressDisplay:
    """Shows a run; call it with events, inside its `with` block.

    On a terminal one line is kept up to date; elsewhere a line is printed every `interval_s` seconds at most.
    Notices, retries and failures are always printed.
    """

    def __init__(self, stream: TextIO | None = None, *, interval_s: float = 10.0) -> None:
        self._console = Console(file=stream or sys.stderr, highlight=False, soft_wrap=True)
        self._interval_s = interval_s
        self._live: Live | None = None
        self._planned = ShardsPlanned(num_shards=0, num_committed=0, pending_bytes=0)
        self._counts = Throughput(num_rows=0, num_tokens=0, num_rejects=0)
        self._first_counts_at: float | None = None
        self._num_done = 0
        self._done_bytes = 0
        self._printed_at = 0.0

    def __enter__(self) -> Self:
        if self._console.is_terminal:
            self._live = Live(console=self._console, get_renderable=self._render, refresh_per_second=4, transient=True)
            self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._live is not None:
            self._live.stop()
            self._live = None

    def __call__(self, event: Event) -> None:
        """Take note of an event, and show it where it is due."""
        match event:
            case ShardsPlanned():
                self._planned = event
                if event.num_committed:
                    self._print(f"{event.num_committed} of {event.num_shards} shards are committed already")
            case Throughput():
                self._counts = event
                if self._first_counts_at is None and event.num_rows + event.num_rejects:
                    self._first_counts_at = time.monotonic()
            case ShardCommitted():
                self._num_done += 1
                self._done_bytes += event.report.shard.num_bytes
            case ShardRetried():
                self._print(f"retrying {event.shard.uri}: {event.reason}")
            case ShardFailed():
                self._print(f"giving up {event.shard.uri}: {event.reason}")
            case Notice():
                self._print(event.message)
        is_due = time.monotonic() - self._printed_at >= self._interval_s
        if self._live is None and is_due and isinstance(event, Throughput):
            self._printed_at = time.monotonic()
            self._print("  ".join(self._fields()))

    def _print(self, line: str) -> None:
        # Text: messages quote file names, which must not be read as markup.
        self._console.print(Text(line))

    def _render(self) -> Table:
        table = Table.grid(padding=(0, 2))
        table.add_row(*(Text(field) for field in self._fields()))
        return table

    def _fields(self) -> list[str]:
        counts, planned = self._counts, self._planned
        num_done = planned.num_committed + self._num_done
        fields = [f"shards {num_done}/{planned.num_shards}"]
        seconds = 0.0 if self._first_counts_at is None else time.monotonic() - self._first_counts_at
        if not counts.num_rows and not counts.num_rejects:
            return [*fields, "starting"]
        fields.append(f"images {counts.num_rows:,}")
        if seconds > 1:
            fields += [f"{counts.num_rows / seconds:,.1f} images/s", f"{counts.num_tokens / seconds:,.0f} tokens/s"]
        fields += [
            f"{counts.num_tokens / max(counts.num_rows, 1):.1f} tokens/image",
            f"rejects {counts.num_rejects:,}",
        ]
        if self._done_bytes and seconds > 1:
            remaining_bytes = max(planned.pending_bytes - self._done_bytes, 0)
            fields.append(f"ETA {_duration(remaining_bytes / self._done_bytes * seconds)}")
        return fields


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
