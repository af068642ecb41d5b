"""Events of a run -> a live display on a terminal, plain lines elsewhere."""

from __future__ import annotations

import sys
import time
from types import TracebackType
from typing import Self, TextIO

from rich.console import Console
from rich.live import Live
from rich.table import Table
from rich.text import Text

from tatok.pipeline.monitoring.events import Event, Notice, ShardFailed, ShardRetried, ShardsPlanned, Throughput
from tatok.pipeline.monitoring.figures import RunFigures

__all__ = ["ProgressDisplay"]


class ProgressDisplay:
    """Shows a run; call it with events, inside its `with` block.

    On a terminal one line is kept up to date; elsewhere a line is printed every `interval_s` seconds at most.
    Notices, retries and failures are always printed.
    """

    def __init__(self, stream: TextIO | None = None, *, interval_s: float = 10.0) -> None:
        self._console = Console(file=stream or sys.stderr, highlight=False, soft_wrap=True)
        self._interval_s = interval_s
        self._live: Live | None = None
        self._figures = RunFigures()
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
        self._figures.take(event)
        match event:
            case ShardsPlanned(num_committed=done) if done:
                self._print(f"{done} of {event.num_shards} shards are committed already")
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
        figures = self._figures.now()
        fields = [f"shards {figures.num_committed}/{figures.num_shards}"]
        if not figures.num_rows and not figures.num_rejects:
            return [*fields, "starting"]
        num_images, picture = figures.num_rows - figures.num_clips, "frame" if figures.num_clips else "image"
        if num_images or not figures.num_clips:
            fields.append(f"images {num_images:,}")
        if figures.num_clips:
            fields += [f"clips {figures.num_clips:,}", f"frames {figures.num_frames:,}"]
        if figures.pictures_per_s:
            fields += [f"{figures.pictures_per_s:,.1f} {picture}s/s", f"{figures.tokens_per_s:,.0f} tokens/s"]
        fields += [
            f"{figures.num_tokens / max(figures.num_pictures, 1):.1f} tokens/{picture}",
            f"rejects {figures.num_rejects:,}",
        ]
        if figures.num_bytes and figures.seconds > 1:
            fields.append(f"ETA {_duration(figures.pending_bytes / figures.num_bytes * figures.seconds)}")
        return fields


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
