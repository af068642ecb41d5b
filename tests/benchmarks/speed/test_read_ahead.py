"""The read-ahead benchmark's tiny twin: a real store behind the slow proxy, two ways of reading, figures of both."""

from __future__ import annotations

import json
from pathlib import Path

from benchmarks.speed import read_ahead


def test_a_small_tar_from_a_distant_store(tmp_path: Path) -> None:
    out = tmp_path / "figures.json"
    read_ahead.main(megabytes=2, delay_ms=[5.0], decode_ms=[1.0], rounds=1, variant=["tatok's"], out=out)
    [found] = json.loads(out.read_text())["found"]
    assert set(found["variants"]) == {"fsspec's own", "tatok's"}
    assert found["variants"]["fsspec's own"]["ratio"] == 1.0
    assert all(figures["seconds"][0] > 0.005 for figures in found["variants"].values())
