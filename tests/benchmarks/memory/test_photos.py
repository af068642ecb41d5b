"""The memory bench's tiny twin: the same two runs over small and larger photos, and how processes are added up."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.memory.photos import BYTES_A_PIXEL, NUM_DECODERS, Photos, measure, memory_mb
from tatok.schemas.job import Resources


def test_a_child_counts_with_its_parent() -> None:
    before = sum(memory_mb(os.getpid()).values())
    held = subprocess.Popen(
        [sys.executable, "-c", "block = b'x' * 200_000_000; print(len(block), flush=True); input()"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    with held:
        assert held.stdout is not None
        held.stdout.readline()
        kinds = memory_mb(os.getpid())
        held.communicate(b"\n")
    assert sum(kinds.values()) - before > 200
    assert kinds["other"] > 200


@pytest.mark.timeout(600)
@pytest.mark.long  # test_over_time.py watches a run's memory, too
def test_large_photos_stay_within_the_bound(tmp_path: Path) -> None:
    photos = Photos(num=8, width=2000, height=1500, num_shards=2)
    report = measure(photos, tmp_path / "work", ["--image-size", "64"])
    assert report.holds, report
    assert (report.num_rows, report.num_rejects, report.num_findings) == (8, 0, 0)
    added = NUM_DECODERS * (BYTES_A_PIXEL * 3e6 + Resources().max_bytes_in_flight) / 1e6
    assert report.bound_mb == pytest.approx(report.alone.total_mb + added + 2 * NUM_DECODERS * report.encoded_mb, abs=1)
    for peak in (report.alone, report.peak):
        assert peak.total_mb == pytest.approx(sum(peak.by_kind_mb.values()), abs=1)
        assert {"driver", "decoder", "tokenizer", "ray"} <= set(peak.by_kind_mb)
