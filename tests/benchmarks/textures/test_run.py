"""The bench of what gets tokens, small: the bundled checkpoint on the demo's photos."""

from __future__ import annotations

import pytest
import torch

from benchmarks.textures.crops import NUM_CROPS, SIDE, crops_by_kind
from benchmarks.textures.run import measured, table
from tatok import Tokenizer
from tatok.evaluation.calibration import EncodedPhotos
from tests.support.real_data import demo_photos


def skies(num: int) -> list[torch.Tensor]:
    """Photos of 160x200 whose upper half is blue, each a little rougher than the one before."""
    generator = torch.Generator().manual_seed(0)
    photos = torch.full((num, 3, 160, 200), 60, dtype=torch.uint8)
    for number, photo in enumerate(photos):
        grain = (2 + number) * torch.randn(3, 128, 200, generator=generator)
        photo[:, :128] = (torch.tensor([100.0, 140.0, 200.0])[:, None, None] + grain).clamp(0, 255).byte()
    return list(photos)


def test_the_limit_decides_what_is_kept_for_its_texture() -> None:
    tokenizer = Tokenizer.load(device="cpu").with_dtf(texture_bits=0.8)
    photos = EncodedPhotos(tokenizer, demo_photos(128)[:3])
    crops = {kind: found[:2] for kind, found in crops_by_kind(skies(12)).items() if kind in ("flat", "noise of 64")}
    rows = measured(tokenizer, photos, crops, tokens=40, limits=(0.0, 0.8))
    without, limited = (row.kept["noise of 64"] for row in rows)
    assert without < 2 < limited == 64
    assert [row.kept["flat"] for row in rows] == [0, 0]
    assert all(0 < row.psnr_db < 60 for row in rows)
    lines = table(rows, 3, 40).splitlines()
    assert lines[2].startswith("| limit | threshold | flat | noise of 64 | PSNR")
    assert lines[4].startswith("| none |")
    assert lines[5].startswith("| 0.8 |")


def test_crops_are_of_each_kind_and_the_same_each_time() -> None:
    photos = skies(12)
    crops, again = crops_by_kind(photos), crops_by_kind(photos)
    assert {kind: len(found) for kind, found in crops.items() if kind != "photos"} == dict.fromkeys(
        ("flat", "sky", "grass", "gravel", "brick", "noise of 16", "noise of 32", "noise of 64"), NUM_CROPS
    )
    for kind, found in crops.items():
        assert all(crop.shape == (3, SIDE, SIDE) and crop.dtype is torch.uint8 for crop in found)
        assert torch.equal(torch.stack(found), torch.stack(again[kind]))
    roughness = [float(crop.double().std((1, 2)).mean()) for crop in crops["sky"]]
    assert roughness == sorted(roughness)
    assert roughness[-1] < 13  # the two roughest of twelve are left out
    with pytest.raises(ValueError, match="9 of 9 photos show sky; 10 are needed"):
        crops_by_kind(skies(9))
