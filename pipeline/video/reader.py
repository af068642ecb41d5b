"""What every video decoder offers: a video's facts, and its frames in display order until the first damage."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Protocol, Self

import numpy as np

from tatok.schemas.errors import DecodeError
from tatok.schemas.job import Limits

__all__ = ["THUMBNAIL_HW", "Frame", "VideoDamage", "VideoInfo", "VideoReader", "check_size"]

THUMBNAIL_HW = (18, 32)
"""Height and width of a frame's thumbnail, whatever the frame's own shape."""


@dataclass(frozen=True, slots=True, kw_only=True)
class VideoInfo:
    """What a container says of its video; none of it has been checked.

    `width` and `height` are as stored, before any rotation; `num_frames` is None where the container keeps no count.
    """

    width: int
    height: int
    codec: str
    average_fps: float | None
    duration_s: float | None
    num_frames: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Frame:
    """One decoded frame; its pixels are converted when they are asked for, so that frames left out cost nothing.

    `pts_s` is the container's time stamp in seconds. `rgb` gives uint8 [H, W, 3], upright; `thumbnail` gives
    uint8 [18, 32], grey, as stored. Both may be called until the next frame is asked for, and later.
    """

    pts_s: float
    rgb: Callable[[], np.ndarray]
    thumbnail: Callable[[], np.ndarray]


class VideoDamage(DecodeError):
    """From `at_s` on, in the container's time, a video cannot be trusted; the frames before it are good."""

    def __init__(self, reason: str, detail: str, at_s: float) -> None:
        super().__init__(reason, f"{detail}, from {at_s:.3f} s on")
        self.at_s = at_s


class VideoReader(Protocol):
    """One open video; use as a context manager."""

    @property
    def info(self) -> VideoInfo:
        """What the container says."""

    def frames(self) -> Iterator[Frame]:
        """Every frame in display order; may be called once.

        Raises VideoDamage after the last good frame, if the video does not continue well until its end.
        """

    def __enter__(self) -> Self: ...

    def __exit__(self, *_: object) -> None: ...


def check_size(width: int, height: int, limits: Limits) -> None:
    """Raise DecodeError ("too_many_pixels", "too_small") where frames of this size are not to be decoded."""
    if width * height > limits.max_pixels:
        raise DecodeError(
            "too_many_pixels", f"{width} x {height} pixels; at most {limits.max_pixels} (limits.max_pixels)"
        )
    if min(width, height) < limits.min_side:
        raise DecodeError(
            "too_small", f"{width} x {height} pixels; a side has at least {limits.min_side} (limits.min_side)"
        )
