"""Panels of the picture, pixel by pixel."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from fake_tokenizer import FakeTokenizer

from schemas.records import TokenSequence
from tatok.picture import (
    HEAT,
    PictureRow,
    draw_picture,
    entropy_range,
    heat_colours,
    heat_map,
    kept_patches,
    side_by_side,
)


@pytest.fixture
def original() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (3, 64, 96), dtype=np.uint8)


@pytest.fixture
def sequence(original: np.ndarray) -> TokenSequence:
    return FakeTokenizer().encode(torch.from_numpy(original)[None])[0]


def test_heat_goes_from_dark_to_light_and_grey_is_unknown() -> None:
    colours = heat_colours(np.array([2.0, 4.0, 1.0, 9.0, np.nan, np.inf]), 2, 4)
    np.testing.assert_array_equal(colours[0], HEAT[0])
    np.testing.assert_array_equal(colours[1], HEAT[-1])
    np.testing.assert_array_equal(colours[2:4], colours[:2])
    assert len(set(colours[4])) == 2
    np.testing.assert_array_equal(colours[4], colours[5])
    brightness = heat_colours(np.linspace(0, 1, 20), 0, 1).astype(int) @ [299, 587, 114]
    assert (np.diff(brightness) > 0).all()  # so that it reads in grey
    assert heat_colours(np.full((2, 3), 5.0), 5, 5).shape == (2, 3, 3)


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


def test_the_scale_spans_all_images(sequence: TokenSequence) -> None:
    def with_entropies(values: np.ndarray) -> TokenSequence:
        return replace(sequence, entropy=replace(sequence.entropy, patch_entropy_bits_N=values.astype(np.float32)))

    low, unknown = with_entropies(np.linspace(1, 2, 24)), with_entropies(np.full(24, np.nan))
    assert entropy_range([low, with_entropies(np.linspace(3, 7, 24)), unknown]) == (1, 7)
    assert entropy_range([unknown]) is None
    assert entropy_range([]) is None
    assert heat_map(low, 1, 7).shape == (4, 6, 3)
    image = draw_picture([PictureRow(title="t", original="gone", rebuilt="none", sequence=unknown)])
    assert image.width == 4 * 288 + 5 * 12  # enlarged to at least 256 by a whole factor


def test_a_line_of_four_panels(original: np.ndarray, sequence: TokenSequence) -> None:
    row = PictureRow(
        title="key", original=original, rebuilt=original[:, ::-1], sequence=sequence, lines=("one", "x" * 999)
    )
    picture = np.asarray(draw_picture([row, replace(row, original="the source is gone")]))
    height, width = 64 * 3, 96 * 3
    assert picture.shape == (26 + 2 * (26 + 2 * 20 + height + 12), 4 * width + 5 * 12, 3)
    top = 26 + 26 + 2 * 20
    first, last = picture[top : top + height, 12 : 12 + width], picture[top : top + height, -12 - width : -12]
    np.testing.assert_array_equal(first[1::3, 1::3], original.transpose(1, 2, 0))
    np.testing.assert_array_equal(last, first[::-1])


def test_panels_of_a_frame_side_by_side(original: np.ndarray, sequence: TokenSequence) -> None:
    rebuilt = 255 - original
    picture = side_by_side(original, sequence, rebuilt)
    assert picture.shape == (3 * 64, 3 * 3 * 96, 3)  # to at least 256 pixels, by a whole factor
    left, middle, right = np.split(picture[1::3, 1::3], 3, axis=1)
    np.testing.assert_array_equal(left, original.transpose(1, 2, 0))
    np.testing.assert_array_equal(middle, kept_patches(original, sequence))
    np.testing.assert_array_equal(right, rebuilt.transpose(1, 2, 0))
    lost = side_by_side("gone", sequence, rebuilt)
    assert lost.shape == (3 * 64, 2 * 3 * 96, 3)
    np.testing.assert_array_equal(lost[1::3, 1::3][:, 96:], right)
