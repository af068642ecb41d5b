"""Vector quantizer: vectors <-> integer codes, with a codebook that follows the data by moving averages.

The vectors are *not* normalised. TaTok's code space is tied to pixels (autoencoder.py), so a vector's length says how
much of the picture it carries, and Dynamic Token Filtering needs that: two codes that both mean "nothing to add"
must lie close together, which they do not on a unit sphere.

Where several ranks train together (distributed.py), the codebook follows the vectors of all, and is the same on each.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tatok.distributed import broadcast_from_first, num_ranks, sum_over_ranks
from tatok.model.row_chunks import row_chunks

__all__ = ["ROUNDS", "Quantized", "VectorQuantizer"]

# Not given by the paper. Slower than VQ-VAE's usual 0.99 (arXiv 1711.00937, appendix A.1): a small batch has far fewer
# global vectors than there are codes, and the mean of a code needs dozens of them.
EMA_DECAY = 0.998
ROUNDS = 8  # of k-means
DEAD_BELOW = 0.02  # share of the mean code's use under which a code is moved onto a vector of the batch


class Quantized(NamedTuple):
    """`vectors` [..., C] carry the straight-through gradient; `codes` int64 [...]; `commitment` is a scalar loss."""

    vectors: Tensor
    codes: Tensor
    commitment: Tensor


class VectorQuantizer(nn.Module):
    """Nearest-neighbour quantizer with `num_codes` entries of `dim` numbers."""

    codebook_KC: Tensor
    ema_count_K: Tensor
    ema_sum_KC: Tensor

    def __init__(self, num_codes: int, dim: int) -> None:
        super().__init__()
        self.register_buffer("codebook_KC", torch.randn(num_codes, dim))
        # Needed to resume training, not to use the codes: kept out of checkpoints.
        self.register_buffer("ema_count_K", torch.ones(num_codes), persistent=False)
        self.register_buffer("ema_sum_KC", self.codebook_KC.clone(), persistent=False)

    def encode(self, vectors: Tensor) -> Tensor:
        """The code, int64 [...], of the nearest codebook entry to each vector [..., C]; ties go to the lower code."""
        flat = vectors.float().flatten(0, -2)
        with torch.autocast(flat.device.type, enabled=False):  # bf16 would confuse near neighbours
            squares_K, chunks = self.codebook_KC.square().sum(1), row_chunks(flat, len(self.codebook_KC))
            # |v - e|^2 without |v|^2, which does not change the winner.
            codes = [(squares_K - 2 * chunk @ self.codebook_KC.T).argmin(1) for chunk in chunks]
        return torch.cat(codes).view(vectors.shape[:-1])

    def decode(self, codes: Tensor) -> Tensor:
        """The vectors, float32 [..., C], that codes [...] stand for."""
        return F.embedding(codes, self.codebook_KC)

    def forward(self, vectors: Tensor) -> Quantized:
        """Quantize vectors [..., C]; in training mode the codebook moves after them."""
        vectors = vectors.float()
        codes = self.encode(vectors.detach())
        if self.training:
            self._follow(vectors.detach().flatten(0, -2), codes.flatten())
        nearest = self.decode(codes)
        commitment = F.mse_loss(vectors, nearest)
        # Without a gradient to pass on, exactly the codebook's vectors: what the decoder will have.
        straight_through = vectors + (nearest - vectors).detach() if vectors.requires_grad else nearest
        return Quantized(straight_through, codes, commitment)

    @torch.no_grad()
    def _follow(self, vectors_VC: Tensor, codes_V: Tensor) -> None:
        # Sums and, in the last column, counts: one reduction for both.
        counted_VC1 = torch.cat([vectors_VC, torch.ones_like(vectors_VC[:, :1])], dim=1)
        totals = vectors_VC.new_zeros(len(self.codebook_KC), counted_VC1.shape[1]).index_add_(0, codes_V, counted_VC1)
        sum_over_ranks(totals)
        self.ema_count_K.lerp_(totals[:, -1], 1 - EMA_DECAY)
        self.ema_sum_KC.lerp_(totals[:, :-1], 1 - EMA_DECAY)
        mean_count = self.ema_count_K.mean()
        dead_K = self.ema_count_K < DEAD_BELOW * mean_count
        alive_KC = self.ema_sum_KC / self.ema_count_K.clamp_min(1e-6)[:, None]
        self.codebook_KC.copy_(torch.where(dead_K[:, None], self.codebook_KC, alive_KC))
        # At most a few a step, so that the codes in use are not robbed of their neighbourhoods all at once. They are
        # drawn without asking how many there are: a GPU would have to be waited for.
        most = min(len(dead_K), max(1, len(vectors_VC) * num_ranks() // 64))
        draws_K = torch.where(dead_K, torch.rand_like(self.ema_count_K), -1.0)
        chosen_J = draws_K.topk(most).indices
        vectors_JC = vectors_VC[torch.randint(len(vectors_VC), (most,), device=vectors_VC.device)]
        broadcast_from_first([chosen_J, vectors_JC])  # each rank has drawn its own
        is_dead_J = dead_K[chosen_J]
        fresh = 0.2 * mean_count  # time to find its neighbourhood
        self.codebook_KC[chosen_J] = torch.where(is_dead_J[:, None], vectors_JC, self.codebook_KC[chosen_J])
        self.ema_count_K[chosen_J] = torch.where(is_dead_J, fresh, self.ema_count_K[chosen_J])
        self.ema_sum_KC[chosen_J] = torch.where(is_dead_J[:, None], fresh * vectors_JC, self.ema_sum_KC[chosen_J])

    @torch.no_grad()
    def initialise(self, vectors_VC: Tensor, tick: Callable[[], None] = lambda: None) -> None:
        """Lloyd's k-means on vectors [V, C], V >= 1, as the starting codebook; empty clusters take random vectors.

        `tick` is called after each of its `ROUNDS` rounds.
        """
        num_codes = len(self.codebook_KC)
        pick = torch.randint(len(vectors_VC), (num_codes,), device=vectors_VC.device)
        if len(vectors_VC) >= num_codes:
            pick = torch.randperm(len(vectors_VC), device=vectors_VC.device)[:num_codes]
        self.codebook_KC.copy_(vectors_VC[pick])
        for _ in range(ROUNDS):
            codes = torch.cat([self.encode(chunk) for chunk in vectors_VC.split(65_536)])
            counts = torch.zeros(num_codes, device=codes.device).index_add_(0, codes, torch.ones_like(vectors_VC[:, 0]))
            sums = torch.zeros_like(self.codebook_KC).index_add_(0, codes, vectors_VC)
            lost = torch.randint(len(vectors_VC), (num_codes,), device=codes.device)
            means = torch.where(counts[:, None] > 0, sums / counts.clamp_min(1)[:, None], vectors_VC[lost])
            self.codebook_KC.copy_(means)
            tick()
        # Worth about as much as the first hundred batches, so that these do not start from noise.
        self.ema_count_K.copy_(0.1 * counts / counts.mean())
        self.ema_sum_KC.copy_(self.codebook_KC * self.ema_count_K[:, None])
