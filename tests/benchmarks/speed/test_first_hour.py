"""The bench of what new users wait for: its arithmetic, an earlier revision, one round of it."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from benchmarks import ROOT
from benchmarks.speed.first_hour import Waited, measure, revision, table

WAITED = Waited(what="tatok --help", now=(0.2, 0.3, 0.4), before=(0.4, 0.3, 0.2))


def test_ratios_are_of_pairs() -> None:
    assert WAITED.ratios == (0.5, 1.0, 2.0)
    assert table([WAITED]).splitlines()[1] == "tatok --help         0.30     0.30    1.00   0.50 to 2.00"


def test_without_an_earlier_revision_there_is_no_ratio() -> None:
    text = table([Waited(what="tatok --help", now=(0.2,), before=())])
    assert text.splitlines()[1].split() == ["tatok", "--help", "-", "0.20", "-"]


def test_an_earlier_revision_is_written_out(tmp_path: Path) -> None:
    if subprocess.run(["git", "rev-parse", "HEAD"], cwd=ROOT, capture_output=True, check=False).returncode:
        pytest.skip("needs a git checkout")
    assert (revision("HEAD", tmp_path) / "tatok" / "__init__.py").is_file()
    with pytest.raises(subprocess.CalledProcessError):
        revision("no-such-revision", tmp_path)


@pytest.mark.long
@pytest.mark.timeout(600)
def test_a_round(tmp_path: Path) -> None:
    found = measure(1, {"now": ROOT, "before": ROOT}, tmp_path, num_files=10)
    assert [len(each.ratios) for each in found] == [1] * 5
    assert min(seconds for each in found for seconds in (*each.now, *each.before)) > 0
