"""Frames that stand for a clip, sheets of them, and moving pictures."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image

from tatok.animation import animated_webp
from tatok.shown_frames import frame_sheet, spread_frames


@pytest.mark.parametrize(
    ("num_frames", "most", "expected"),
    [(1, 4, [0]), (16, 1, [0]), (16, 4, [0, 5, 10, 15]), (3, 6, [0, 1, 2]), (16, 16, list(range(16)))],
)
def test_frames_are_spread_from_the_first_to_the_last(num_frames: int, most: int, expected: list[int]) -> None:
    assert spread_frames(num_frames, most) == expected


def test_a_sheet_has_two_frames_in_a_row() -> None:
    pictures = [np.full((32, 48, 3), shade, np.uint8) for shade in (0, 50, 100)]
    assert frame_sheet(pictures[:1]) is pictures[0]
    sheet = frame_sheet(pictures)
    assert sheet.shape == (65, 97, 3)
    assert [int(sheet[y, x, 0]) for y, x in ((0, 0), (0, 96), (64, 0), (64, 96))] == [0, 50, 100, 226]


def test_frames_last_until_the_next_one() -> None:
    frames = [np.full((16, 16, 3), 60 * number, np.uint8) for number in range(3)]
    durations = []
    with Image.open(io.BytesIO(animated_webp(frames, (0.0, 0.1, 0.35)))) as picture:
        for number in range(picture.n_frames):
            picture.seek(number)
            picture.load()
            durations.append(picture.info["duration"])
    assert durations == [100, 250, 250]
    with Image.open(io.BytesIO(animated_webp(frames, None))) as picture:
        picture.load()
        assert picture.info["duration"] == 125
