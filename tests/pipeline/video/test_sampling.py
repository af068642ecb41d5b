"""Which frames become which clip; frames are made up, their stamps are what counts."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import pytest
from pydantic import ValidationError

from tatok.pipeline.video.reader import Frame, VideoDamage, VideoInfo
from tatok.pipeline.video.sampling import sample_clips, sampled_fps
from tatok.schemas.errors import DecodeError
from tatok.schemas.preprocessing import Video


def info(fps: float | None = 10.0, duration_s: float | None = 4.0) -> VideoInfo:
    return VideoInfo(width=8, height=8, codec="h264", average_fps=fps, duration_s=duration_s, num_frames=None)


def frames(stamps_s: Sequence[float], greys: Sequence[int] | None = None) -> Iterator[Frame]:
    for number, pts_s in enumerate(stamps_s):
        pixels = np.full((8, 8, 3), 0 if greys is None else greys[number], dtype=np.uint8)
        yield Frame(pts_s=pts_s, rgb=lambda pixels=pixels: pixels, thumbnail=lambda pixels=pixels: pixels[..., 0])


def taken(stamps_s: Sequence[float], video: Video, greys: Sequence[int] | None = None) -> list[list[float]]:
    clips = sample_clips(frames(stamps_s, greys), video, info(), prepare=lambda rgb_HWC: rgb_HWC.shape)
    return [[round(frame.pts_s, 3) for frame in clip.frames] for clip in clips]


EVEN = [i / 10 for i in range(20)]


def test_by_default_every_frame_is_taken_and_the_incomplete_clip_dropped() -> None:
    assert taken(EVEN, Video(frames_per_clip=8)) == [EVEN[:8], EVEN[8:16]]


def test_the_last_clip_may_be_kept() -> None:
    assert taken(EVEN, Video(frames_per_clip=8, last_clip="keep")) == [EVEN[:8], EVEN[8:16], EVEN[16:]]
    assert taken(EVEN[:3], Video(frames_per_clip=8, last_clip="keep")) == [EVEN[:3]]


def test_stride_takes_every_nth_frame() -> None:
    assert taken(EVEN, Video(frames_per_clip=3, stride=3)) == [[0, 0.3, 0.6], [0.9, 1.2, 1.5]]


def test_clips_overlap_and_an_overlap_alone_is_no_clip() -> None:
    clips = taken(EVEN[:8], Video(frames_per_clip=4, overlap_frames=2, last_clip="keep"))
    assert clips == [EVEN[0:4], EVEN[2:6], EVEN[4:8]]
    clips = taken(EVEN[:9], Video(frames_per_clip=4, overlap_frames=2, last_clip="keep"))
    assert clips[-1] == EVEN[6:9]


def test_fps_follows_the_stamps_not_the_count() -> None:
    """Ticks at 0, 0.25, 0.5, ...: the first frame at or after each; a gap repeats nothing."""
    stamps_s = [0.0, 0.1, 0.2, 0.3, 0.5, 0.51, 0.52, 1.6, 1.7, 1.75]
    assert taken(stamps_s, Video(frames_per_clip=5, fps=4)) == [[0.0, 0.3, 0.5, 1.6, 1.75]]


def test_the_videos_own_rate_takes_every_frame_once_whatever_the_rounding() -> None:
    rounded_s = [round(i / 29.97, 3) for i in range(300)]  # as Matroska keeps them
    assert sum(map(len, taken(rounded_s, Video(frames_per_clip=1, fps=29.97)))) == 300
    assert sum(map(len, taken(EVEN, Video(frames_per_clip=1, fps=240)))) == len(EVEN)


def test_frames_spread_over_a_clip_of_given_length() -> None:
    assert taken(EVEN, Video(frames_per_clip=2, clip_s=1.0)) == [[0, 0.5], [1.0, 1.5]]


def test_frames_spread_over_the_whole_video() -> None:
    stamps_s = [i / 10 for i in range(45)]  # longer than the container says
    assert taken(stamps_s, Video(frames_per_clip=4, clip_s="whole")) == [[0, 1.0, 2.0, 3.0]]


def test_the_whole_of_a_video_without_duration_is_refused() -> None:
    with pytest.raises(DecodeError) as error:
        list(sample_clips(frames(EVEN), Video(clip_s="whole"), info(duration_s=None), prepare=np.shape))
    assert error.value.reason == "no_duration"


def test_no_clip_spans_a_cut() -> None:
    greys = [10] * 7 + [200] * 13
    assert taken(EVEN, Video(frames_per_clip=5, scene_cuts=True), greys) == [EVEN[:5], EVEN[7:12], EVEN[12:17]]
    kept = taken(EVEN, Video(frames_per_clip=5, scene_cuts=True, last_clip="keep"), greys)
    assert kept == [EVEN[:5], EVEN[5:7], EVEN[7:12], EVEN[12:17], EVEN[17:]]
    assert taken(EVEN, Video(frames_per_clip=5), greys)[1] == EVEN[5:10]
    assert taken(EVEN, Video(frames_per_clip=5, scene_cuts=True, scene_cut_threshold=191), greys)[1] == EVEN[5:10]


def test_ticks_begin_anew_at_a_cut() -> None:
    greys = [10] * 7 + [200] * 13
    assert taken(EVEN, Video(frames_per_clip=2, fps=2, scene_cuts=True), greys) == [[0, 0.5], [0.7, 1.2]]


def test_damage_ends_the_clips_without_the_broken_one() -> None:
    def damaged() -> Iterator[Frame]:
        yield from frames(EVEN[:6])
        raise VideoDamage("corrupt", "test", 0.6)

    clips = sample_clips(damaged(), Video(frames_per_clip=4, last_clip="keep"), info(), prepare=np.shape)
    assert [frame.pts_s for frame in next(clips).frames] == EVEN[:4]
    with pytest.raises(VideoDamage):
        next(clips)


def test_small_steps_back_are_held_and_large_ones_are_damage() -> None:
    assert taken([0, 0.1, 0.3, 0.2], Video(frames_per_clip=4)) == [[0, 0.1, 0.3, 0.3]]
    with pytest.raises(VideoDamage, match="go back"):
        taken([0, 0.1, 5.0, 0.2], Video(frames_per_clip=4))


def test_pictures_are_asked_for_only_where_frames_are_taken() -> None:
    asked = []

    def counted() -> Iterator[Frame]:
        for frame in frames(EVEN):
            yield Frame(pts_s=frame.pts_s, rgb=lambda f=frame: asked.append(f.pts_s) or f.rgb(), thumbnail=frame.rgb)

    list(sample_clips(counted(), Video(frames_per_clip=2, stride=5), info(), prepare=np.shape))
    assert asked == [0, 0.5, 1.0, 1.5]


def test_the_rate_is_told() -> None:
    assert sampled_fps(Video(fps=4), info()) == 4
    assert sampled_fps(Video(stride=2), info()) == 5
    assert sampled_fps(Video(frames_per_clip=8, clip_s="whole"), info()) == 2
    assert sampled_fps(Video(), info(fps=None)) is None


@pytest.mark.parametrize(
    "settings", [{"fps": 2, "stride": 2}, {"clip_s": 1.0, "fps": 2}, {"overlap_frames": 16}, {"clip_s": 0.0}]
)
def test_contradictions_are_errors(settings: dict[str, float]) -> None:
    with pytest.raises(ValidationError):
        Video.model_validate(settings)
