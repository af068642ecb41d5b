"""Heat maps: what they draw is what DTF ranked by, and what they outline is what it kept."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from tatok import Tokenizer
from tatok.model.dtf import DTFSettings
from tatok.report.heat import HEAT, HeatScale, heat_colours, heat_map, heat_scale, heat_values
from tatok.schemas.records import TokenSequence
from tatok.tokenizer.frames import split_frames
from tests.support.fake_tokenizer import FakeTokenizer
from tests.support.tiny_checkpoint import tiny_images, tiny_tokenizer

SETTINGS = [
    DTFSettings(criterion="distance", threshold_kind="distortion", threshold=0.5),
    DTFSettings(criterion="residual", threshold_kind="distortion", threshold=2.0),
    DTFSettings(criterion="content", threshold_kind="distortion", threshold=2.0),
    DTFSettings(criterion="entropy", threshold=100.0),
    DTFSettings(criterion="surprisal", threshold=150.0),
]


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    return tiny_tokenizer(tmp_path_factory.mktemp("tiny"))


@pytest.fixture
def sequence() -> TokenSequence:
    pixels = np.random.default_rng(0).integers(0, 256, (1, 3, 64, 96), dtype=np.uint8)
    return FakeTokenizer().encode(torch.from_numpy(pixels))[0]


def auc(values_N: np.ndarray, kept_N: np.ndarray) -> float:
    """The chance that a kept patch has a higher value than a dropped one; ties count half."""
    differences = values_N[kept_N][:, None] - values_N[~kept_N][None]
    return float(((differences > 0) + 0.5 * (differences == 0)).mean())


def kept_of(sequence: TokenSequence) -> np.ndarray:
    kept = np.zeros(sequence.grid.num_positions, bool)
    kept[sequence.positions.astype(int)] = True
    return kept


def with_bits(sequence: TokenSequence, entropy: np.ndarray, worth: np.ndarray | None) -> TokenSequence:
    entropy = entropy.astype(np.float32)
    return replace(sequence, entropy=replace(sequence.entropy, patch_entropy_bits_N=entropy, patch_worth_bits_N=worth))


@pytest.mark.parametrize("settings", SETTINGS, ids=lambda settings: settings.criterion)
def test_the_warm_patches_are_the_kept_ones(tiny: Tokenizer, settings: DTFSettings) -> None:
    """The chance that a kept patch is drawn warmer than a dropped one is 1, in memory and as stored."""
    sequences = tiny.with_dtf(settings).encode(tiny_images(8))
    scale = heat_scale(sequences, criterion=settings.criterion)
    assert scale is not None
    assert scale.kind == ("entropy" if settings.criterion == "entropy" else "worth")
    told = [sequence for sequence in sequences if 0 < sequence.num_patches < sequence.grid.num_positions]
    assert len(told) >= 4
    for sequence in told:
        drawn, kept = heat_values(sequence, scale.kind), kept_of(sequence)
        assert auc(drawn, kept) == 1
        centres = heat_map(sequence, scale, cell=8)[4::8, 4::8].reshape(-1, 3)
        np.testing.assert_array_equal(centres, heat_colours(drawn, scale.low, scale.high))
        if settings.threshold_kind == "distortion":
            np.testing.assert_array_equal(drawn.astype(np.float16) > 0, kept)


def test_the_warm_patches_of_frames_are_the_kept_ones(tiny: Tokenizer) -> None:
    clip = torch.stack([tiny_images(1, seed=2, side=48)[0, :, :32, 3 * t : 3 * t + 32] for t in range(5)])
    for criterion in ("distance", "residual"):
        settings = DTFSettings(criterion=criterion, threshold_kind="distortion", threshold=2.0)
        (sequence,) = tiny.with_dtf(settings).encode_clips(clip[None])
        frames = split_frames(sequence)
        assert len({frame.num_global for frame in frames}) > 1
        for frame in frames:
            assert frame.entropy.patch_worth_bits_N is not None
            np.testing.assert_array_equal(frame.entropy.patch_worth_bits_N > 0, kept_of(frame))


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


def test_the_scale_spans_all_images_and_tells_what_it_shows(sequence: TokenSequence) -> None:
    unknown = with_bits(sequence, np.full(24, np.nan), None)
    low, high = (with_bits(sequence, np.linspace(*ends, 24), None) for ends in ((1, 2), (3, 7)))
    worth = with_bits(sequence, np.linspace(3, 7, 24), np.linspace(0, 5, 24))
    scale = heat_scale([low, high, unknown])
    assert scale is not None
    assert (scale.kind, scale.low, scale.high) == ("entropy", 1, 7)
    assert "Worth is not stored (write.patch_worth)" in scale.explanation
    scale = heat_scale([low, worth])
    assert scale is not None
    assert (scale.kind, scale.low, scale.high) == ("worth", 0, 5)
    assert "above the threshold (outlined) are kept" in scale.explanation
    for changes in ({"criterion": "entropy"}, {"kind": "entropy"}):
        scale = heat_scale([low, worth], **changes)  # type: ignore[arg-type]
        assert scale is not None
        assert (scale.kind, scale.low, scale.high) == ("entropy", 1, 7)
        assert "not stored" not in scale.explanation
    assert heat_scale([low], kind="worth") is None
    assert heat_scale([unknown]) is None
    assert heat_scale([]) is None


def test_the_outline_is_the_border_of_the_kept_set(sequence: TokenSequence) -> None:
    """White within kept patches and black around them, along every side between the two and the picture's edge."""
    positions = np.array([0, 1, 7, 14])
    sequence = with_bits(replace(sequence, positions=positions), np.zeros(24), np.full(24, 0.5))
    scale = HeatScale(kind="worth", low=0, high=1, explanation="")
    cell = 8
    picture = heat_map(sequence, scale, cell)
    assert picture.shape == (4 * cell, 6 * cell, 3)
    fill = heat_colours(np.array([0.5]), 0, 1)[0]
    kept = kept_of(sequence).reshape(4, 6)
    padded = np.pad(kept, 1)
    for row in range(4):
        for column in range(6):
            patch = picture[cell * row : cell * (row + 1), cell * column : cell * (column + 1)]
            np.testing.assert_array_equal(patch[2:-2, 2:-2], np.broadcast_to(fill, (cell - 4, cell - 4, 3)))
            sides = {(0, 1): patch[0, 3], (2, 1): patch[-1, 3], (1, 0): patch[3, 0], (1, 2): patch[3, -1]}
            for (down, right), pixel in sides.items():
                place = (row + down, column + right)
                is_inside = 1 <= place[0] <= 4 and 1 <= place[1] <= 6
                if padded[place] == kept[row, column] or (not is_inside and not kept[row, column]):
                    wanted = fill
                else:
                    wanted = np.array([255] * 3 if kept[row, column] else [0] * 3)
                np.testing.assert_array_equal(pixel, wanted)
    np.testing.assert_array_equal(heat_map(sequence, scale, cell=1).reshape(-1, 3), np.tile(fill, (24, 1)))
