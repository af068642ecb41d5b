"""The bench of the smallest job: one round of it."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image

from benchmarks import ROOT
from benchmarks.speed.one_photo import first_photo, measure


def test_the_photo_is_one(tmp_path: Path) -> None:
    with Image.open(first_photo(tmp_path)) as image:
        assert image.format == "JPEG"


@pytest.mark.long
@pytest.mark.timeout(600)
def test_a_round(tmp_path: Path) -> None:
    found = measure(1, {"now": ROOT}, tmp_path)
    assert set(found) == {"now", "Ray alone"}
    for (each,) in found.values():
        assert 0 < each.to_result < each.to_end
