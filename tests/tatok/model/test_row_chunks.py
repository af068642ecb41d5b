"""Rows some at a time: the same values as all at once."""

from __future__ import annotations

import pytest
import torch

from tatok.model import prior as prior_module
from tatok.model import row_chunks as row_chunks_module
from tatok.model.autoencoder import TaTokConfig
from tatok.model.prior import CodeStatistics, Prior, code_statistics
from tatok.model.quantizer import VectorQuantizer
from tatok.model.row_chunks import row_chunks

CONFIG = TaTokConfig(patch_size=8, num_global=4, codebook_size=64, code_dim=8, width=32, num_heads=2)


@pytest.mark.parametrize("num_rows", [0, 1, 255, 256, 257, 513, 5000])
def test_chunks_are_about_equal_and_bounded(num_rows: int) -> None:
    most = 256 * torch.get_num_threads()
    rows = torch.arange(num_rows)
    chunks = row_chunks(rows, 4096)
    assert torch.equal(torch.cat(chunks), rows)
    sizes = [len(chunk) for chunk in chunks]
    assert max(sizes) <= most
    assert max(sizes) - min(sizes) <= 1


def test_chunks_change_no_value(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    prior, quantizer = Prior(CONFIG).eval(), VectorQuantizer(64, 8)
    inputs = (
        torch.randn(30, 4, 8),
        torch.randn(30, 16, CONFIG.patch_pixels),
        torch.randn(30, 16, 8),
        torch.rand(30, 16) > 0.5,
        torch.rand(20, 2),
    )
    codes_BN = quantizer.encode(inputs[2])
    whole = code_statistics(prior(*inputs), codes_BN, quantizer.codebook_KC)
    for module in (row_chunks_module, prior_module):
        monkeypatch.setattr(module, "_CACHED_BYTES", 64 * 4 * 100)
    assert len(row_chunks(codes_BN.flatten(), 64)) > 1
    assert torch.equal(quantizer.encode(inputs[2]), codes_BN)
    chunked = prior.statistics(*inputs, codes_BN=codes_BN, codebook_KC=quantizer.codebook_KC)
    for name in CodeStatistics._fields:
        torch.testing.assert_close(getattr(chunked, name), getattr(whole, name), rtol=1e-5, atol=1e-5)
