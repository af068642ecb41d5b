"""A video's bytes -> the clips that are tokenized, as they are decoded."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import IO

import numpy as np

from tatok.pipeline.images.crops import ViewPlan, planned_views
from tatok.pipeline.images.decode import View, view_pixels
from tatok.pipeline.video.reader import VideoInfo, VideoReader
from tatok.pipeline.video.sampling import TakenClip, sample_clips, sampled_fps
from tatok.schemas.errors import DecodeError
from tatok.schemas.job import Limits, Preprocessing
from tatok.schemas.preprocessing import Video

__all__ = ["PreparedViews", "VideoView", "damage_named", "decode_video"]


@dataclass(frozen=True, slots=True, kw_only=True)
class VideoView:
    """One clip, or one crop of it: `view.pixels` is uint8 [T, 3, H, W] and `view.frame_pts_s` has T time stamps."""

    view: View
    fps: float | None


def decode_video(
    source: bytes | IO[bytes], preprocessing: Preprocessing, video: Video, limits: Limits, *, sample_id: str
) -> Iterator[VideoView]:
    """Decode, sample, crop and resize, one clip in memory at a time; each clip gives its crops one after the other.

    Crops and flips are chosen once a video, so that clips that overlap show the same picture.

    Raises DecodeError and nothing else because of the bytes, after the clips that are good: what the readers raise
    (VideoDamage, "not_a_video", "too_many_pixels", ...), "no_duration", "too_elongated", "too_short" for a video
    without a whole clip, "out_of_memory", "decoder_error".
    """
    with damage_named(), _open(source, video, limits) as reader:
        prepare, num_clips = PreparedViews(preprocessing, sample_id), 0
        for clip in sample_clips(reader.frames(), video, reader.info, prepare):
            num_clips += 1
            yield from prepare.views(clip, sampled_fps(video, reader.info))
        if num_clips == 0:
            raise DecodeError("too_short", _too_short(video, reader.info))


class PreparedViews:
    """Frame -> the pixels of each of its views; what is cropped follows from the first frame's size."""

    def __init__(self, preprocessing: Preprocessing, sample_id: str) -> None:
        self._plans: list[ViewPlan] = []
        self._width = self._height = 0
        self._preprocessing = preprocessing
        self._sample_id = sample_id

    def __call__(self, rgb_HWC: np.ndarray) -> list[np.ndarray]:
        """Of a frame, uint8 [H, W, 3]: the pixels of each view. Raises DecodeError("too_elongated")."""
        if not self._plans:
            self._height, self._width = rgb_HWC.shape[:2]
            self._plans = planned_views(self._width, self._height, self._preprocessing, self._sample_id)
        return [view_pixels(rgb_HWC, plan, self._preprocessing) for plan in self._plans]

    def views(self, clip: TakenClip[list[np.ndarray]], fps: float | None) -> Iterator[VideoView]:
        """A clip of frames that were prepared by this, as it is, or each crop of it after the other."""
        for number, plan in enumerate(self._plans):
            view = View(
                pixels=np.concatenate([frame.prepared[number] for frame in clip.frames]),
                width=self._width,
                height=self._height,
                crop=plan.crop,
                flipped=plan.flipped,
                frame_pts_s=tuple(frame.pts_s for frame in clip.frames),
            )
            yield VideoView(view=view, fps=fps)


def _open(source: bytes | IO[bytes], video: Video, limits: Limits) -> VideoReader:
    strict = video.integrity == "strict"
    if video.decoder == "decord":
        from tatok.pipeline.video.decord import DecordReader

        return DecordReader(source, limits, strict=strict)
    from tatok.pipeline.video.pyav import PyAVReader

    return PyAVReader(source, limits, strict=strict)


@contextmanager
def damage_named() -> Iterator[None]:
    """Let nothing but DecodeError leave, whatever a decoder raises."""
    try:
        yield
    except DecodeError:
        raise
    except MemoryError:
        raise DecodeError("out_of_memory", "no memory to decode the video") from None
    except Exception as error:  # the boundary to hostile input: whatever a decoder raises is this sample's fault
        raise DecodeError("decoder_error", f"{type(error).__name__}: {error}") from error


def _too_short(video: Video, info: VideoInfo) -> str:
    length = "" if info.duration_s is None else f"of {info.duration_s:.3f} s "
    return (
        f"the video {length}has no whole clip of {video.frames_per_clip} frames; "
        "video.last_clip: keep takes what there is"
    )
