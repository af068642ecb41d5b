"""Codes and their vectors; where the globals are anchored."""

from __future__ import annotations

import pytest
import torch

from tatok.model.patches import anchor_grid
from tatok.model.quantizer import VectorQuantizer


@pytest.mark.parametrize(("num_global", "grid"), [(16, (4, 4)), (8, (2, 4)), (32, (4, 8)), (1, (1, 1)), (7, (1, 7))])
def test_anchor_grid(num_global: int, grid: tuple[int, int]) -> None:
    assert anchor_grid(num_global) == grid


def test_codes_decode_to_the_quantized_vectors() -> None:
    torch.manual_seed(0)
    quantizer = VectorQuantizer(16, 4).eval()
    vectors = torch.randn(2, 5, 4, requires_grad=True)
    quantized = quantizer(vectors)
    assert torch.allclose(quantizer.decode(quantized.codes), quantized.vectors)
    quantized.vectors.sum().backward()
    assert torch.equal(vectors.grad, torch.ones_like(vectors))  # straight through


def test_dead_codes_are_moved_to_where_the_vectors_are() -> None:
    torch.manual_seed(0)
    data = torch.rand(200, 2)
    quantizer = VectorQuantizer(8, 2)
    quantizer.codebook_KC.fill_(100.0)  # far from every vector; one code wins all of them
    quantizer.ema_sum_KC.copy_(quantizer.codebook_KC)
    for _ in range(1500):
        quantizer(data)
    codes = quantizer.encode(data)
    assert len(codes.unique()) == 8
    assert 0 <= float(quantizer.codebook_KC.min()) <= float(quantizer.codebook_KC.max()) <= 1
