"""The device's part of tokenizing, from pixels to one packed tensor, and how it becomes a batch of tokens on the host.

Nothing in the device's part waits for the device or depends on values: it traces as one graph, and a CUDA graph can
hold it. What the host needs of a batch is packed into one tensor, so that one copy brings it there.

Shapes: B images, M globals, N patches of P pixels, C code dimension, R = M + 5 N numbers of a packed row.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from tatok.model.autoencoder import Codes, TaTok, TrunkOutput
from tatok.model.dtf import DTFSettings, Filtered, filter_tokens
from tatok.model.patches import texture_bits
from tatok.model.pixels import to_float, to_pixels
from tatok.model.prior import CodeStatistics, Prior
from tatok.model.quantizer import Quantized
from tatok.schemas.records import Grid
from tatok.schemas.token_batch import EntropyColumns, TokenBatch
from tatok.schemas.tokens import code_dtype

__all__ = ["Encoding", "FullRate", "Seen", "batch", "pack"]


@dataclass(frozen=True, slots=True, kw_only=True)
class FullRate:
    """A batch with all its codes, before filtering: B images, M globals, N patches of P pixels.

    `residual_BN` is the squared difference of each patch's own pixels and its base, in [-1, 1] units, summed over it;
    `texture_BN` are the texture bits of that difference, where DTF looks at them.
    """

    codes: Codes
    globals_BMC: Tensor
    patches_BNC: Tensor
    base_BNP: Tensor
    residual_BN: Tensor
    texture_BN: Tensor | None
    grid: tuple[int, int]


class Seen(NamedTuple):
    """What the encoder sees of frames, uint8 [B, 3, H, W], before it is said what is in the base image's place."""

    pixels_B3HW: Tensor
    patches_BNP: Tensor
    states_BLD: Tensor
    globals_BMC: Tensor
    global_BM: Tensor


@dataclass(frozen=True, slots=True, kw_only=True)
class Encoding:
    """A model, its prior and DTF's settings, on one device; pure functions of tensors there."""

    model: TaTok
    prior: Prior
    dtf: DTFSettings

    def packed(self, pixels: Tensor) -> Tensor:
        """uint8 images [B, 3, H, W] -> all that `batch` needs, int32 [B, R]."""
        full = self.full_rate(pixels)
        return pack(full, self.filter(full))

    def full_rate(self, pixels: Tensor) -> FullRate:
        """All codes of uint8 images [B, 3, H, W]."""
        images = self.model.canvas.working(to_float(pixels))
        encoded = self.model.encode(images)
        left_BNP = self.model.patches(images) - encoded.base_BNP
        return FullRate(
            codes=Codes(encoded.globals_BMC.codes, encoded.patches_BNC.codes),
            globals_BMC=encoded.globals_BMC.vectors,
            patches_BNC=encoded.patches_BNC.vectors,
            base_BNP=encoded.base_BNP,
            residual_BN=left_BNP.square().sum(-1),
            texture_BN=self._texture(left_BNP),
            grid=self.model.grid(images),
        )

    # --- frames of a clip: what they show is coded in several ways, but looked at once ----------------------------

    def see(self, pixels: Tensor) -> Seen:
        """What there is to see in uint8 frames [B, 3, H, W], whatever they follow."""
        trunk = self.model.look(to_float(pixels))
        return Seen(pixels, trunk.patches_BNP, trunk.states_BLD, trunk.globals_BMC.vectors, trunk.globals_BMC.codes)

    def full_rate_seen(self, seen: Seen) -> FullRate:
        """`full_rate` of frames that have been looked at."""
        base_BNP = self.model.base(seen.globals_BMC, self.model.grid(seen.pixels_B3HW))
        return self._refined(seen, seen.globals_BMC, seen.global_BM, base_BNP, is_image=True)

    def full_rate_after(self, seen: Seen, before: Tensor, global_BM: Tensor, renewed_BM: Tensor) -> FullRate:
        """All patch codes of frames that follow the decoded frames `before`, uint8 [B, 3, H, W].

        `global_BM` are the codes of the latest globals, of which those at `renewed_BM` (bool) are new. Texture is
        looked at in images alone: a decoded frame has texture of its own, and what is left would be as rough each time.
        """
        globals_BMC = self.model.global_quantizer.decode(global_BM)
        base_BNP = self.model.base_after(globals_BMC, renewed_BM, to_float(before))
        return self._refined(seen, globals_BMC, global_BM, base_BNP, is_image=False)

    def _refined(
        self, seen: Seen, globals_BMC: Tensor, global_BM: Tensor, base_BNP: Tensor, *, is_image: bool
    ) -> FullRate:
        grid = self.model.grid(seen.pixels_B3HW)
        globals_ = Quantized(globals_BMC, global_BM, globals_BMC.new_zeros(()))
        trunk = TrunkOutput(seen.patches_BNP, seen.states_BLD, globals_)
        patches = self.model.refine(trunk, globals_BMC, base_BNP, grid)
        left_BNP = seen.patches_BNP - base_BNP
        return FullRate(
            codes=Codes(global_BM, patches.codes),
            globals_BMC=globals_BMC,
            patches_BNC=patches.vectors,
            base_BNP=base_BNP,
            residual_BN=left_BNP.square().sum(-1),
            texture_BN=self._texture(left_BNP) if is_image else None,
            grid=grid,
        )

    def _texture(self, left_BNP: Tensor) -> Tensor | None:
        return texture_bits(left_BNP, self.model.config.patch_size) if self.dtf.texture_bits else None

    def rebuild(self, codes: Codes, kept_BN: Tensor, grid: tuple[int, int]) -> Tensor:
        """Images, uint8 [B, 3, H, W], from the globals and the patches at `kept_BN` (bool)."""
        return to_pixels(self.model.canvas.images(self.model.decode_codes(codes, kept_BN, grid)))

    def rebuild_after(self, codes: Codes, kept_BN: Tensor, renewed_BM: Tensor, before: Tensor) -> Tensor:
        """Frames, uint8 [B, 3, H, W], that follow the decoded frames `before`, of the same type and shape.

        `renewed_BM` (bool) are the globals that are new; those of `codes` are the latest of each cell.
        """
        if before.device.type != "cpu":  # which rows change is a question that a GPU would have to be waited for
            return to_pixels(self.model.decode_codes_after(codes, kept_BN, renewed_BM, to_float(before)))
        # Frames without any token are those before them, and decoding is most of what a clip costs.
        rows = (kept_BN.any(1) | renewed_BM.any(1)).nonzero()[:, 0]
        if not len(rows):
            return before
        codes = Codes(*(each.index_select(0, rows) for each in codes))
        kept_BN, renewed_BM, of_rows = (each.index_select(0, rows) for each in (kept_BN, renewed_BM, before))
        decoded = self.model.decode_codes_after(codes, kept_BN, renewed_BM, to_float(of_rows))
        return before.index_copy(0, rows, to_pixels(decoded))

    # --- what the prior says, and DTF -----------------------------------------------------------------------------

    def estimate(self, full: FullRate, visible_BN: Tensor) -> CodeStatistics:
        """What the prior says of every position when the codes at `visible_BN` (bool) are known."""
        return self._estimator(full)(visible_BN)

    def _estimator(self, full: FullRate) -> Callable[[Tensor], CodeStatistics]:
        inputs = self.prior.embedded(full.globals_BMC, full.base_BNP, full.patches_BNC)
        return lambda visible_BN: self.prior.statistics_of(
            inputs,
            visible_BN,
            self.model.coordinates(full.grid),
            codes_BN=full.codes.patch_BN,
            codebook_KC=self.model.patch_quantizer.codebook_KC,
        )

    def filter(self, full: FullRate, new_globals_B: Tensor | None = None) -> Filtered:
        """DTF's kept sets of images, or of frames that have `new_globals_B` globals.

        The lower bound on the count and the limit to the texture are for images: a frame would spend tokens by them on
        nothing new.
        """
        num_images, num_positions = full.codes.patch_BN.shape
        settings = self.dtf
        if new_globals_B is not None:
            settings = replace(settings, min_tokens=0, texture_bits=0.0)
        return filter_tokens(
            self._estimator(full),
            num_images=num_images,
            num_positions=num_positions,
            num_global=self.model.config.num_global if new_globals_B is None else new_globals_B,
            settings=settings,
            device=full.codes.patch_BN.device,
            residual_BN=full.residual_BN,
            texture_BN=full.texture_BN,
        )


def pack(full: FullRate, filtered: Filtered) -> Tensor:
    """A filtered batch as int32 [B, R]: M global codes; N patch codes, those that were dropped as -1 - code; and N each
    of entropy at first, entropy when kept, surprisal and worth, as the bits of float32."""
    codes_BN = full.codes.patch_BN.int()
    statistics = (filtered.first.entropy, filtered.entropy_when_kept_BN, filtered.first.surprisal, filtered.worth_BN)
    parts = [full.codes.global_BM.int(), torch.where(filtered.kept_BN, codes_BN, -1 - codes_BN)]
    return torch.cat(parts + [each.float().view(torch.int32) for each in statistics], dim=1)


def batch(packed_BR: np.ndarray, *, num_global: int, grid: tuple[int, int], vocab_size: int) -> TokenBatch:
    """The token sequences, with their statistics, of a packed batch; grid: rows and columns of patches."""
    num_images, num_positions = len(packed_BR), grid[0] * grid[1]
    codes_BN, *statistics = np.split(packed_BR[:, num_global:], 5, axis=1)
    first, when_kept, surprisal, worth = (each.copy().view(np.float32) for each in statistics)
    first_bits, when_kept = first.astype(np.float64), when_kept.astype(np.float64)
    kept = codes_BN >= 0
    has_code = np.concatenate([np.ones((num_images, num_global), bool), kept], axis=1)
    position_offsets = np.zeros(num_images + 1, np.int64)
    np.cumsum(kept.sum(1), out=position_offsets[1:])
    return TokenBatch(
        codes=packed_BR[:, : num_global + num_positions].astype(code_dtype(vocab_size))[has_code],
        code_offsets=position_offsets + num_global * np.arange(num_images + 1),
        positions=kept.nonzero()[1].astype(np.uint16),
        position_offsets=position_offsets,
        num_global_B=np.full(num_images, num_global, np.int64),
        grid=Grid(1, *grid),
        entropy=EntropyColumns(
            entropy_bits=first_bits.sum(1),
            kept_entropy_bits=(when_kept * kept).sum(1),
            residual_bits=(when_kept * ~kept).sum(1),
            surprisal_bits=surprisal.astype(np.float64).sum(1),
            entropy_mean_bits=first_bits.mean(1),
            entropy_max_bits=first_bits.max(1),
            patch_entropy_bits_BN=first,
            patch_worth_bits_BN=worth,
        ),
    )
