"""The entropy model: a masked transformer that predicts hidden patch codes from the globals and the visible ones.

Shapes: B batch, N patches, M globals, K codebook size, C code dimension, D width.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tatok.layers import Transformer
from tatok.model import TaTokConfig
from tatok.row_chunks import row_chunks

__all__ = ["CodeStatistics", "Prior", "code_statistics", "soft_surprisal"]


class Prior(nn.Module):
    """q(z_i | z_G, z_S) for every patch position i at once, given the globals and a visible subset S.

    It sees what the decoder sees: the globals, the base image that follows from them, and the visible patch codes.
    """

    def __init__(self, config: TaTokConfig) -> None:
        super().__init__()
        width = config.width
        self.embed_global = nn.Linear(config.code_dim, width)
        self.embed_base = nn.Linear(config.patch_pixels, width)
        self.embed_code = nn.Linear(config.code_dim, width)
        self.hidden_D = nn.Parameter(torch.randn(width) * 0.02)
        self.transformer = Transformer(config.num_prior_layers, width, config.num_heads)
        self.head = nn.Linear(width, config.codebook_size)

    def forward(
        self, globals_BMC: Tensor, base_BNP: Tensor, vectors_BNC: Tensor, visible_BN: Tensor, coordinates_L2: Tensor
    ) -> Tensor:
        """Logits, float32 [B, N, K]; what stands in `vectors_BNC` where not visible has no effect."""
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
        rows = (row_chunks(each, len(codebook_KC)) for each in (states_BND.flatten(0, 1), codes_BN.flatten()))
        chunks = zip(*rows, strict=True)
        parts = [code_statistics(self.head(states), codes, codebook_KC) for states, codes in chunks]
        return CodeStatistics(*(torch.cat(values).view(codes_BN.shape) for values in zip(*parts, strict=True)))

    def _states(
        self, globals_BMC: Tensor, base_BNP: Tensor, vectors_BNC: Tensor, visible_BN: Tensor, coordinates_L2: Tensor
    ) -> Tensor:
        token = torch.where(visible_BN[:, :, None], self.embed_code(vectors_BNC), self.hidden_D)
        tokens = torch.cat([self.embed_global(globals_BMC), self.embed_base(base_BNP) + token], dim=1)
        states = self.transformer(tokens, coordinates_L2)
        return states[:, globals_BMC.shape[1] :]


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
    """Entropy, surprisal, content variance and content distance of every position; B and N may be one dimension."""
    log_q = F.log_softmax(logits_BNK.float(), dim=-1)
    q = log_q.exp()
    entropy = -(q * log_q).sum(-1) / math.log(2)
    surprisal = -log_q.gather(-1, codes_BN[..., None])[..., 0] / math.log(2)
    with torch.autocast(q.device.type, enabled=False):
        expected_BNC = q @ codebook_KC
        variance = q @ codebook_KC.square().sum(1) - expected_BNC.square().sum(-1)
    distance = (F.embedding(codes_BN, codebook_KC) - expected_BNC).square().sum(-1)
    return CodeStatistics(entropy, surprisal, variance.clamp_min(0), distance)
