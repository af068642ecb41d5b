"""Frames in display order -> clips: which frames are taken, where a clip ends, scene cuts respected on demand."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Generic, TypeVar

import numpy as np

from tatok.pipeline.video.reader import Frame, VideoDamage, VideoInfo
from tatok.schemas.errors import DecodeError
from tatok.schemas.preprocessing import Video

__all__ = ["TakenClip", "TakenFrame", "sample_clips", "sampled_fps"]

_EARLY_S = 0.001  # containers that count milliseconds round a stamp by half of one
_STEP_BACK_S = 0.25

Prepared = TypeVar("Prepared")


@dataclass(frozen=True, slots=True, kw_only=True)
class TakenFrame(Generic[Prepared]):
    """A frame that belongs to a clip, prepared as the caller wished."""

    pts_s: float
    prepared: Prepared


@dataclass(frozen=True, slots=True, kw_only=True)
class TakenClip(Generic[Prepared]):
    """The frames of one clip in display order; fewer than wanted only at the end of a video or scene."""

    frames: tuple[TakenFrame[Prepared], ...]


def sampled_fps(video: Video, info: VideoInfo) -> float | None:
    """The rate at which frames are taken, as far as it is known before they are decoded."""
    period_s = _period_s(video, info)
    if period_s is not None:
        return 1 / period_s
    return None if info.average_fps is None else info.average_fps / video.stride


def sample_clips(
    frames: Iterable[Frame], video: Video, info: VideoInfo, prepare: Callable[[np.ndarray], Prepared]
) -> Iterator[TakenClip[Prepared]]:
    """Take frames and join them to clips, one clip in memory at a time.

    By time (fps, clip_s), the first frame at or after each tick is taken; a frame is taken once even where ticks are
    denser than frames. Ticks, strides and clips begin anew at the first frame and at each cut. `prepare` gets the
    taken frames alone, uint8 [H, W, 3].

    Raises DecodeError("no_duration") if `clip_s` is "whole" and the container gives no duration. VideoDamage of
    `frames` passes through: the clips that were complete before it have been yielded, the broken one has not.
    """
    period_s = _period_s(video, info)
    taken: list[TakenFrame[Prepared]] = []
    is_new = False  # whether `taken` holds frames that no clip had yet
    scene_start_s, num_in_scene, num_ticks = 0.0, 0, 0
    before: np.ndarray | None = None
    pts_s = -float("inf")
    for frame in frames:
        if frame.pts_s < pts_s - _STEP_BACK_S:
            raise VideoDamage("corrupt", f"the time stamps go back to {frame.pts_s:.3f} s", pts_s)
        # Files without composition times make FFmpeg guess, and its guesses may step back by a frame or two.
        pts_s = max(pts_s, frame.pts_s)
        is_cut = num_in_scene == 0
        if video.scene_cuts:
            thumbnail = frame.thumbnail().astype(np.int16)
            if before is not None and np.abs(thumbnail - before).mean() > video.scene_cut_threshold:
                is_cut = True
            before = thumbnail
        if is_cut:
            if is_new and video.last_clip == "keep":
                yield TakenClip(frames=tuple(taken))
            taken, is_new = [], False
            scene_start_s, num_in_scene, num_ticks = pts_s, 0, 0
        if period_s is None:
            wanted = num_in_scene % video.stride == 0
        else:
            wanted = pts_s >= scene_start_s + num_ticks * period_s - _EARLY_S
            if wanted:
                num_ticks = int((pts_s - scene_start_s + _EARLY_S) / period_s) + 1
        num_in_scene += 1
        if wanted:
            taken.append(TakenFrame(pts_s=pts_s, prepared=prepare(frame.rgb())))
            is_new = True
            if len(taken) == video.frames_per_clip:
                yield TakenClip(frames=tuple(taken))
                taken, is_new = taken[video.frames_per_clip - video.overlap_frames :], False
                if video.clip_s == "whole":
                    # Frames after the declared end are of no further clip, but must still be found undamaged.
                    period_s = float("inf")
    if is_new and video.last_clip == "keep":
        yield TakenClip(frames=tuple(taken))


def _period_s(video: Video, info: VideoInfo) -> float | None:
    if video.fps is not None:
        return 1 / video.fps
    if video.clip_s is None:
        return None
    clip_s = info.duration_s if video.clip_s == "whole" else video.clip_s
    if not clip_s or clip_s <= 0:
        raise DecodeError("no_duration", "the container gives no duration to spread frames over; set video.fps")
    return clip_s / video.frames_per_clip
