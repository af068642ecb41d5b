"""The device's part of tokenizing, from pixels to one packed tensor, and how it becomes token sequences on the host.

Nothing in the device's part waits for the device or depends on values: it traces as one graph, and a CUDA graph can
hold it. What the host needs of a batch is packed into one tensor, so that one copy brings it there.

Shapes: B images, M globals, N patches of P pixels, C code dimension, R = M + 5 N numbers of a packed row.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from tatok.model.autoencoder import Codes, TaTok
from tatok.model.dtf import DTFSettings, Filtered, filter_tokens
from tatok.model.pixels import to_float
from tatok.model.prior import CodeStatistics, Prior
from tatok.schemas.records import EntropyStatistics, Grid, TokenSequence
from tatok.schemas.tokens import code_dtype

__all__ = ["Encoding", "FullRate", "pack", "sequences"]


@dataclass(frozen=True, slots=True, kw_only=True)
class FullRate:
    """A batch with all its codes, before filtering: B images, M globals, N patches of P pixels.

    `residual_BN` is the squared difference of each patch's own pixels and its base, in [-1, 1] units, summed over it.
    """

    codes: Codes
    globals_BMC: Tensor
    patches_BNC: Tensor
    base_BNP: Tensor
    residual_BN: Tensor
    grid: tuple[int, int]


@dataclass(frozen=True, slots=True, kw_only=True)
class Encoding:
    """A model, its prior and DTF's settings, on one device; pure functions of tensors there."""

    model: TaTok
    prior: Prior
    dtf: DTFSettings

    def packed(self, pixels: Tensor) -> Tensor:
        """uint8 images [B, 3, H, W] -> all that `sequences` needs, int32 [B, R]."""
        full = self.full_rate(pixels)
        return pack(full, self.filter(full))

    def full_rate(self, pixels: Tensor) -> FullRate:
        """All codes of uint8 images [B, 3, H, W]."""
        images = to_float(pixels)
        encoded = self.model.encode(images)
        return FullRate(
            codes=Codes(encoded.globals_BMC.codes, encoded.patches_BNC.codes),
            globals_BMC=encoded.globals_BMC.vectors,
            patches_BNC=encoded.patches_BNC.vectors,
            base_BNP=encoded.base_BNP,
            residual_BN=self._residual(images, encoded.base_BNP),
            grid=self.model.grid(images),
        )

    def full_rate_after(self, pixels: Tensor, before: Tensor, global_BM: Tensor, renewed_BM: Tensor) -> FullRate:
        """All patch codes of frames that follow the decoded frames `before`, both uint8 [B, 3, H, W].

        `global_BM` are the codes of the latest globals, of which those at `renewed_BM` (bool) are new.
        """
        images, shown = to_float(pixels), to_float(before)
        globals_BMC = self.model.global_quantizer.decode(global_BM)
        base_BNP = self.model.base_after(globals_BMC, renewed_BM, shown)
        patches = self.model.encode_after(images, globals_BMC, base_BNP)
        return FullRate(
            codes=Codes(global_BM, patches.codes),
            globals_BMC=globals_BMC,
            patches_BNC=patches.vectors,
            base_BNP=base_BNP,
            residual_BN=self._residual(images, base_BNP),
            grid=self.model.grid(images),
        )

    def _residual(self, images: Tensor, base_BNP: Tensor) -> Tensor:
        return (self.model.patches(images) - base_BNP).square().sum(-1)

    def estimate(self, full: FullRate, visible_BN: Tensor) -> CodeStatistics:
        """What the prior says of every position when the codes at `visible_BN` (bool) are known."""
        return self.prior.statistics(
            full.globals_BMC,
            full.base_BNP,
            full.patches_BNC,
            visible_BN,
            self.model.coordinates(full.grid),
            codes_BN=full.codes.patch_BN,
            codebook_KC=self.model.patch_quantizer.codebook_KC,
        )

    def filter(self, full: FullRate, new_globals_B: Tensor | None = None) -> Filtered:
        """DTF's kept sets of images, or of frames that have `new_globals_B` globals.

        The lower bound on the count is for images: it would make a frame spend tokens on nothing new.
        """
        num_images, num_positions = full.codes.patch_BN.shape
        return filter_tokens(
            lambda visible: self.estimate(full, visible),
            num_images=num_images,
            num_positions=num_positions,
            num_global=self.model.config.num_global if new_globals_B is None else new_globals_B,
            settings=self.dtf if new_globals_B is None else replace(self.dtf, min_tokens=0),
            device=full.codes.patch_BN.device,
            residual_BN=full.residual_BN,
        )


def pack(full: FullRate, filtered: Filtered) -> Tensor:
    """A filtered batch as int32 [B, R]: M global codes; N patch codes, those that were dropped as -1 - code; and N each
    of entropy at first, entropy when kept, surprisal and worth, as the bits of float32."""
    codes_BN = full.codes.patch_BN.int()
    statistics = (filtered.first.entropy, filtered.entropy_when_kept_BN, filtered.first.surprisal, filtered.worth_BN)
    parts = [full.codes.global_BM.int(), torch.where(filtered.kept_BN, codes_BN, -1 - codes_BN)]
    return torch.cat(parts + [each.float().view(torch.int32) for each in statistics], dim=1)


def sequences(packed_BR: np.ndarray, *, num_global: int, grid: tuple[int, int], vocab_size: int) -> list[TokenSequence]:
    """The token sequences, with their statistics, of a packed batch; grid: rows and columns of patches."""
    ends = num_global + grid[0] * grid[1] * np.arange(5)
    codes_BM, codes_BN, *statistics = np.split(packed_BR, ends, axis=1)
    first, when_kept, surprisal, worth = (each.copy().view(np.float32) for each in statistics)
    first_bits, when_kept = first.astype(np.float64), when_kept.astype(np.float64)
    kept = codes_BN >= 0
    # Of all images at once, and then each its part: most of the time would go into small arrays.
    statistics_of = {
        "entropy_bits": first_bits.sum(1),
        "kept_entropy_bits": (when_kept * kept).sum(1),
        "residual_bits": (when_kept * ~kept).sum(1),
        "surprisal_bits": surprisal.astype(np.float64).sum(1),
        "entropy_mean_bits": first_bits.mean(1),
        "entropy_max_bits": first_bits.max(1),
    }
    numbers_of = zip(*(values.tolist() for values in statistics_of.values()), strict=True)
    has_code = np.concatenate([np.ones_like(codes_BM, bool), kept], axis=1)
    codes = packed_BR[:, : has_code.shape[1]].astype(code_dtype(vocab_size))[has_code]
    positions = kept.nonzero()[1].astype(np.uint16)
    ends_of = kept.sum(1).cumsum().tolist()
    whole_grid, begin, found = Grid(1, *grid), 0, []
    for row, (end, numbers) in enumerate(zip(ends_of, numbers_of, strict=True)):
        entropy = EntropyStatistics(
            **dict(zip(statistics_of, numbers, strict=True)),
            patch_entropy_bits_N=first[row],
            patch_worth_bits_N=worth[row],
        )
        found.append(
            TokenSequence(
                codes=codes[begin + row * num_global : end + (row + 1) * num_global],
                positions=positions[begin:end],
                num_global=num_global,
                grid=whole_grid,
                entropy=entropy,
            )
        )
        begin = end
    return found
