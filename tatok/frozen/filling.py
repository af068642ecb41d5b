"""What stands where a code was dropped: predictions by the prior, for the frozen tokenizer's decoder.

Shapes: B images, N positions, K codes, C width of their vectors.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from tatok.frozen.config import FillSettings

__all__ = ["fill"]


def fill(
    logits_of: Callable[[Tensor, Tensor], Tensor],
    codes_BN: Tensor,
    kept_BN: Tensor,
    codebook_KC: Tensor,
    settings: FillSettings,
) -> Tensor:
    """The vectors [B, N, C]: those of the codes that were kept, and what `settings` puts elsewhere.

    `logits_of(vectors_BNC, visible_BN)` is the prior given the vectors at visible positions. Codes that were not kept
    have no effect, nor have other images of the batch. The constant is the codebook's origin: the mean vector.
    """
    vectors_BNC = torch.where(kept_BN[:, :, None], codebook_KC[codes_BN], 0.0)
    if settings.kind == "constant":
        return vectors_BNC
    known_BN = kept_BN
    for left in range(settings.rounds - 1, 0, -1):
        shares_BNK = logits_of(vectors_BNC, known_BN).softmax(-1)
        surest_BN, mode_BN = shares_BNK.max(-1)
        # The surest of those that are left, as many in each image as are its share of the rounds.
        num_B1 = torch.div((~known_BN).sum(1, keepdim=True) + left, left + 1, rounding_mode="floor")
        order_BN = surest_BN.masked_fill(known_BN, -1.0).sort(dim=1, descending=True, stable=True).indices
        in_prefix = torch.arange(order_BN.shape[1], device=order_BN.device) < num_B1
        chosen_BN = torch.zeros_like(known_BN).scatter(1, order_BN, in_prefix) & ~known_BN
        vectors_BNC = torch.where(chosen_BN[:, :, None], codebook_KC[mode_BN], vectors_BNC)
        known_BN = known_BN | chosen_BN
    logits_BNK = logits_of(vectors_BNC, known_BN)
    if settings.kind == "mode":
        predicted_BNC = codebook_KC[logits_BNK.argmax(-1)]
    else:
        predicted_BNC = logits_BNK.softmax(-1) @ codebook_KC
    return torch.where(known_BN[:, :, None], vectors_BNC, predicted_BNC)
