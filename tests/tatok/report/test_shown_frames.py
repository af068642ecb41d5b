"""The frames that stand for a clip, and the sheet that shows them."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from tatok.report.shown_frames import frame_sheet, shown_frames, spread_frames
from tatok.schemas.records import TokenSequence
from tatok.tokenizer.frames import join_frames
from tests.support.fake_tokenizer import FakeTokenizer


@pytest.fixture
def pixels_T3HW() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (5, 3, 64, 96), dtype=np.uint8)


@pytest.fixture
def clip(pixels_T3HW: np.ndarray) -> TokenSequence:
    return join_frames(FakeTokenizer().encode(torch.from_numpy(pixels_T3HW)))


@pytest.mark.parametrize(
    ("num_frames", "most", "frames"),
    [(8, 4, [0, 2, 5, 7]), (5, 3, [0, 2, 4]), (3, 6, [0, 1, 2]), (9, 1, [0]), (1, 4, [0]), (9, 2, [0, 8])],
)
def test_frames_are_spread_from_the_first_to_the_last(num_frames: int, most: int, frames: list[int]) -> None:
    assert spread_frames(num_frames, most) == frames


def test_each_frame_has_its_own_tokens_and_pixels(clip: TokenSequence, pixels_T3HW: np.ndarray) -> None:
    shown = shown_frames(clip, pixels_T3HW, 255 - pixels_T3HW, most=3)
    assert [frame.number for frame in shown] == [0, 2, 4]
    singles = FakeTokenizer().encode(torch.from_numpy(pixels_T3HW))
    for frame in shown:
        np.testing.assert_array_equal(frame.original, pixels_T3HW[frame.number])
        np.testing.assert_array_equal(frame.rebuilt, 255 - pixels_T3HW[frame.number])
        np.testing.assert_array_equal(frame.sequence.codes, singles[frame.number].codes)
        np.testing.assert_array_equal(frame.sequence.positions, singles[frame.number].positions)


def test_what_is_missing_says_why_in_every_frame(clip: TokenSequence, pixels_T3HW: np.ndarray) -> None:
    shown = shown_frames(clip, "gone", "other weights", most=2)
    assert [(frame.original, frame.rebuilt) for frame in shown] == [("gone", "other weights")] * 2
    [first, _] = shown_frames(clip, pixels_T3HW[:4], pixels_T3HW, most=2)
    assert first.original == "no original: the source has 4 frames now, the tokens 5"
    with pytest.raises(ValueError, match="without global_frames"):
        shown_frames(replace(clip, global_frames=None), "gone", "gone", most=2)


def test_a_sheet_has_two_in_a_row_and_a_thin_gap() -> None:
    pictures = [np.full((64, 96, 3), grey, np.uint8) for grey in (10, 20, 30)]
    sheet = frame_sheet(pictures)
    assert sheet.shape == (64 + 2 + 64, 96 + 2 + 96, 3)
    assert (sheet[:64, :96] == 10).all()
    assert (sheet[:64, 98:] == 20).all()
    assert (sheet[66:, :96] == 30).all()
    assert (sheet[64:66] == 226).all()
    assert (sheet[66:, 96:] == 226).all()
    assert frame_sheet(pictures[:1]) is pictures[0]


def test_tiny_pictures_are_enlarged_so_that_the_gap_stays_thin() -> None:
    tiny = np.arange(8 * 8 * 3, dtype=np.uint8).reshape(8, 8, 3)
    sheet = frame_sheet([tiny, tiny])
    assert sheet.shape == (32, 65, 3)
    np.testing.assert_array_equal(sheet[1::4, 34::4], tiny)
