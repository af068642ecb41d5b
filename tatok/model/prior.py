"""The entropy model: a masked transformer that predicts hidden patch codes from the globals and the visible ones.

Shapes: B batch, N patches (of the whole batch, where there is no B), M globals, K codebook size, C code dimension,
D width.
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

__all__ = ["CodeStatistics", "Prior", "PriorInputs", "code_statistics", "soft_surprisal"]


_CACHED_BYTES = 1 << 20  # for the logits, and again for their shares, which a core then reads from its cache


class PriorInputs(NamedTuple):
    """What the prior is told of a batch, embedded: globals [B, M, D], base [B, N, D] and all patch codes [B, N, D].

    It stays the same from round to round of DTF; which codes are visible does not.
    """

    globals_BMD: Tensor
    base_BND: Tensor
    codes_BND: Tensor


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
        inputs = self.embedded(globals_BMC, base_BNP, vectors_BNC)
        return self.head(self._states(inputs, visible_BN, coordinates_L2)).float()

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
        inputs = self.embedded(globals_BMC, base_BNP, vectors_BNC)
        return self.statistics_of(inputs, visible_BN, coordinates_L2, codes_BN=codes_BN, codebook_KC=codebook_KC)

    def embedded(self, globals_BMC: Tensor, base_BNP: Tensor, vectors_BNC: Tensor) -> PriorInputs:
        """What `statistics_of` takes, for any number of visible sets."""
        return PriorInputs(self.embed_global(globals_BMC), self.embed_base(base_BNP), self.embed_code(vectors_BNC))

    def statistics_of(
        self, inputs: PriorInputs, visible_BN: Tensor, coordinates_L2: Tensor, *, codes_BN: Tensor, codebook_KC: Tensor
    ) -> CodeStatistics:
        """`statistics` of what is embedded already."""
        ranked = self._states(inputs, visible_BN, coordinates_L2)
        last = self.head
        if isinstance(last, nn.Sequential):
            ranked, last = last[:-1](ranked), last[-1]
        assert isinstance(last, nn.Linear)
        weight_DK, moments_RK = last.weight.T.contiguous(), _moments(codebook_KC)
        rows = (
            row_chunks(each, len(codebook_KC), cached_bytes=_CACHED_BYTES)
            for each in (ranked.flatten(0, 1), codes_BN.flatten())
        )
        parts = []
        for states, codes in zip(*rows, strict=True):
            logits = states @ weight_DK if last.bias is None else torch.addmm(last.bias, states, weight_DK)
            parts.append(_shares(logits.float(), codes, moments_RK))
        whole = parts[0] if len(parts) == 1 else _Shares(*(torch.cat(each, -1) for each in zip(*parts, strict=True)))
        return CodeStatistics(
            *(values.view(codes_BN.shape) for values in _of_shares(whole, codes_BN.flatten(), codebook_KC))
        )

    def _states(self, inputs: PriorInputs, visible_BN: Tensor, coordinates_L2: Tensor) -> Tensor:
        token = torch.where(visible_BN[:, :, None], inputs.codes_BND, self.hidden_D)
        tokens = torch.cat([inputs.globals_BMD, inputs.base_BND + token], dim=1)
        states = self.transformer(tokens, coordinates_L2)
        return states[:, inputs.globals_BMD.shape[1] :]


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
    logits_NK, codes_N = logits_BNK.float().flatten(0, -2).clone(), codes_BN.flatten()
    found = _of_shares(_shares(logits_NK, codes_N, _moments(codebook_KC)), codes_N, codebook_KC)
    return CodeStatistics(*(values.view(codes_BN.shape) for values in found))


def _moments(codebook_KC: Tensor) -> Tensor:
    """[C + 1, K]: each code and its squared length; one product with them gives all that is expected of q."""
    return torch.cat([codebook_KC.T, codebook_KC.square().sum(1)[None]])


class _Shares(NamedTuple):
    """What there is to know of q at N positions, of logits whose highest is 0: the highest share, the logit of the
    true code and the expected one, all [N], and the expected moments [C + 1, N]."""

    highest_N: Tensor
    logit_of_code_N: Tensor
    expected_logit_N: Tensor
    expected_RN: Tensor


@torch.no_grad()
def _shares(logits_NK: Tensor, codes_N: Tensor, moments_RK: Tensor) -> _Shares:
    # The logits are changed in place: more arrays than these two would not fit the cache.
    shifted_NK = logits_NK.sub_(logits_NK.amax(-1, keepdim=True))
    shares_NK = shifted_NK.softmax(-1)  # on a CPU faster than exponentials by themselves
    with torch.autocast(logits_NK.device.type, enabled=False):
        expected_RN = moments_RK @ shares_NK.T
    logit_of_code_N = shifted_NK.gather(-1, codes_N[:, None])[:, 0]
    return _Shares(shares_NK.amax(-1), logit_of_code_N, shifted_NK.mul_(shares_NK).sum(-1), expected_RN)


@torch.no_grad()
def _of_shares(shares: _Shares, codes_N: Tensor, codebook_KC: Tensor) -> tuple[Tensor, ...]:
    expected_CN = shares.expected_RN[:-1]
    variance = shares.expected_RN[-1] - expected_CN.square().sum(0)
    distance = (F.embedding(codes_N, codebook_KC) - expected_CN.T).square().sum(-1)
    nats_2N = -shares.highest_N.log() - torch.stack([shares.expected_logit_N, shares.logit_of_code_N])
    entropy_bits, surprisal_bits = (nats_2N.clamp_min(0) / math.log(2)).unbind()
    return entropy_bits, surprisal_bits, variance.clamp_min(0), distance
