"""A clip's frames, with their times -> an animated WebP, which browsers and picture viewers play."""

from __future__ import annotations

import io
from collections.abc import Sequence

import numpy as np
from PIL import Image

__all__ = ["animated_webp"]

_FRAME_MS = 125
"""How long a frame is shown where nobody knows."""
_SHORTEST_MS, _LONGEST_MS = 20, 1000  # browsers show frames that claim less than 20 ms for longer
_QUALITY = 85


def animated_webp(frames_HW3: Sequence[np.ndarray], pts_s: Sequence[float] | None) -> bytes:
    """Frames, uint8 [H, W, 3] of one size, shown at the times `pts_s` in seconds, over and over.

    The last one is shown for as long as the one before it, none for longer than a second: a few frames may stand for an
    hour. Frames that equal the one before may be joined with it.
    """
    buffer = io.BytesIO()
    first, *others = (Image.fromarray(np.ascontiguousarray(frame)) for frame in frames_HW3)
    first.save(
        buffer,
        "WEBP",
        save_all=True,
        append_images=others,
        duration=_durations_ms(len(frames_HW3), pts_s),
        loop=0,
        quality=_QUALITY,
        method=4,
    )
    return buffer.getvalue()


def _durations_ms(num_frames: int, pts_s: Sequence[float] | None) -> list[int]:
    if pts_s is None or len(pts_s) != num_frames or num_frames < 2:
        return [_FRAME_MS] * num_frames
    steps = np.diff(np.round(1000 * np.asarray(pts_s))).astype(int).clip(_SHORTEST_MS, _LONGEST_MS).tolist()
    return [*steps, steps[-1]]
