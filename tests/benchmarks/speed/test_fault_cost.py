"""The fault cost bench's tiny twin: a tree against itself, in two processes with a Ray each."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks import ROOT
from benchmarks.speed.fault_cost import CostReport, measure


def test_ratios_are_of_pairs() -> None:
    report = CostReport.of("fake", 1200, [2.0, 4.0, 5.0], [1.0, 4.0, 10.0])
    assert report.ratios == (0.5, 1.0, 2.0)
    assert report.median_ratio == 1.0


@pytest.mark.timeout(600)
def test_a_tree_against_itself(tmp_path: Path) -> None:
    report = measure(ROOT, "fake", 1, tmp_path, num_shards=3, photos_a_shard=4, is_warmed_up=False)
    assert (report.tokenizer, report.num_photos, len(report.ratios)) == ("fake", 12, 1)
    assert min(*report.before_s, *report.now_s) > 0
