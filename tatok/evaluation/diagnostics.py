"""What a tokenizer's codes and prior are like on held-out photos: codebook use, and how honest the prior is.

DTF rests on the prior's entropies, which are estimates: they can be trusted where the true codes are as surprising, on
average, as the prior says they should be.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from tatok.evaluation.calibration import EncodedPhotos
from tatok.model.prior import CodeStatistics
from tatok.statistics.summary import CodebookUse, codebook_use
from tatok.tokenizer.tokenizer import Tokenizer

__all__ = ["EntropyBand", "PriorCalibration", "TokenizerReport", "tokenizer_report"]

NUM_BANDS = 10


@dataclass(frozen=True, slots=True, kw_only=True)
class EntropyBand:
    """A tenth of the positions, by their entropy: bits a position that the prior expects, and that came."""

    num_positions: int
    entropy_bits: float
    surprisal_bits: float


@dataclass(frozen=True, slots=True, kw_only=True)
class PriorCalibration:
    """Mean bits a hidden position: `entropy_bits` as the prior expects, `surprisal_bits` as the true codes cost.

    A calibrated prior has them equal, in each band too; more surprisal than entropy is overconfidence.
    `bands` ascend in entropy and are as equal in size as may be.
    """

    num_positions: int
    entropy_bits: float
    surprisal_bits: float
    bands: tuple[EntropyBand, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenizerReport:
    """`global_codes` is None where the tokenizer has no global tokens; patch codes are those of the full rate.

    Few photos cannot use a large codebook: the number of tokens bounds the codes used and the perplexity.

    `given_globals` is the prior with all patches hidden, `given_half` with a random half of each photo's visible.
    """

    global_codes: CodebookUse | None
    patch_codes: CodebookUse
    given_globals: PriorCalibration
    given_half: PriorCalibration


def tokenizer_report(photos: EncodedPhotos, seed: int = 0) -> TokenizerReport:
    """Codebook use and the prior's calibration on photos; one prior pass. `seed` draws the visible halves."""
    tokenizer = photos.tokenizer
    generator = torch.Generator().manual_seed(seed)
    given_globals, given_half = [], []
    for full, first in zip(photos.full, photos.first, strict=True):
        visible = _random_half(full.codes.patch_BN, generator)
        given_globals.append(_hidden_bits(first, torch.zeros_like(visible)))
        given_half.append(_hidden_bits(tokenizer.estimate(full, visible), visible))
    global_codes = torch.cat([full.codes.global_BM.flatten() for full in photos.full])
    patch_codes = torch.cat([full.codes.patch_BN.flatten() for full in photos.full])
    return TokenizerReport(
        global_codes=codebook_use("global", _counts(global_codes, tokenizer)) if len(global_codes) else None,
        patch_codes=codebook_use("patch", _counts(patch_codes, tokenizer)),
        given_globals=_calibration(given_globals),
        given_half=_calibration(given_half),
    )


def _counts(codes: Tensor, tokenizer: Tokenizer) -> np.ndarray:
    return np.bincount(codes.cpu().numpy(), minlength=tokenizer.vocab_size)


def _random_half(codes_BN: Tensor, generator: torch.Generator) -> Tensor:
    num_images, num_positions = codes_BN.shape
    order = torch.stack([torch.randperm(num_positions, generator=generator) for _ in range(num_images)])
    return (order < num_positions // 2).to(codes_BN.device)


def _hidden_bits(statistics: CodeStatistics, visible_BN: Tensor) -> Tensor:
    """Entropy and surprisal of the hidden positions, float64 [2, V]."""
    return torch.stack([statistics.entropy[~visible_BN], statistics.surprisal[~visible_BN]]).double().cpu()


def _calibration(entropy_and_surprisal: list[Tensor]) -> PriorCalibration:
    bits_2V = torch.cat(entropy_and_surprisal, dim=1)
    bits_2V = bits_2V[:, bits_2V[0].argsort(stable=True)]
    means = bits_2V.mean(1)
    return PriorCalibration(
        num_positions=bits_2V.shape[1],
        entropy_bits=float(means[0]),
        surprisal_bits=float(means[1]),
        bands=tuple(
            EntropyBand(
                num_positions=band.shape[1],
                entropy_bits=float(band[0].mean()),
                surprisal_bits=float(band[1].mean()),
            )
            for band in bits_2V.tensor_split(NUM_BANDS, dim=1)
            if band.shape[1]
        ),
    )
