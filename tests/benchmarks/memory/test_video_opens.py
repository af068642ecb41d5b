"""The tiny twin of `make bench-video`."""

from __future__ import annotations

from benchmarks.memory.video_opens import measure


def test_opens_leave_no_memory_behind() -> None:
    report = measure("pyav", 240, every=60)
    first, last = report.resident_mib[0], report.resident_mib[-1]
    assert last - first < 4  # MiB in 180 opens; a leak of 30 KB an open would be more
    assert report.longest_s > 0
    assert sum(report.outcomes.values()) == 240
    assert report.outcomes["whole"] >= 192
    assert {"empty", "not_a_video", "truncated"} <= set(report.outcomes)
