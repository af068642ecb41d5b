"""Events of a run -> a live display on a terminal, plain lines elsewhere; less, or more, where that is asked for."""

from __future__ import annotations

import sys
import time
from types import TracebackType
from typing import Self, TextIO

from rich.console import Console
from rich.live import Live
from rich.text import Text

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
from tatok.pipeline.monitoring.figures import Figures, RunFigures
from tatok.schemas.records import count_text, is_or_are

__all__ = ["ProgressDisplay"]

_GAP = "  "


class ProgressDisplay:
    """Shows a run; call it with events, inside its `with` block.

    On a terminal one line is kept up to date; elsewhere a line is printed every `interval_s` seconds at most.
    Notices, retries and failures are always printed. `level` is how much else: -1 only shards that are given up; 1 also
    each committed shard, and at the end where the time went; 2 also the load, every `interval_s` seconds.
    """

    def __init__(self, stream: TextIO | None = None, *, level: int = 0, interval_s: float = 10.0) -> None:
        self._console = Console(file=stream or sys.stderr, highlight=False)
        self._console.soft_wrap = not self._console.is_terminal  # lines are broken between words there, and only there
        self._level = level
        self._interval_s = interval_s
        self._live: Live | None = None
        self._figures = RunFigures()
        self._printed_at = self._load_printed_at = 0.0

    def __enter__(self) -> Self:
        if self._level >= 0 and self._console.is_terminal and not self._console.is_dumb_terminal:
            self._live = Live(console=self._console, get_renderable=self._render, refresh_per_second=4, transient=True)
            self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._live is not None:
            self._live.stop()
            self._live = None
        figures = self._figures.now()
        if self._level >= 1 and figures.tokenizer_s:
            self._print(_where_time_went(figures))

    def __call__(self, event: Event) -> None:
        """Take note of an event, and show it where it is due."""
        self._figures.take(event)
        if isinstance(event, ShardFailed):
            self._print(f"giving up {event.shard.uri}: {event.reason}")
        elif self._level >= 0:
            self._tell(event)

    def _tell(self, event: Event) -> None:
        match event:
            case ShardsPlanned(num_committed=done) if done:
                self._print(
                    f"{done} of {count_text(event.num_shards, 'shard')} {is_or_are(event.num_shards)} committed already"
                )
            case ShardRetried():
                self._print(f"retrying {event.shard.uri}: {event.reason}")
            case ShardCommitted() if self._level >= 1:
                self._print(_committed(event))
            case Notice():
                self._print(event.message)
            case Load() if self._level >= 2 and time.monotonic() - self._load_printed_at >= self._interval_s:
                self._load_printed_at = time.monotonic()
                self._print(_load(event))
        is_due = time.monotonic() - self._printed_at >= self._interval_s
        if self._live is None and is_due and isinstance(event, Throughput):
            self._printed_at = time.monotonic()
            self._print(_GAP.join(self._fields()))

    def _print(self, line: str) -> None:
        # Text: messages quote file names, which must not be read as markup.
        self._console.print(Text(line))

    def _render(self) -> Text:
        """The fields on one line; where it is short, without those about tokens."""
        fields = self._fields()
        for field in reversed([field for field in fields if " tokens/" in field]):
            if len(_GAP.join(fields)) > self._console.width:
                fields.remove(field)
        return Text(_GAP.join(fields), no_wrap=True, overflow="ellipsis")

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


def _committed(event: ShardCommitted) -> str:
    report = event.report
    rejects = "".join(f", {count:,} {reason}" for reason, count in sorted(report.rejects.items()))
    return (
        f"committed {report.shard.uri}: {count_text(report.num_rows, 'row')}, {report.num_tokens:,} tokens{rejects} "
        f"in {report.seconds:.1f} s"
    )


def _load(event: Load) -> str:
    return (
        f"load: {count_text(event.num_at_work, 'shard')} at work, {event.num_waiting:,} waiting; "
        f"{event.num_tokenizers:,} "
        f"tokenizers, {event.num_idle_decoders:,} idle decoders"
    )


def _where_time_went(figures: Figures) -> str:
    # Shards of one tokenizer wait side by side: their seconds are no share of its time.
    encoding = figures.encode_s / figures.tokenizer_s
    return (
        f"tokenizers: {figures.tokenizer_s:,.1f} s in all, {encoding:.0%} of it encoding; "
        f"their shards waited {figures.wait_s:,.1f} s for decoded images; {figures.num_retried:,} retries"
    )


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
