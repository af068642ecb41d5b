"""What the prior says, put into bits."""

from __future__ import annotations

import torch

from tatok.prior import code_statistics, soft_surprisal


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
