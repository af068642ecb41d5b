"""Panels of the picture, pixel by pixel."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from tatok.report.heat import heat_map, heat_scale
from tatok.report.picture import PictureRow, draw_picture, kept_patches, side_by_side
from tatok.schemas.records import TokenSequence
from tests.support.fake_tokenizer import FakeTokenizer


@pytest.fixture
def original() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (3, 64, 96), dtype=np.uint8)


@pytest.fixture
def sequence(original: np.ndarray) -> TokenSequence:
    return FakeTokenizer().encode(torch.from_numpy(original)[None])[0]


def test_kept_patches_are_the_original_and_others_are_dark(original: np.ndarray, sequence: TokenSequence) -> None:
    picture = kept_patches(original, sequence)
    assert picture.shape == (64, 96, 3)
    pixels = original.transpose(1, 2, 0)
    for position in range(24):
        row, column = divmod(position, 6)
        patch = np.s_[16 * row : 16 * row + 16, 16 * column : 16 * column + 16]
        if position in sequence.positions:
            np.testing.assert_array_equal(picture[patch], pixels[patch])
        else:
            assert picture[patch].max() <= 64 + 35
    without = kept_patches(None, sequence, side=64)
    assert without.shape == (40, 60, 3)
    light = (without[5::10, 5::10].min(-1) > 200).ravel()
    np.testing.assert_array_equal(light.nonzero()[0], sequence.positions)


def test_a_picture_of_nothing_but_tokens(sequence: TokenSequence) -> None:
    unknown = np.full(24, np.nan, np.float32)
    entropy = replace(sequence.entropy, patch_entropy_bits_N=unknown, patch_worth_bits_N=None)
    row = PictureRow(title="t", original="gone", rebuilt="none", sequence=replace(sequence, entropy=entropy))
    assert draw_picture([row]).width == 4 * 288 + 5 * 12  # enlarged to at least 256 by a whole factor


def test_a_line_of_four_panels(original: np.ndarray, sequence: TokenSequence) -> None:
    row = PictureRow(
        title="key", original=original, rebuilt=original[:, ::-1], sequence=sequence, lines=("one", "x" * 999)
    )
    picture = np.asarray(draw_picture([row, replace(row, original="the source is gone")]))
    height, width = 64 * 3, 96 * 3
    assert picture.shape == (26 + 20 + 2 * (26 + 2 * 20 + height + 12), 4 * width + 5 * 12, 3)
    top = 26 + 20 + 26 + 2 * 20
    first, last = picture[top : top + height, 12 : 12 + width], picture[top : top + height, -12 - width : -12]
    np.testing.assert_array_equal(first[1::3, 1::3], original.transpose(1, 2, 0))
    np.testing.assert_array_equal(last, first[::-1])
    scale = heat_scale([sequence])
    assert scale is not None
    assert scale.kind == "worth"
    heat = picture[top : top + height, 12 + width + 12 :][:, :width]
    np.testing.assert_array_equal(heat, heat_map(sequence, scale, cell=48))


def test_panels_of_a_frame_side_by_side(original: np.ndarray, sequence: TokenSequence) -> None:
    rebuilt = 255 - original
    picture = side_by_side(original, sequence, rebuilt)
    assert picture.shape == (3 * 64, 3 * 3 * 96, 3)  # to at least 256 pixels, by a whole factor
    left, middle, right = np.split(picture[1::3, 1::3], 3, axis=1)
    np.testing.assert_array_equal(left, original.transpose(1, 2, 0))
    np.testing.assert_array_equal(middle, kept_patches(original, sequence))
    np.testing.assert_array_equal(right, rebuilt.transpose(1, 2, 0))
    scale = heat_scale([sequence], kind="entropy")
    with_heat = np.split(side_by_side(original, sequence, rebuilt, scale), 4, axis=1)
    np.testing.assert_array_equal(with_heat[1], heat_map(sequence, scale, cell=48))
    np.testing.assert_array_equal(np.hstack([with_heat[0], *with_heat[2:]]), picture)
    lost = side_by_side("gone", sequence, rebuilt)
    assert lost.shape == (3 * 64, 2 * 3 * 96, 3)
    np.testing.assert_array_equal(lost[1::3, 1::3][:, 96:], right)
