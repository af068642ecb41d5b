from __future__ import annotations

import io

import pytest

from tatok.pipeline.cluster.leases import Attempt
from tatok.pipeline.monitoring.events import (
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


@pytest.mark.parametrize(("seconds", "text"), [(0, "0:00"), (61.4, "1:01"), (3_725, "1:02:05")])
def test_durations(seconds: float, text: str) -> None:
    assert _duration(seconds) == text
