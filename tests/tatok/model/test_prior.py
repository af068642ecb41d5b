"""What the prior says, put into bits."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from tatok.model.autoencoder import TaTokConfig
from tatok.model.prior import Prior, code_statistics, soft_surprisal
from tatok.schemas.errors import ConfigError

SMALL = TaTokConfig(patch_size=4, num_global=4, codebook_size=64, code_dim=6, width=32, num_heads=2)


def test_statistics_are_those_of_the_softmax() -> None:
    torch.manual_seed(0)
    logits_BNK, codebook_KC = torch.randn(2, 5, 8) * 4 + 100, torch.randn(8, 3)
    codes_BN, before = torch.randint(0, 8, (2, 5)), logits_BNK.clone()
    found = code_statistics(logits_BNK, codes_BN, codebook_KC)
    assert torch.equal(logits_BNK, before), "the caller's logits stay as they are"
    q = logits_BNK.double().softmax(-1)
    expected_BNC = q @ codebook_KC.double()
    entropy = -(q * q.log()).sum(-1) / math.log(2)
    surprisal = F.cross_entropy(logits_BNK.double().movedim(-1, 1), codes_BN, reduction="none") / math.log(2)
    variance = (q[..., None] * (codebook_KC - expected_BNC[..., None, :]).square()).sum((-1, -2))
    distance = (codebook_KC[codes_BN] - expected_BNC).square().sum(-1)
    for name, wanted in zip(found._fields, (entropy, surprisal, variance, distance), strict=True):
        torch.testing.assert_close(getattr(found, name).double(), wanted, rtol=1e-5, atol=1e-5)


def test_what_all_logits_have_in_common_does_not_matter_and_nothing_is_below_zero() -> None:
    torch.manual_seed(1)
    narrow = Prior(replace(SMALL, prior_width=16, prior_rank=3)).eval()
    inputs = (torch.randn(2, 4, 6), torch.randn(2, 9, 48), torch.randn(2, 9, 6), torch.rand(2, 9) > 0.5)
    given = {"codes_BN": torch.randint(0, 64, (2, 9)), "codebook_KC": torch.randn(64, 6)}
    before = narrow.statistics(*inputs, torch.zeros(13, 2), **given)
    with torch.no_grad():
        narrow.head[1].weight += torch.tensor([300.0, -500.0, 700.0])  # the same for all codes
    after = narrow.statistics(*inputs, torch.zeros(13, 2), **given)
    for name, wanted in zip(before._fields, before, strict=True):
        torch.testing.assert_close(getattr(after, name), wanted, rtol=1e-3, atol=1e-3)
    sure_BNK = torch.full((1, 64, 64), -90.0).index_put(
        (torch.tensor(0), *torch.arange(64).expand(2, -1)), torch.tensor(9.0)
    )
    sure = code_statistics(sure_BNK, torch.arange(64)[None], given["codebook_KC"])
    for bits in (sure.entropy, sure.surprisal, sure.variance):
        assert bits.min() >= 0
        assert bits.max() < 1e-4


def test_a_prior_may_be_narrower_than_its_model() -> None:
    narrow = Prior(replace(SMALL, num_prior_layers=1, prior_width=16, prior_rank=3))
    assert narrow.transformer.layers[0].num_heads == 1, "heads keep their size"
    sizes = {name: sum(p.numel() for p in getattr(narrow, name).parameters()) for name in ("transformer", "head")}
    assert sizes["head"] == 16 * 3 + 3 + 3 * 64
    assert sizes["transformer"] < 13 * 16**2 + 20 * 16
    inputs = (torch.randn(2, 4, 6), torch.randn(2, 9, 48), torch.randn(2, 9, 6), torch.rand(2, 9) > 0.5)
    assert narrow(*inputs, torch.rand(13, 2)).shape == (2, 9, 64)
    assert "prior_width" not in SMALL.document(), "older checkpoints keep their fingerprint"
    assert replace(SMALL, prior_rank=3).document()["prior_rank"] == 3
    with pytest.raises(ConfigError, match="multiple of a head's 16"):
        replace(SMALL, prior_width=24)
    with pytest.raises(ConfigError, match="prior_rank is 0"):
        replace(SMALL, prior_rank=0)


def test_soft_surprisal_is_that_of_the_nearest_code_where_it_is_cold() -> None:
    torch.manual_seed(0)
    codebook_KC, logits_BNK = torch.randn(8, 3) * 3, torch.randn(2, 5, 8)
    codes_BN = torch.randint(0, 8, (2, 5))
    vectors_BNC = codebook_KC[codes_BN] + 0.01 * torch.randn(2, 5, 3)
    hard = code_statistics(logits_BNK, codes_BN, codebook_KC).surprisal
    cold = soft_surprisal(logits_BNK, vectors_BNC, codebook_KC, torch.tensor(1e-3))
    torch.testing.assert_close(cold, hard, rtol=1e-4, atol=1e-4)
    hot = soft_surprisal(logits_BNK, vectors_BNC, codebook_KC, torch.tensor(1e9))  # all codes alike
    expected = -torch.log2(logits_BNK.softmax(-1)).mean(-1)
    torch.testing.assert_close(hot, expected, rtol=1e-4, atol=1e-4)


def test_soft_surprisal_draws_vectors_towards_likelier_codes() -> None:
    codebook_KC = torch.tensor([[0.0], [1.0]])
    vector = torch.full((1, 1, 1), 0.2, requires_grad=True)
    soft_surprisal(torch.tensor([[[0.0, 3.0]]]), vector, codebook_KC, torch.tensor(0.5)).sum().backward()
    assert vector.grad is not None
    assert vector.grad.item() < 0  # downhill is towards the second code
