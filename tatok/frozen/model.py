"""TaTok over a frozen tokenizer: its codes are the patch codes, and anchored globals say what they have in common.

    image --frozen--> codes z, and their vectors e
    e --thumbnail--> M anchored queries --trunk over [queries; e]--> global codes
    global codes --base decoder--> a first guess of e --prior--> q(z | globals, kept codes)
    kept codes, and what q expects elsewhere --frozen--> image

The canvas of an image (autoencoder.py) is its codes; that of a rebuilt image, which the frozen decoder draws, is
vectors. Vectors are shifted and scaled alike, so that those of the photos that training began with have mean 0 and a
mean squared length of 1: a distortion of 0.1 is a tenth of what a code says, whatever the tokenizer.

Shapes: B batch, N positions in raster order, h rows and w columns of them, M globals, C code dimension, K codes.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable
from dataclasses import replace

import torch
from torch import Tensor, nn

from tatok.frozen.config import AdaptedConfig, FillSettings
from tatok.frozen.filling import fill
from tatok.frozen.under import FrozenTokenizer
from tatok.model.autoencoder import Codes, Encoded, TaTok
from tatok.model.patches import to_images
from tatok.model.pixels import to_float, to_pixels
from tatok.model.prior import Prior
from tatok.model.quantizer import Quantized

__all__ = ["AdaptedTaTok", "CodeCanvas"]

_LOGITS_BYTES = 1 << 26  # of the prior's, at a time, where it fills
_START_CELLS = 200_000


class CodeCanvas(nn.Module):
    """Pixels -> the frozen tokenizer's codes; vectors -> pixels, by its decoder."""

    mean_C: Tensor
    scale: Tensor

    def __init__(self, frozen: FrozenTokenizer, code_dim: int) -> None:
        super().__init__()
        self.frozen = frozen
        self.register_buffer("mean_C", torch.zeros(code_dim))
        self.register_buffer("scale", torch.ones(()))

    def working(self, images_B3HW: Tensor) -> Tensor:
        """Codes, int64 [B, 1, h, w], of images, float in [-1, 1]."""
        return self.frozen.codes(to_pixels(images_B3HW))[:, None]

    @torch.no_grad()
    def images(self, vectors_BChw: Tensor) -> Tensor:
        """Images, float [B, 3, H, W] in [-1, 1], that the frozen decoder draws of vectors; no gradient passes."""
        own = vectors_BChw.float() * self.scale + self.mean_C[:, None, None]
        return to_float(self.frozen.pixels_of_vectors(own))

    def document(self) -> None:
        """What lies beneath is in the config."""

    @torch.no_grad()
    def start(self, counts_K: Tensor) -> Tensor:
        """Take up the mean and the scale of vectors of which there were so many; the codebook [K, C] in these units."""
        codebook_KC = self.frozen.codebook(self.scale.device)
        shares_K1 = (counts_K / counts_K.sum())[:, None].to(codebook_KC)
        self.mean_C.copy_((shares_K1 * codebook_KC).sum(0))
        centred_KC = codebook_KC - self.mean_C
        self.scale.copy_((shares_K1 * centred_KC.square()).sum().sqrt().clamp_min(1e-12))
        return centred_KC / self.scale


class AdaptedTaTok(TaTok):
    """The globals' encoder and base decoder over a frozen tokenizer, and the codebook of that tokenizer.

    What TaTok has for patches (a refiner, a basis, a decoder) is not there. The prior, a model of its own, is asked to
    fill. Frames of a clip are coded each by itself.
    """

    config: AdaptedConfig

    def __init__(self, config: AdaptedConfig, prior: Prior, frozen: FrozenTokenizer) -> None:
        super().__init__(config)
        self.canvas: CodeCanvas = CodeCanvas(frozen, config.code_dim)  # type: ignore[assignment]
        self.asks(prior)
        for part, names in (
            (self, ("residual_basis",)),
            (self.encoder, ("embed_global", "embed_residual", "refiner", "patch_head")),
            (self.decoder, ("embed_global", "embed_base", "embed_code", "filler_D", "kept_flag_D", "decoder", "head")),
        ):
            for name in names:
                delattr(part, name)

    def asks(self, prior: Prior) -> None:
        """Fill by this prior."""
        self._prior = (prior,)  # in a tuple, so that its weights are not this model's

    def filled_by(self, settings: FillSettings) -> AdaptedTaTok:
        """A model of the same weights that fills otherwise."""
        other = copy.copy(self)
        other.config = replace(self.config, fill=settings)
        return other

    def patches(self, codes_B1hw: Tensor) -> Tensor:
        """The codes' vectors [B, N, C]."""
        return self.patch_quantizer.decode(codes_B1hw.flatten(1))

    def cells(self, codes_B1hw: Tensor) -> Tensor:
        """Cells [B, M, Q] of the thumbnail of the codes' vectors; M >= 1."""
        return super().cells(to_images(self.patches(codes_B1hw), self.grid(codes_B1hw), 1))

    def encode(self, codes_B1hw: Tensor) -> Encoded:
        """Quantized globals, the codes themselves, and what the globals guess of their vectors."""
        trunk = self.look(codes_B1hw)
        vectors_BNC = trunk.patches_BNP
        patches = Quantized(vectors_BNC, codes_B1hw.flatten(1), vectors_BNC.new_zeros(()))
        return Encoded(trunk.globals_BMC, patches, self.base(trunk.globals_BMC.vectors, self.grid(codes_B1hw)))

    def decode(
        self, globals_BMC: Tensor, vectors_BNC: Tensor, kept_BN: Tensor, base_BNP: Tensor, grid: tuple[int, int]
    ) -> Tensor:
        """Vectors [B, C, h, w], with the base's guess where a code was dropped."""
        return to_images(torch.where(kept_BN[:, :, None], vectors_BNC, base_BNP), grid, 1)

    def decode_codes(self, codes: Codes, kept_BN: Tensor, grid: tuple[int, int]) -> Tensor:
        """Vectors [B, C, h, w], with the prior's prediction where a code was dropped, as the config's `fill` says."""
        most = max(1, _LOGITS_BYTES // (4 * grid[0] * grid[1] * self.config.codebook_size))
        parts = zip(codes.global_BM.split(most), codes.patch_BN.split(most), kept_BN.split(most), strict=True)
        filled = torch.cat([self._filled(*part, grid) for part in parts])
        if self.config.fill.kind == "nearest":
            nearest = self.patch_quantizer.decode(self.patch_quantizer.encode(filled))
            filled = torch.where(kept_BN[:, :, None], filled, nearest)
        return to_images(filled, grid, 1)

    def _filled(self, global_BM: Tensor, patch_BN: Tensor, kept_BN: Tensor, grid: tuple[int, int]) -> Tensor:
        globals_BMC = self.global_quantizer.decode(global_BM)
        base_BNC, coordinates = self.base(globals_BMC, grid), self.coordinates(grid)

        def logits_of(vectors_BNC: Tensor, visible_BN: Tensor) -> Tensor:
            logits: Tensor = self._prior[0](globals_BMC, base_BNC, vectors_BNC, visible_BN, coordinates)
            return logits

        return fill(logits_of, patch_BN, kept_BN, self.patch_quantizer.codebook_KC, self.config.fill)

    @torch.no_grad()
    def start_from(self, images: Iterable[Tensor], tick: Callable[[], None] = lambda: None) -> None:
        """The frozen tokenizer's codebook, in units of these images' codes, and the globals' basis and codebook."""
        canvases = list(images)
        num_codes = len(self.patch_quantizer.codebook_KC)
        counts_K = torch.bincount(torch.cat([codes.flatten() for codes in canvases]), minlength=num_codes)
        self.patch_quantizer.codebook_KC.copy_(self.canvas.start(counts_K))
        self.patch_quantizer.ema_count_K.copy_(counts_K)  # what figures of its use are of
        if self.has_cells:
            cells = torch.cat([self.cells(codes).flatten(0, 1) for codes in canvases])
            cells = cells[torch.randperm(len(cells), device=cells.device)[:_START_CELLS]]
            self.cell_basis.initialise(cells)
            self.global_quantizer.initialise(self.cell_basis.encode(cells), tick)
