"""The fault cost bench's tiny twin: a tree against itself, in two processes with a Ray each."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks import ROOT
from benchmarks.speed.fault_cost import CostReport, Ratios, RunTimes, measure


def test_ratios_are_of_pairs() -> None:
    before = [RunTimes.of(0.0, end, (1.0, 2.0, end)) for end in (3.0, 5.0, 6.0)]
    now = [RunTimes.of(10.0, 10.0 + end, (11.0, 12.0, 10.0 + end)) for end in (2.5, 5.0, 16.0)]
    assert before[0] == RunTimes(whole_s=3.0, commits_s=2.0, steady_s=1.0)
    report = CostReport.of("fake", 1200, before, now)
    assert report.ratios["commits"] == Ratios(median=1.0, lowest=0.75, highest=3.0, pairs=(0.75, 1.0, 3.0))
    assert report.ratios["whole"].pairs == (0.833, 1.0, 2.667)
    assert report.ratios["steady"].pairs == (0.5, 1.0, 3.5)


@pytest.mark.long
@pytest.mark.timeout(600)
def test_a_tree_against_itself(tmp_path: Path) -> None:
    report = measure(ROOT, "fake", 1, tmp_path, num_shards=3, photos_a_shard=4, is_warmed_up=False)
    assert (report.tokenizer, report.num_photos, len(report.ratios["whole"].pairs)) == ("fake", 12, 1)
    for times in (*report.before, *report.now):
        assert times.whole_s > times.commits_s > times.steady_s > 0
