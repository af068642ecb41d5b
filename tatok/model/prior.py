"""The entropy model: a masked transformer that predicts hidden patch codes from the globals and the visible ones.

Shapes: B batch, N patches, M globals, K codebook size, C code dimension, D width.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tatok.model.autoencoder import TaTokConfig
from tatok.model.layers import Transformer
from tatok.model.row_chunks import row_chunks

__all__ = ["CodeStatistics", "Prior", "code_statistics", "soft_surprisal"]


_CACHED_BYTES = 1 << 21  # for the logits, and again for their exponentials, which a core then reads from its cache


class Prior(nn.Module):
    """q(z_i | z_G, z_S) for every patch position i at once, given the globals and a visible subset S.

    It sees what the decoder sees: the globals, the base image that follows from them, and the visible patch codes.
    """

    def __init__(self, config: TaTokConfig) -> None:
        super().__init__()
        width = config.width if config.prior_width is None else config.prior_width
        self.embed_global = nn.Linear(config.code_dim, width)
        self.embed_base = nn.Linear(config.patch_pixels, width)
        self.embed_code = nn.Linear(config.code_dim, width)
        self.hidden_D = nn.Parameter(torch.randn(width) * 0.02)
        num_heads = width // (config.width // config.num_heads)
        self.transformer = Transformer(config.num_prior_layers, width, num_heads)
        self.head = _head(width, config.prior_rank, config.codebook_size)

    def forward(
        self, globals_BMC: Tensor, base_BNP: Tensor, vectors_BNC: Tensor, visible_BN: Tensor, coordinates_L2: Tensor
    ) -> Tensor:
        """Logits, float32 [B, N, K]; what is in `vectors_BNC` where not visible has no effect."""
        return self.head(self._states(globals_BMC, base_BNP, vectors_BNC, visible_BN, coordinates_L2)).float()

    def statistics(
        self,
        globals_BMC: Tensor,
        base_BNP: Tensor,
        vectors_BNC: Tensor,
        visible_BN: Tensor,
        coordinates_L2: Tensor,
        *,
        codes_BN: Tensor,
        codebook_KC: Tensor,
    ) -> CodeStatistics:
        """`code_statistics` of the logits, which never lie in memory all at once."""
        states_BND = self._states(globals_BMC, base_BNP, vectors_BNC, visible_BN, coordinates_L2)
        rows = (
            row_chunks(each, len(codebook_KC), cached_bytes=_CACHED_BYTES)
            for each in (states_BND.flatten(0, 1), codes_BN.flatten())
        )
        moments_KR = _moments(codebook_KC)
        parts = [
            _code_statistics(self.head(states).float(), codes, codebook_KC, moments_KR)
            for states, codes in zip(*rows, strict=True)
        ]
        whole = parts[0] if len(parts) == 1 else [torch.cat(values) for values in zip(*parts, strict=True)]
        return CodeStatistics(*(values.view(codes_BN.shape) for values in whole))

    def _states(
        self, globals_BMC: Tensor, base_BNP: Tensor, vectors_BNC: Tensor, visible_BN: Tensor, coordinates_L2: Tensor
    ) -> Tensor:
        token = torch.where(visible_BN[:, :, None], self.embed_code(vectors_BNC), self.hidden_D)
        tokens = torch.cat([self.embed_global(globals_BMC), self.embed_base(base_BNP) + token], dim=1)
        states = self.transformer(tokens, coordinates_L2)
        return states[:, globals_BMC.shape[1] :]


def _head(width: int, rank: int | None, num_codes: int) -> nn.Module:
    if rank is None:
        return nn.Linear(width, num_codes)
    return nn.Sequential(nn.Linear(width, rank), nn.Linear(rank, num_codes, bias=False))


def soft_surprisal(logits_BNK: Tensor, vectors_BNC: Tensor, codebook_KC: Tensor, temperature: Tensor) -> Tensor:
    """Surprisal in bits, float32 [B, N], of codes that are assigned softly, so that vectors get a gradient.

    The share of code k is proportional to exp(-|v - e_k|^2 / (2 temperature)); with a temperature far below the squared
    distances of neighbouring codes this is the surprisal of the nearest code. Not given by the paper: it is how the
    rate of a rate-distortion objective reaches the encoder.
    """
    with torch.autocast(vectors_BNC.device.type, enabled=False):
        # |v - e|^2 without |v|^2, which changes no share.
        distances_BNK = codebook_KC.square().sum(1) - 2 * vectors_BNC.float() @ codebook_KC.T
        shares_BNK = (-distances_BNK / (2 * temperature)).softmax(-1)
        return -(shares_BNK * F.log_softmax(logits_BNK.float(), dim=-1)).sum(-1) / math.log(2)


class CodeStatistics(NamedTuple):
    """What q says of each position, float32 [B, N]; METHOD's definitions, entropies in bits.

    entropy:   h_i = -sum_k q_k log2 q_k, in 0 .. log2 K.
    surprisal: s_i = -log2 q(z_i) of the true code; only the encoder can know it.
    variance:  E_q|e|^2 - |E_q e|^2, the spread of the code's content in squared pixel units, summed over the patch.
    distance:  |e_{z_i} - E_q e|^2, how far the true content lies from what is expected; only the encoder can know it.
    """

    entropy: Tensor
    surprisal: Tensor
    variance: Tensor
    distance: Tensor


def code_statistics(logits_BNK: Tensor, codes_BN: Tensor, codebook_KC: Tensor) -> CodeStatistics:
    """Entropy, surprisal, content variance and content distance of every position; B and N may be one dimension.

    No gradient passes through it.
    """
    return _code_statistics(logits_BNK.float().clone(), codes_BN, codebook_KC, _moments(codebook_KC))


def _moments(codebook_KC: Tensor) -> Tensor:
    """[K, C + 2]: each code, its squared length, and 1; one product with them gives all that is expected of q."""
    squares_K1 = codebook_KC.square().sum(1, keepdim=True)
    return torch.cat([codebook_KC, squares_K1, torch.ones_like(squares_K1)], dim=1)


@torch.no_grad()
def _code_statistics(logits_BNK: Tensor, codes_BN: Tensor, codebook_KC: Tensor, moments_KR: Tensor) -> CodeStatistics:
    # A logarithm of the softmax, and its exponential again, would take each exponential twice. The logits are done with
    # afterwards: more arrays than these two would not fit the cache.
    shifted_BNK = logits_BNK.sub_(logits_BNK.amax(-1, keepdim=True))
    weights_BNK = shifted_BNK.exp()
    with torch.autocast(logits_BNK.device.type, enabled=False):
        sums_BNR = weights_BNK @ moments_KR
    total_BN1 = sums_BNR[..., -1:]
    expected_BNR = sums_BNR / total_BN1
    expected_BNC = expected_BNR[..., :-2]
    log_total_BN = total_BN1[..., 0].log()
    surprisal = log_total_BN - shifted_BNK.gather(-1, codes_BN[..., None])[..., 0]
    variance = expected_BNR[..., -2] - expected_BNC.square().sum(-1)
    distance = (F.embedding(codes_BN, codebook_KC) - expected_BNC).square().sum(-1)
    entropy = log_total_BN - shifted_BNK.mul_(weights_BNK).sum(-1) / total_BN1[..., 0]
    bits = 1 / math.log(2)
    return CodeStatistics(entropy * bits, surprisal * bits, variance.clamp_min(0), distance)
