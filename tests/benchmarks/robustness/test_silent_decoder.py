"""The tiny twin of `make bench-silent-decoder`."""

from __future__ import annotations

import random

import pytest

from benchmarks.robustness.damage import KINDS, decode
from benchmarks.robustness.damage import outcome as with_its_word
from benchmarks.robustness.silent_decoder import decode_silently, measure, outcome
from tests.support.synthetic_videos import noise, video_bytes


def test_without_damage_a_silent_decoder_gives_the_same_frames() -> None:
    video = video_bytes(20, pictures=noise(20))
    assert decode_silently(video) == decode(video)


def test_what_only_the_decoder_knows_passes_and_a_missing_end_does_not() -> None:
    video = video_bytes(20, pictures=noise(20))
    good, _ = decode(video)
    generator = random.Random(0)
    copies = [KINDS["64 bytes overwritten"](video, generator) for _ in range(12)]
    told = [outcome(copy, good) for copy in copies if with_its_word(copy, good) == "told"]
    assert "unseen" in told
    assert outcome(video[:-40], good) != "unseen"
    assert outcome(video, good) == "no frame changed"
    assert outcome(b"no video", good) == "reported"


def test_every_copy_that_is_reported_has_an_outcome() -> None:
    video = video_bytes(20, pictures=noise(20))
    (report,) = measure({"a.mp4": video}, {"one bit flipped": 8, "cut short": 3})
    assert (report.video, report.num_frames) == ("a.mp4", 20)
    assert report.decode_s > 0
    assert set(report.outcomes) == {"one bit flipped", "cut short"}
    assert 1 <= sum(report.outcomes["one bit flipped"].values()) <= 8
    assert report.outcomes["cut short"].get("unseen", 0) == 0
    with pytest.raises(ValueError, match=r"b\.mp4 is decoded otherwise"):
        measure({"b.mp4": video[:-40]}, {})
