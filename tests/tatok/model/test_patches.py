"""The texture bits of patches, against a plain sum, and what they tell apart."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from tatok.model.patches import texture_bits, to_patches


def plainly(patch_AVV: np.ndarray) -> float:
    """The definition, coefficient by coefficient."""
    channels, side, _ = patch_AVV.shape
    places = np.arange(side)
    waves = [np.cos(math.pi * (2 * places + 1) * u / (2 * side)) * math.sqrt((2 if u else 1) / side) for u in places]
    total = 0.0
    for channel in patch_AVV:
        for down in waves:
            for across in waves:
                coefficient = float(down @ channel @ across)
                total += max(0.0, math.log2(abs(coefficient) / 0.1)) if coefficient else 0.0
    return total / (channels * side * side)


@pytest.mark.parametrize(("channels", "side"), [(3, 16), (3, 4), (1, 8)])
def test_bits_are_those_of_the_definition(channels: int, side: int) -> None:
    random = np.random.default_rng(0)
    canvas = random.normal(0, 0.3, (2, channels, 2 * side, side))
    found = texture_bits(to_patches(torch.from_numpy(canvas), side), side)
    assert found.shape == (2, 2)
    assert found.dtype is torch.float32
    for image in range(2):
        for number in range(2):
            expected = plainly(canvas[image, :, number * side : (number + 1) * side])
            assert float(found[image, number]) == pytest.approx(expected, rel=1e-4)


def of_picture(picture_3HW: Tensor) -> float:
    return float(texture_bits(to_patches(picture_3HW[None], 16), 16).mean())


def test_smooth_pictures_have_few_bits_whatever_their_contrast_and_noise_many() -> None:
    ramp = torch.linspace(-1, 1, 32).expand(3, 32, 32)
    noise = torch.randn(3, 32, 32, generator=torch.Generator().manual_seed(0))
    assert of_picture(torch.zeros(3, 32, 32)) == 0
    faint = 0.25 * noise  # of less energy than the ramp
    assert faint.square().mean() < ramp.square().mean() / 4
    assert 0 < of_picture(ramp) < 0.1 < 0.8 < of_picture(faint) < of_picture(noise)
    assert of_picture(0.05 * noise) < 0.1  # a sensor's
