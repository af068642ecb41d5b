"""The bench of what an image costs in Python, on a few small ones."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from benchmarks.speed import python_cost


def test_each_step_of_both_processes_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    threads = torch.get_num_threads()
    try:
        python_cost.main([16, 256], images=40, batch_size=8, turns=3, json_path=tmp_path / "cost.json")
    finally:
        torch.set_num_threads(threads)
    told = json.loads(capsys.readouterr().out)
    assert told == json.loads((tmp_path / "cost.json").read_text())
    assert list(told) == ["16 pixels", "256 pixels"], "small ones go stacked, large ones apart"
    for steps in told.values():
        assert set(steps) == {*python_cost.TOKENIZER, *python_cost.DECODER, "tokenizer", "decoder"}
        for median, least, most in steps.values():
            assert 0 <= least <= median <= most
        assert steps["rows"][0] > 0
        assert steps["tokenizer"][2] >= steps["rows"][1] + steps["parquet"][1]
