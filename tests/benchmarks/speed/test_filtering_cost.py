"""The bench of DTF's cost, on a tiny checkpoint."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from benchmarks.speed import filtering_cost
from tests.support.photos import jpeg
from tests.support.tiny_checkpoint import tiny_checkpoint


def test_the_shares_of_one_round_and_of_four(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "a.jpg").write_bytes(jpeg(0))
    threads = torch.get_num_threads()
    try:
        filtering_cost.main(
            [str(tmp_path / "a.jpg")], checkpoint=tiny_checkpoint(tmp_path / "tiny"), image_size=32, turns=3
        )
    finally:
        torch.set_num_threads(threads)
    told = json.loads(capsys.readouterr().out)
    for median, least, most in told.values():
        assert 0 < least <= median <= most
    assert told["rounds 4"][0] > told["rounds 1"][0], "four passes of the prior"
