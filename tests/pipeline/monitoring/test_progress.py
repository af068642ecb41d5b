from __future__ import annotations

import io
import re
from dataclasses import replace

import pytest

from tatok.pipeline.cluster.leases import Attempt
from tatok.pipeline.monitoring.events import (
    Load,
    Notice,
    ShardCommitted,
    ShardFailed,
    ShardRetried,
    ShardsPlanned,
    Throughput,
)
from tatok.pipeline.monitoring.progress import ProgressDisplay, _duration
from tests.support.parts import report, shard


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def show(stream: io.StringIO, clock: list[float], monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setattr("time.monotonic", lambda: clock[0])
    with ProgressDisplay(stream, interval_s=5) as display:
        display(ShardsPlanned(num_shards=5, num_committed=1, pending_bytes=4))
        display(Throughput(num_rows=1, num_tokens=50, num_rejects=0))
        clock[0] += 10
        display(ShardCommitted(report=report(Attempt(shard=shard("a"), number=1, guarded=False))))
        display(Throughput(num_rows=1000, num_tokens=50_000, num_rejects=3))
        clock[0] += 1
        display(Throughput(num_rows=1001, num_tokens=50_050, num_rejects=3))
        display(ShardRetried(shard=shard("b[0]"), reason="decoder died"))
        display(ShardFailed(shard=shard("b[0]"), reason="again"))
        display(Notice(message="note [bold]this[/bold]"))
    return stream.getvalue()


def test_plain_lines_elsewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    lines = show(io.StringIO(), [100.0], monkeypatch).splitlines()
    assert lines == [
        "1 of 5 shards are committed already",
        "shards 1/5  images 1  50.0 tokens/image  rejects 0",
        "shards 2/5  images 1,000  100.0 images/s  5,000 tokens/s  50.0 tokens/image  rejects 3  ETA 0:30",
        "retrying /b[0].tar: decoder died",
        "giving up /b[0].tar: again",
        "note [bold]this[/bold]",
    ]


@pytest.mark.parametrize(
    ("counts", "line"),
    [
        (
            {"num_rows": 30, "num_clips": 30, "num_frames": 240},
            "shards 0/5  clips 30  frames 240  24.0 frames/s  480 tokens/s  20.0 tokens/frame  rejects 0",
        ),
        (
            {"num_rows": 1030, "num_clips": 30, "num_frames": 200},
            "shards 0/5  images 1,000  clips 30  frames 200  120.0 frames/s  480 tokens/s  4.0 tokens/frame  rejects 0",
        ),
    ],
)
def test_clips_and_their_frames_are_counted_apart_from_images(
    counts: dict[str, int], line: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock, stream = [100.0], io.StringIO()
    monkeypatch.setattr("time.monotonic", lambda: clock[0])
    with ProgressDisplay(stream, interval_s=5) as display:
        display(ShardsPlanned(num_shards=5, num_committed=0, pending_bytes=4))
        display(Throughput(num_rows=1, num_tokens=1, num_rejects=0))
        clock[0] += 10
        display(Throughput(num_tokens=4800, num_rejects=0, **counts))
    assert stream.getvalue().splitlines()[-1] == line


def test_live_display_on_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm")
    text = show(Terminal(), [100.0], monkeypatch)
    assert "giving up" in text
    assert "shards 2/5" in text


@pytest.mark.parametrize(
    ("columns", "line"),
    [
        (120, "shards 2/5  images 1,000  100.0 images/s  5,000 tokens/s  50.0 tokens/image  rejects 3  ETA 0:30"),
        (80, "shards 2/5  images 1,000  100.0 images/s  5,000 tokens/s  rejects 3  ETA 0:30"),
        (70, "shards 2/5  images 1,000  100.0 images/s  rejects 3  ETA 0:30"),
        (40, "shards 2/5  images 1,000  100.0 images/…"),
    ],
)
def test_the_live_line_is_one_line(columns: int, line: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", f"{columns}")
    clock = [100.0]
    monkeypatch.setattr("time.monotonic", lambda: clock[0])
    stream = Terminal()
    with ProgressDisplay(stream, interval_s=5) as display:
        display(ShardsPlanned(num_shards=5, num_committed=1, pending_bytes=4))
        display(Throughput(num_rows=1, num_tokens=50, num_rejects=0))
        clock[0] += 10
        display(ShardCommitted(report=report(Attempt(shard=shard("a"), number=1, guarded=False))))
        display(Throughput(num_rows=1000, num_tokens=50_000, num_rejects=3))
    last = re.sub(r"\x1b\[[0-9?]*[a-zA-Z]", "", stream.getvalue()).replace("\r", "\n")
    assert line in [each.rstrip() for each in last.splitlines()]


def shown(stream: io.StringIO, level: int) -> list[str]:
    committed = report(Attempt(shard=shard("a"), number=1, guarded=False))
    with ProgressDisplay(stream, level=level, interval_s=0) as display:
        display(ShardsPlanned(num_shards=5, num_committed=1, pending_bytes=4))
        display(Throughput(num_rows=1, num_tokens=50, num_rejects=0))
        display(ShardCommitted(report=replace(committed, num_rows=9, num_tokens=450, rejects={"too_small": 2})))
        display(Load(num_at_work=2, num_waiting=3, num_tokenizers=2, encode_s=30.0, wait_s=50.0, tokenizer_s=40.0))
        display(ShardRetried(shard=shard("b"), reason="decoder died"))
        display(ShardFailed(shard=shard("b"), reason="again"))
        display(Notice(message="a notice"))
    return stream.getvalue().splitlines()


def test_quiet_says_what_is_given_up_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm")
    assert shown(io.StringIO(), -1) == ["giving up /b.tar: again"]
    assert shown(Terminal(), -1) == ["giving up /b.tar: again"], "no live line either"


def test_verbose_says_what_is_committed_and_where_time_went() -> None:
    usual, more, all_there_is = (shown(io.StringIO(), level) for level in (0, 1, 2))
    [committed, spent] = [line for line in more if line not in usual]
    assert committed.startswith("committed /a.tar: 9 rows, 450 tokens, 2 too_small in ")
    assert spent == (
        "tokenizers: 40.0 s in all, 75% of it encoding; their shards waited 50.0 s for decoded images; 1 retries"
    )
    [load] = [line for line in all_there_is if line not in more]
    assert load == "load: 2 shards at work, 3 waiting; 2 tokenizers, 0 idle decoders"


def test_a_terminal_that_cannot_move_its_cursor_gets_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "dumb")
    assert shown(Terminal(), 0) == shown(io.StringIO(), 0)


@pytest.mark.parametrize(("seconds", "text"), [(0, "0:00"), (61.4, "1:01"), (3_725, "1:02:05")])
def test_durations(seconds: float, text: str) -> None:
    assert _duration(seconds) == text
