"""TaTok's encoder and decoder: global tokens first, patch tokens for what the globals leave open.

    image --thumbnail--> M anchored queries --trunk over [queries; patches]--> global codes
    global codes --base decoder (M tokens)--> base image
    image - base = residual --refiner over [globals; patches]--> patch codes
    globals, kept patch codes, a learned filler elsewhere --decoder--> base + correction

Three departures from a plain VQ transformer, each for a reason:

- *Anchored globals.* Query j starts from cell j of a thumbnail, so that the globals start as the coarse grid, the
  baseline to fear, and are free to become global by attention.
- *Residual patches.* A patch code holds what its pixels are beyond the base image that the globals already give, so
  that what a token adds and its conditional entropy given the globals speak of the same thing.
- *Code spaces tied to pixels.* Codes live in fixed orthonormal pixel bases (PCA of thumbnail cells and of residual
  patches), to which the transformers add corrections that start at zero. The model starts as a linear autoencoder with
  k-means codebooks instead of noise, and squared lengths in code space are pixel energies.

What is called an image here is a canvas (tatok.autoencoders.canvas): the image's pixels, float in [-1, 1], or, in their
place, the latents of a frozen autoencoder. `canvas` makes the one of the other; all else is the same.

Shapes: B batch, A channels of the canvas, h and w its sides, N patches in raster order, M globals, P numbers of a patch
(A * patch * patch), C code dimension, D width. Everything about an image's size comes from the image, not from the
weights.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tatok.autoencoders.canvas import Canvas, LatentCanvas, PixelCanvas
from tatok.model.config import TaTokConfig
from tatok.model.layers import Transformer
from tatok.model.patches import anchor_grid, cell_of_patches, patch_coordinates, to_images, to_patches
from tatok.model.pixel_layers import ConvStem, PixelDecoder
from tatok.model.quantizer import Quantized, VectorQuantizer
from tatok.model.tables import table

__all__ = [
    "Codes",
    "Decoder",
    "Encoded",
    "Encoder",
    "TaTok",
    "TaTokConfig",
    "TrunkOutput",
]


_START_VECTORS = 200_000


class Codes(NamedTuple):
    """Codes of a batch at full rate: `global_BM` and `patch_BN`, int64."""

    global_BM: Tensor
    patch_BN: Tensor


class Encoded(NamedTuple):
    """What the encoder gives at full rate; the quantized vectors carry straight-through gradients."""

    globals_BMC: Quantized
    patches_BNC: Quantized
    base_BNP: Tensor


class TrunkOutput(NamedTuple):
    """What the encoder sees of images by themselves: patches, the trunk's states [B, M + N, D], quantized globals."""

    patches_BNP: Tensor
    states_BLD: Tensor
    globals_BMC: Quantized


class _PixelBasis(nn.Module):
    """A fixed linear autoencoder of patches: mean and C directions, orthonormal save the learned ones, which are 0."""

    mean_P: Tensor
    directions_CP: Tensor

    def __init__(self, code_dim: int, patch_pixels: int, learned_dim: int = 0) -> None:
        super().__init__()
        self.num_fixed = code_dim - learned_dim
        self.register_buffer("mean_P", torch.zeros(patch_pixels))
        directions_CP = torch.linalg.qr(torch.randn(patch_pixels, code_dim))[0].T.contiguous()
        directions_CP[self.num_fixed :] = 0
        self.register_buffer("directions_CP", directions_CP)

    def encode(self, patches_BNP: Tensor) -> Tensor:
        with torch.autocast(patches_BNP.device.type, enabled=False):  # these are what the codebooks quantize
            return (patches_BNP.float() - self.mean_P) @ self.directions_CP.T

    def decode(self, vectors_BNC: Tensor) -> Tensor:
        with torch.autocast(vectors_BNC.device.type, enabled=False):
            return vectors_BNC.float() @ self.directions_CP + self.mean_P

    @torch.no_grad()
    def initialise(self, patches_VP: Tensor) -> None:
        """PCA of patches [V, P]."""
        self.mean_P.copy_(patches_VP.mean(0))
        centred = patches_VP - self.mean_P
        _, eigenvectors = torch.linalg.eigh(centred.T @ centred)  # ascending
        self.directions_CP[: self.num_fixed].copy_(eigenvectors.flip(1)[:, : self.num_fixed].T)


def _zero_linear(in_features: int, out_features: int) -> nn.Linear:
    linear = nn.Linear(in_features, out_features)
    nn.init.zeros_(linear.weight)
    nn.init.zeros_(linear.bias)
    return linear


def _sampled(vectors: Sequence[Tensor], most: int = _START_VECTORS) -> Tensor:
    """The vectors of [V, ...] in random order, at most so many."""
    flat = torch.cat(list(vectors))
    return flat[torch.randperm(len(flat), device=flat.device)[:most]]


def _no_codes(vectors: Tensor) -> Quantized:
    vectors = vectors.detach().float()
    return Quantized(vectors, vectors.new_zeros(vectors.shape[:-1], dtype=torch.int64), vectors.new_zeros(()))


class Encoder(nn.Module):
    """The trunk and the refiner: pixels -> vectors to quantize."""

    def __init__(self, config: TaTokConfig) -> None:
        super().__init__()
        width, pixels, dim = config.width, config.patch_pixels, config.code_dim
        self.embed_patch: nn.Module = nn.Linear(pixels, width)
        if config.has_stem:
            self.embed_patch = ConvStem(config.patch_side, width, config.channels)
        self.embed_cell = nn.Linear(config.cell_pixels, width)
        # Without an anchor, queries must differ by themselves, and so must what they answer.
        self.queries_MD = nn.Parameter(torch.randn(config.num_global, width) * (0.02 if config.anchored else 1.0))
        self.trunk = Transformer(config.num_trunk_layers, width, config.num_heads)
        self.global_head = _zero_linear(width, dim) if config.anchored else nn.Linear(width, dim)
        self.embed_global = nn.Linear(dim, width)
        self.embed_residual = nn.Linear(pixels, width)
        self.refiner = Transformer(config.num_refiner_layers, width, config.num_heads)
        self.patch_head = _zero_linear(width, dim)

    def look(
        self, canvas_BAhw: Tensor, patches_BNP: Tensor, cells_BMQ: Tensor | None, coordinates_L2: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Trunk states [B, M + N, D] and the globals' vectors [B, M, C], to be added to what their cells say.

        The patches are those of the images.
        """
        num_global = len(self.queries_MD)
        queries = self.queries_MD.expand(len(patches_BNP), -1, -1)
        if cells_BMQ is not None:
            queries = queries + self.embed_cell(cells_BMQ)
        patches = self.embed_patch(canvas_BAhw if isinstance(self.embed_patch, ConvStem) else patches_BNP)
        states = self.trunk(torch.cat([queries, patches], dim=1), coordinates_L2)
        return states, self.global_head(states[:, :num_global])

    def refine(self, states_BLD: Tensor, globals_BMC: Tensor, residual_BNP: Tensor, coordinates_L2: Tensor) -> Tensor:
        """The patches' corrections [B, N, C], knowing what the globals already say."""
        told = torch.cat([self.embed_global(globals_BMC), self.embed_residual(residual_BNP)], dim=1)
        states = self.refiner(states_BLD + told, coordinates_L2)
        return self.patch_head(states[:, globals_BMC.shape[1] :])


class Decoder(nn.Module):
    """Base decoder (globals -> base image) and decoder (globals and kept patches -> corrections of the base)."""

    def __init__(self, config: TaTokConfig) -> None:
        super().__init__()
        pixels, dim = config.patch_pixels, config.code_dim
        width = config.width if config.decoder_width is None else config.decoder_width
        num_heads = width // (config.width // config.num_heads)
        self.embed_cell = nn.Linear(dim, width)
        self.base = Transformer(config.num_base_layers, width, num_heads)
        self.base_head = _zero_linear(width, config.cell_pixels)
        self.embed_global = nn.Linear(dim, width)
        self.embed_base = nn.Linear(pixels, width)
        self.embed_code = nn.Linear(dim, width)
        # Stands where a patch token was filtered out.
        self.filler_D: Tensor
        if config.filler == "learned":
            self.filler_D = nn.Parameter(torch.randn(width) * 0.02)
        else:
            self.register_buffer("filler_D", torch.zeros(width), persistent=False)
        self.kept_flag_D = nn.Parameter(torch.randn(width) * 0.02)
        self.decoder = Transformer(config.num_decoder_layers, width, num_heads)
        self.head: nn.Module = _zero_linear(width, pixels)
        if config.pixel_width is not None:
            self.head = PixelDecoder(config.patch_side, width, config.pixel_width, config.channels)
        self.patch_side = config.patch_side

    def cells(self, globals_BMC: Tensor, coordinates_M2: Tensor) -> Tensor:
        """Corrections [B, M, Q] of the thumbnail cells."""
        return self.base_head(self.base(self.embed_cell(globals_BMC), coordinates_M2))

    def forward(
        self,
        globals_BMC: Tensor,
        vectors_BNC: Tensor,
        kept_BN: Tensor,
        base_BNP: Tensor,
        draft_BNP: Tensor,
        coordinates_L2: Tensor,
        grid: tuple[int, int],
    ) -> Tensor:
        """Corrections [B, N, P] of the draft; what is in `vectors_BNC` where not kept has no effect.

        The draft is the base image with what the kept codes add to it linearly.
        """
        kept_BN1 = kept_BN[:, :, None]
        token = torch.where(kept_BN1, self.embed_code(vectors_BNC) + self.kept_flag_D, self.filler_D)
        patches = self.embed_base(base_BNP) + token
        states = self.decoder(torch.cat([self.embed_global(globals_BMC), patches], dim=1), coordinates_L2)
        states_BND = states[:, globals_BMC.shape[1] :]
        if not isinstance(self.head, PixelDecoder):
            corrections: Tensor = self.head(states_BND)
            return corrections
        states_BDhw = states_BND.transpose(1, 2).unflatten(2, grid)
        return to_patches(self.head(states_BDhw, to_images(draft_BNP, grid, self.patch_side)), self.patch_side)


class TaTok(nn.Module):
    """Encoder, quantizers and decoder; the prior, which prices the codes, is a model of its own (prior.py)."""

    def __init__(self, config: TaTokConfig) -> None:
        super().__init__()
        self.config = config
        self.canvas: Canvas = PixelCanvas() if config.latents is None else LatentCanvas(config.latents)
        self.cell_basis = _PixelBasis(config.code_dim, config.cell_pixels, config.learned_dim)
        self.residual_basis = _PixelBasis(config.code_dim, config.patch_pixels, config.learned_dim)
        self.encoder = Encoder(config)
        self.global_quantizer = VectorQuantizer(config.codebook_size, config.code_dim)
        self.patch_quantizer = VectorQuantizer(config.codebook_size, config.code_dim)
        self.decoder = Decoder(config)

    def grid(self, canvas_BAhw: Tensor) -> tuple[int, int]:
        """Patch rows and columns of a batch; raises ValueError unless both sides are multiples of the patch."""
        return self._grid(canvas_BAhw, self.config.patch_side)

    def grid_of_pixels(self, pixels_B3HW: Tensor) -> tuple[int, int]:
        """`grid` of images of which there is no canvas yet."""
        return self._grid(pixels_B3HW, self.config.patch_size)

    def _grid(self, images: Tensor, patch: int) -> tuple[int, int]:
        height, width = images.shape[-2:]
        if height % patch or width % patch or not height or not width:
            raise ValueError(f"images are {height}x{width}; both sides must be positive multiples of {patch}")
        return height // patch, width // patch

    def coordinates(self, grid: tuple[int, int]) -> Tensor:
        """`patch_coordinates` of a grid of patch rows and columns; a table (tables.py): not to be changed."""
        key, device = (*grid, self.config.num_global), self.cell_basis.mean_P.device
        return table("coordinates", key, device, lambda device: patch_coordinates(*key, device))

    def cell_coordinates(self, grid: tuple[int, int]) -> Tensor:
        """Those of `coordinates` that belong to the globals, float32 [M, 2]; a table, too."""
        key, device = (*grid, self.config.num_global), self.cell_basis.mean_P.device
        return table("cells", key, device, lambda device: patch_coordinates(*key, device)[: key[2]].clone())

    @property
    def has_cells(self) -> bool:
        """Whether the globals start from a thumbnail of the image."""
        return self.config.anchored and self.config.num_global > 0

    def cells(self, canvas_BAhw: Tensor) -> Tensor:
        """Cells [B, M, Q] of the thumbnail that anchors M >= 1 globals."""
        side, (rows, columns) = self.config.cell_side, anchor_grid(self.config.num_global)
        return to_patches(F.adaptive_avg_pool2d(canvas_BAhw, (rows * side, columns * side)), side)

    def patches(self, canvas_BAhw: Tensor) -> Tensor:
        """Patches [B, N, P] of images."""
        return to_patches(canvas_BAhw, self.config.patch_side)

    def base(self, globals_BMC: Tensor, grid: tuple[int, int]) -> Tensor:
        """The image [B, N, P], as patches, of the thumbnail in the globals alone; grey where there is none."""
        patch, config = self.config.patch_side, self.config
        if not self.has_cells:
            return globals_BMC.new_zeros(len(globals_BMC), grid[0] * grid[1], config.patch_pixels)
        corrections = self.decoder.cells(globals_BMC, self.cell_coordinates(grid))
        cells_BMQ = self.cell_basis.decode(globals_BMC) + corrections
        thumbnail = to_images(cells_BMQ, anchor_grid(config.num_global), config.cell_side)
        size = (grid[0] * patch, grid[1] * patch)
        return to_patches(F.interpolate(thumbnail.float(), size=size, mode="bilinear", align_corners=False), patch)

    def look(self, canvas_BAhw: Tensor) -> TrunkOutput:
        """What the encoder sees of images before it knows what is in the base image's place."""
        patches, cells = self.patches(canvas_BAhw), self.cells(canvas_BAhw) if self.has_cells else None
        states, global_vectors = self.encoder.look(
            canvas_BAhw, patches, cells, self.coordinates(self.grid(canvas_BAhw))
        )
        if cells is not None:
            global_vectors = self.cell_basis.encode(cells) + global_vectors
        globals_ = self.global_quantizer(global_vectors) if self.config.num_global else _no_codes(global_vectors)
        return TrunkOutput(patches, states, globals_)

    def refine(self, trunk: TrunkOutput, globals_BMC: Tensor, base_BNP: Tensor, grid: tuple[int, int]) -> Quantized:
        """Quantized patches, all N of them, of what images show beyond a base."""
        residual = trunk.patches_BNP - base_BNP
        corrections = self.encoder.refine(trunk.states_BLD, globals_BMC, residual, self.coordinates(grid))
        quantized: Quantized = self.patch_quantizer(self.residual_basis.encode(residual) + corrections)
        return quantized

    def encode(self, canvas_BAhw: Tensor) -> Encoded:
        """Quantized globals and patches, all N of them, and the base image; images are canvases."""
        grid = self.grid(canvas_BAhw)
        trunk = self.look(canvas_BAhw)
        globals_BMC = trunk.globals_BMC.vectors
        base = self.base(globals_BMC, grid)
        return Encoded(trunk.globals_BMC, self.refine(trunk, globals_BMC, base, grid), base)

    def decode(
        self, globals_BMC: Tensor, vectors_BNC: Tensor, kept_BN: Tensor, base_BNP: Tensor, grid: tuple[int, int]
    ) -> Tensor:
        """The image, as a canvas, float [B, A, h, w], from the globals and the kept patch vectors."""
        draft_BNP = base_BNP + torch.where(kept_BN[:, :, None], self.residual_basis.decode(vectors_BNC), 0.0)
        corrections = self.decoder(globals_BMC, vectors_BNC, kept_BN, base_BNP, draft_BNP, self.coordinates(grid), grid)
        return to_images((draft_BNP + corrections).float(), grid, self.config.patch_side)

    def decode_codes(self, codes: Codes, kept_BN: Tensor, grid: tuple[int, int]) -> Tensor:
        """As `decode`, from codes; codes of patches that are not kept may be anything inside the codebook."""
        globals_BMC = self.global_quantizer.decode(codes.global_BM)
        vectors_BNC = self.patch_quantizer.decode(codes.patch_BN)
        return self.decode(globals_BMC, vectors_BNC, kept_BN, self.base(globals_BMC, grid), grid)

    # --- before training ------------------------------------------------------------------------------------------

    @torch.no_grad()
    def start_from(self, images: Iterable[Tensor], tick: Callable[[], None] = lambda: None) -> None:
        """PCA bases and k-means codebooks from batches of images, which are gone through up to three times.

        `tick` is called after each round of k-means, of which a codebook has `ROUNDS`.
        """
        if self.has_cells:
            cells = _sampled([self.cells(x).flatten(0, 1) for x in images])
            self.cell_basis.initialise(cells)
            self.global_quantizer.initialise(self.cell_basis.encode(cells), tick)
        elif self.config.num_global:  # what the queries answer before they have learnt anything
            answers = [self.encoder.look(x, self.patches(x), None, self.coordinates(self.grid(x)))[1] for x in images]
            self.global_quantizer.initialise(_sampled([each.flatten(0, 1) for each in answers]), tick)
        residuals = []
        most_each = max(1, _START_VECTORS // sum(1 for _ in images))
        for x in images:
            residual = self.patches(x)
            if self.has_cells:
                codes = self.global_quantizer.encode(self.cell_basis.encode(self.cells(x)))
                residual = residual - self.base(self.global_quantizer.decode(codes), self.grid(x))
            residuals.append(_sampled([residual.flatten(0, 1)], most_each))
        residual = _sampled(residuals)
        self.residual_basis.initialise(residual)
        self.patch_quantizer.initialise(self.residual_basis.encode(residual), tick)

    # --- frames of a clip that follow another (clips.py) ----------------------------------------------------------

    def renewed_patches(self, renewed_BM: Tensor, grid: tuple[int, int]) -> Tensor:
        """Which patches, bool [B, N], lie (with their centres) in cells whose globals are new, bool [B, M]."""
        return renewed_BM.index_select(1, cell_of_patches(grid, self.config.num_global, renewed_BM.device))

    def base_after(self, globals_BMC: Tensor, renewed_BM: Tensor, before_BAhw: Tensor) -> Tensor:
        """What is in the base image's place, [B, N, P]: the base where globals are new, else the frame before."""
        grid = self.grid(before_BAhw)
        renewed_BN1 = self.renewed_patches(renewed_BM, grid)[:, :, None]
        return torch.where(renewed_BN1, self.base(globals_BMC, grid), self.patches(before_BAhw))

    def decode_after(
        self, globals_BMC: Tensor, vectors_BNC: Tensor, kept_BN: Tensor, renewed_BM: Tensor, before_BAhw: Tensor
    ) -> Tensor:
        """Frames, float [B, A, h, w], from the frames before them.

        Patches that have neither a token nor a new global stay exactly as they were: the decoder would correct them,
        and its corrections again in every frame that follows.
        """
        grid = self.grid(before_BAhw)
        base_BNP = self.base_after(globals_BMC, renewed_BM, before_BAhw)
        draft_BNP = base_BNP + torch.where(kept_BN[:, :, None], self.residual_basis.decode(vectors_BNC), 0.0)
        corrections = self.decoder(globals_BMC, vectors_BNC, kept_BN, base_BNP, draft_BNP, self.coordinates(grid), grid)
        changes_BN = kept_BN | self.renewed_patches(renewed_BM, grid)
        corrected = torch.where(changes_BN[:, :, None], corrections, 0.0)
        return to_images((draft_BNP + corrected).float(), grid, self.config.patch_side)

    def decode_codes_after(self, codes: Codes, kept_BN: Tensor, renewed_BM: Tensor, before_BAhw: Tensor) -> Tensor:
        """As `decode_after`, from codes; those of patches that are not kept may be anything inside the codebook."""
        globals_BMC = self.global_quantizer.decode(codes.global_BM)
        return self.decode_after(
            globals_BMC, self.patch_quantizer.decode(codes.patch_BN), kept_BN, renewed_BM, before_BAhw
        )
