"""The tiny twin of `make bench-pieces`."""

from __future__ import annotations

import pytest

from benchmarks.robustness.pieces import WAYS, measure, outcome
from tatok.pipeline.video import pieces
from tatok.schemas.preprocessing import Video
from tests.support.synthetic_videos import noise, video_bytes


def moving() -> bytes:
    return video_bytes(260, pictures=([*noise(60), *reversed(noise(60))] * 3)[:260], g="20")


def test_every_copy_has_an_outcome_and_none_is_other() -> None:
    found = measure({"a.mp4": moving()}, 2 * len(WAYS))["a.mp4"]
    assert sum(found.values()) == 3 + 2 * len(WAYS)
    assert "OTHER" not in found
    assert found["equal"] >= 3
    assert found["a piece failed, equal before"] >= 1


def test_a_piece_that_says_other_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    settings = Video(frames_per_clip=8)
    assert outcome(moving(), settings) == "equal"
    intact = pieces._pieces
    monkeypatch.setattr(pieces, "_pieces", lambda *args: list(intact(*args))[:-1])
    assert outcome(moving(), settings) == "OTHER"
