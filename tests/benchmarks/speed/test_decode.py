"""The bench of the decoders, on a few small photos."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

from benchmarks.speed import decode


def test_it_measures_both_and_compares_them(photo_shards: Callable[..., str], tmp_path: Path) -> None:
    decode.main([photo_shards(1, 4)], limit=3, image_size=32, passes=2, out=tmp_path / "decode.json")
    figures = json.loads((tmp_path / "decode.json").read_text())
    assert figures["photos"] == 3
    assert min(figures["photos_per_cpu_second"].values()) > 0
    assert [len(each) for each in figures["every_pass"].values()] == [2, 2]
    assert 0 <= figures["mean_difference"] <= figures["max_difference"] <= 3
    assert figures["versions"]["simplejpeg"]
