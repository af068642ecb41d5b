"""Animated WebPs: which frames they hold, and for how long each is shown."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image, ImageSequence

from tatok.report.animation import animated_webp


def grey_frames(*greys: int) -> list[np.ndarray]:
    return [np.full((32, 48, 3), grey, np.uint8) for grey in greys]


def played(webp: bytes) -> tuple[list[int], list[int]]:
    """The grey of each frame, and for how many milliseconds it is shown."""
    greys, durations_ms = [], []
    with Image.open(io.BytesIO(webp)) as picture:
        assert picture.size == (48, 32)
        assert picture.info["loop"] == 0
        for frame in ImageSequence.Iterator(picture):
            greys.append(round(float(np.asarray(frame.convert("RGB")).mean())))
            durations_ms.append(frame.info["duration"])
    return greys, durations_ms


@pytest.mark.parametrize(
    ("pts_s", "durations_ms"),
    [
        ([3.0, 3.04, 3.1], [40, 60, 60]),
        ([0.0, 0.0, 900.0], [20, 1000, 1000]),
        (None, [125, 125, 125]),
        ([0.0, 0.5], [125, 125, 125]),
    ],
)
def test_frames_are_shown_at_their_times(pts_s: list[float] | None, durations_ms: list[int]) -> None:
    greys, found_ms = played(animated_webp(grey_frames(20, 120, 220), pts_s))
    np.testing.assert_allclose(greys, [20, 120, 220], atol=2)
    assert found_ms == durations_ms


def test_equal_frames_last_as_long_as_they_did() -> None:
    greys, durations_ms = played(animated_webp(grey_frames(20, 20, 220, 220), [0.0, 0.1, 0.2, 0.3]))
    np.testing.assert_allclose(greys, [20, 220], atol=2)
    assert durations_ms == [200, 200]
