"""PNG sizes, rank correlation and quartiles."""

from __future__ import annotations

import io

import numpy as np
import pytest
import torch
from PIL import Image

from tatok.evaluation.complexity import png_bytes, quartiles, rank_correlation


def test_a_png_is_as_large_as_its_file_and_noise_larger_than_a_plain_image() -> None:
    noise = torch.randint(0, 256, (3, 32, 48), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    plain = torch.full((3, 32, 48), 90, dtype=torch.uint8)
    sizes = png_bytes([plain, noise])
    buffer = io.BytesIO()
    Image.fromarray(noise.permute(1, 2, 0).numpy()).save(buffer, "PNG")
    assert sizes[1] == len(buffer.getvalue()) > 10 * sizes[0]
    with Image.open(io.BytesIO(buffer.getvalue())) as image:
        assert np.array_equal(np.asarray(image), noise.permute(1, 2, 0).numpy())


def test_rank_correlation() -> None:
    assert rank_correlation([1, 2, 3], [10, 100, 1000]) == pytest.approx(1)
    assert rank_correlation([1, 2, 3], [3, 2, 1]) == pytest.approx(-1)
    assert rank_correlation([1, 2, 3, 4, 5], [5, 6, 7, 8, 7]) == pytest.approx(
        0.8207826816681233
    )  # ranks 1 2 3.5 5 3.5
    assert rank_correlation([7, 7, 7], [1, 2, 3]) is None
    assert rank_correlation([1], [1]) is None


def test_quartiles_are_by_size_and_cover_every_image() -> None:
    png = [50, 10, 40, 20, 30, 60, 70, 80, 90]
    found = quartiles(png, tokens=[p // 10 for p in png], psnr_db=[100.0 - p for p in png])
    assert [quartile.num_images for quartile in found] == [3, 2, 2, 2]
    assert [quartile.mean_png_bytes for quartile in found] == [20, 45, 65, 85]
    assert [quartile.mean_tokens for quartile in found] == [2, 4.5, 6.5, 8.5]
    assert [quartile.mean_psnr_db for quartile in found] == [80, 55, 35, 15]
    assert quartiles([1, 2, 3], [1, 2, 3], [1, 2, 3]) == ()
