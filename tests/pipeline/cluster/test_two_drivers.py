"""Two drivers started at once on one output: processes of their own, each with a Ray of its own."""

from __future__ import annotations

import os
import subprocess
import sys
from datetime import datetime, timedelta
from pathlib import Path

import pytest

from benchmarks.robustness.chaos import ROOT
from tatok.dataset.parts import TokenizedData
from tatok.pipeline.verify.dataset import verify_output
from tests.support.photos import write_flawed_shards


def both_end_well(source: str, output: str, log: Path) -> None:
    """Run two drivers side by side and check their exit codes, their records and the dataset."""
    environment = os.environ | {"PYTHONPATH": str(ROOT), "RAY_ADDRESS": "local"}
    command = [sys.executable, "-m", "benchmarks.robustness.chaos_driver", source, output, "0.25"]
    with log.open("wb") as lines:
        drivers = [subprocess.Popen(command, env=environment, stdout=lines, stderr=lines) for _ in range(2)]
        codes = [driver.wait(timeout=240) for driver in drivers]
    assert codes == [0, 0], log.read_text()
    verification = verify_output(output, [source])
    assert verification.findings == ()
    assert (verification.num_parts, verification.num_rows, verification.num_rejects) == (8, 96, 9)
    assert verification.num_samples == 105
    records = TokenizedData.open(output).runs()
    assert [record.status for record in records] == ["complete", "complete"]
    starts = [datetime.fromisoformat(record.started_at) for record in records]
    ends = [start + timedelta(seconds=record.seconds) for start, record in zip(starts, records, strict=True)]
    assert max(starts) < min(ends), "they were at work at the same time"


@pytest.mark.timeout(600)
@pytest.mark.long
def test_on_a_disk(tmp_path: Path) -> None:
    output = tmp_path / "tokens"
    both_end_well(write_flawed_shards(tmp_path / "source"), str(output), tmp_path / "log")
    assert sorted(path.name for path in output.iterdir()) == [
        ".huggingface.yaml",
        "_SUCCESS",
        "_manifest.json",
        "_rejects",
        "_run.json",
        "_runs",
        "data",
    ]


@pytest.mark.timeout(600)
def test_in_a_bucket(s3_bucket: str, tmp_path: Path) -> None:
    both_end_well(write_flawed_shards(tmp_path / "source"), f"s3://{s3_bucket}/two-drivers", tmp_path / "log")
