"""The tiny twin of `make bench-damage`."""

from __future__ import annotations

import pytest

from benchmarks.robustness.damage import KINDS, decode, measure, outcome
from tatok.schemas.errors import DecodeError
from tests.support.synthetic_videos import noise, video_bytes


def test_every_copy_has_an_outcome_and_none_is_spoilt() -> None:
    video = video_bytes(20, pictures=noise(20))
    reports = measure({"a.mp4": video}, {"one bit flipped": 12, "64 bytes overwritten": 6, "cut short": 6})
    assert [report.kind for report in reports] == list(KINDS)
    for report in reports:
        assert sum(report.outcomes.values()) == report.num_copies
        assert (report.video, report.codec, report.num_frames) == ("a.mp4", "h264", 20)
        assert "spoilt" not in report.outcomes
    flips, _, cuts = reports
    assert flips.outcomes["told"] >= 4
    assert cuts.outcomes["told"] >= 5  # the smallest of cuts may leave no container


def test_outcomes_are_told_apart() -> None:
    video = video_bytes(8, pictures=noise(8))
    good, _ = decode(video)
    assert outcome(video, good) == "harmless"
    assert outcome(video, good[:-1]) == "unseen"
    assert outcome(video[:-40], good) == "told"
    assert outcome(video[:-40], [(-1.0, 0), *good]) == "spoilt"
    assert outcome(b"no video", good) == "told without a second"


def test_a_video_that_is_damaged_already_is_refused() -> None:
    with pytest.raises(ValueError, match=r"b\.mp4 is damaged before anything was done to it"):
        measure({"b.mp4": video_bytes(8, pictures=noise(8))[:-40]}, {})
    with pytest.raises(DecodeError):
        measure({"c.mp4": b"no video"}, {})
