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

Shapes: B batch, N patches in raster order, M globals, P = 3 * patch * patch pixels of a patch, C code dimension,
D width. Images are float in [-1, 1]; everything about an image's size comes from the image, not from the weights.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from schemas.errors import ConfigError
from tatok.layers import Transformer
from tatok.quantizer import Quantized, VectorQuantizer

__all__ = ["Codes", "Decoder", "Encoded", "Encoder", "TaTok", "TaTokConfig", "anchor_grid", "patch_coordinates"]


@dataclass(frozen=True, slots=True, kw_only=True)
class TaTokConfig:
    """Everything that fixes the shapes of the weights; the paper gives none of these numbers."""

    patch_size: int = 16
    num_global: int = 16
    codebook_size: int = 4096
    code_dim: int = 16
    width: int = 192
    num_heads: int = 3
    num_trunk_layers: int = 2
    num_base_layers: int = 2
    num_refiner_layers: int = 2
    num_decoder_layers: int = 4
    num_prior_layers: int = 3

    def __post_init__(self) -> None:
        if self.width % self.num_heads or (self.width // self.num_heads) % 4:
            raise ConfigError(
                f"width {self.width} over {self.num_heads} heads: each head needs a multiple of 4 dimensions "
                "(two axes of rotary pairs)"
            )
        if self.num_global < 1:
            raise ConfigError(f"num_global is {self.num_global}; TaTok needs at least one global token")

    @property
    def patch_pixels(self) -> int:
        """Numbers in one patch, P."""
        return 3 * self.patch_size**2


def anchor_grid(num_global: int) -> tuple[int, int]:
    """Rows and columns of the thumbnail cells that anchor the globals: the factors of M nearest to a square."""
    rows = next(r for r in range(int(num_global**0.5), 0, -1) if num_global % r == 0)
    return rows, num_global // rows


def patch_coordinates(height: int, width: int, num_global: int, device: torch.device) -> Tensor:
    """(row, column) of M globals (centres of their cells) and then N patches, float32 [M + N, 2], in patches."""
    rows, columns = anchor_grid(num_global)

    def raster(ys: Tensor, xs: Tensor) -> Tensor:
        return torch.stack(torch.meshgrid(ys, xs, indexing="ij"), dim=-1).flatten(0, 1)

    cells = raster(
        (torch.arange(rows, device=device) + 0.5) * height / rows - 0.5,
        (torch.arange(columns, device=device) + 0.5) * width / columns - 0.5,
    )
    patches = raster(
        torch.arange(height, device=device, dtype=torch.float32),
        torch.arange(width, device=device, dtype=torch.float32),
    )
    return torch.cat([cells, patches])


def _to_patches(images_B3HW: Tensor, patch: int) -> Tensor:
    return F.pixel_unshuffle(images_B3HW, patch).flatten(2).transpose(1, 2)  # [B, N, P]


def _to_images(patches_BNP: Tensor, grid: tuple[int, int], patch: int) -> Tensor:
    return F.pixel_shuffle(patches_BNP.transpose(1, 2).unflatten(2, grid), patch)


class Codes(NamedTuple):
    """Codes of a batch at full rate: `global_BM` and `patch_BN`, int64."""

    global_BM: Tensor
    patch_BN: Tensor


class Encoded(NamedTuple):
    """What the encoder gives at full rate; the quantized vectors carry straight-through gradients."""

    globals_BMC: Quantized
    patches_BNC: Quantized
    base_BNP: Tensor


class _PixelBasis(nn.Module):
    """A fixed linear autoencoder of patches: mean and C orthonormal directions."""

    mean_P: Tensor
    directions_CP: Tensor

    def __init__(self, code_dim: int, patch_pixels: int) -> None:
        super().__init__()
        self.register_buffer("mean_P", torch.zeros(patch_pixels))
        self.register_buffer("directions_CP", torch.linalg.qr(torch.randn(patch_pixels, code_dim))[0].T.contiguous())

    def encode(self, patches_BNP: Tensor) -> Tensor:
        with torch.autocast(patches_BNP.device.type, enabled=False):  # these are what the codebooks quantize
            return (patches_BNP.float() - self.mean_P) @ self.directions_CP.T

    def decode(self, vectors_BNC: Tensor) -> Tensor:
        return vectors_BNC @ self.directions_CP + self.mean_P

    @torch.no_grad()
    def initialise(self, patches_VP: Tensor) -> None:
        """PCA of patches [V, P]."""
        self.mean_P.copy_(patches_VP.mean(0))
        centred = patches_VP - self.mean_P
        _, eigenvectors = torch.linalg.eigh(centred.T @ centred)  # ascending
        self.directions_CP.copy_(eigenvectors.flip(1)[:, : len(self.directions_CP)].T)


def _zero_linear(in_features: int, out_features: int) -> nn.Linear:
    linear = nn.Linear(in_features, out_features)
    nn.init.zeros_(linear.weight)
    nn.init.zeros_(linear.bias)
    return linear


class Encoder(nn.Module):
    """The trunk and the refiner: pixels -> vectors to quantize."""

    def __init__(self, config: TaTokConfig) -> None:
        super().__init__()
        width, pixels, dim = config.width, config.patch_pixels, config.code_dim
        self.embed_patch = nn.Linear(pixels, width)
        self.embed_cell = nn.Linear(pixels, width)
        self.queries_MD = nn.Parameter(torch.randn(config.num_global, width) * 0.02)
        self.trunk = Transformer(config.num_trunk_layers, width, config.num_heads)
        self.global_head = _zero_linear(width, dim)
        self.embed_global = nn.Linear(dim, width)
        self.embed_residual = nn.Linear(pixels, width)
        self.refiner = Transformer(config.num_refiner_layers, width, config.num_heads)
        self.patch_head = _zero_linear(width, dim)

    def look(self, patches_BNP: Tensor, cells_BMP: Tensor, coordinates_L2: Tensor) -> tuple[Tensor, Tensor]:
        """Trunk states [B, M + N, D] and the globals' corrections [B, M, C]."""
        num_global = len(self.queries_MD)
        queries = self.embed_cell(cells_BMP) + self.queries_MD
        states = self.trunk(torch.cat([queries, self.embed_patch(patches_BNP)], dim=1), coordinates_L2)
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
        width, pixels, dim = config.width, config.patch_pixels, config.code_dim
        self.embed_cell = nn.Linear(dim, width)
        self.base = Transformer(config.num_base_layers, width, config.num_heads)
        self.base_head = _zero_linear(width, pixels)
        self.embed_global = nn.Linear(dim, width)
        self.embed_base = nn.Linear(pixels, width)
        self.embed_code = nn.Linear(dim, width)
        self.filler_D = nn.Parameter(torch.randn(width) * 0.02)  # stands where a patch token was filtered out
        self.kept_flag_D = nn.Parameter(torch.randn(width) * 0.02)
        self.decoder = Transformer(config.num_decoder_layers, width, config.num_heads)
        self.head = _zero_linear(width, pixels)

    def cells(self, globals_BMC: Tensor, coordinates_M2: Tensor) -> Tensor:
        """Corrections [B, M, P] of the thumbnail cells."""
        return self.base_head(self.base(self.embed_cell(globals_BMC), coordinates_M2))

    def forward(
        self, globals_BMC: Tensor, vectors_BNC: Tensor, kept_BN: Tensor, base_BNP: Tensor, coordinates_L2: Tensor
    ) -> Tensor:
        """Corrections [B, N, P] of the base image; what stands in `vectors_BNC` where not kept has no effect."""
        kept_BN1 = kept_BN[:, :, None]
        token = torch.where(kept_BN1, self.embed_code(vectors_BNC) + self.kept_flag_D, self.filler_D)
        patches = self.embed_base(base_BNP) + token
        states = self.decoder(torch.cat([self.embed_global(globals_BMC), patches], dim=1), coordinates_L2)
        return self.head(states[:, globals_BMC.shape[1] :])


class TaTok(nn.Module):
    """Encoder, quantizers and decoder; the prior, which prices the codes, is a model of its own (prior.py)."""

    def __init__(self, config: TaTokConfig) -> None:
        super().__init__()
        self.config = config
        self.cell_basis = _PixelBasis(config.code_dim, config.patch_pixels)
        self.residual_basis = _PixelBasis(config.code_dim, config.patch_pixels)
        self.encoder = Encoder(config)
        self.global_quantizer = VectorQuantizer(config.codebook_size, config.code_dim)
        self.patch_quantizer = VectorQuantizer(config.codebook_size, config.code_dim)
        self.decoder = Decoder(config)

    def grid(self, images_B3HW: Tensor) -> tuple[int, int]:
        """Patch rows and columns of a batch; raises ValueError unless both sides are multiples of the patch."""
        height, width, patch = images_B3HW.shape[-2], images_B3HW.shape[-1], self.config.patch_size
        if height % patch or width % patch or not height or not width:
            raise ValueError(f"images are {height}x{width}; both sides must be positive multiples of {patch}")
        return height // patch, width // patch

    def coordinates(self, grid: tuple[int, int]) -> Tensor:
        """`patch_coordinates` of a grid of patch rows and columns."""
        return patch_coordinates(*grid, self.config.num_global, self.cell_basis.mean_P.device)

    def cells(self, images_B3HW: Tensor) -> Tensor:
        """Patches [B, M, P] of the thumbnail that anchors the globals."""
        patch, (rows, columns) = self.config.patch_size, anchor_grid(self.config.num_global)
        return _to_patches(F.adaptive_avg_pool2d(images_B3HW, (rows * patch, columns * patch)), patch)

    def patches(self, images_B3HW: Tensor) -> Tensor:
        """Patches [B, N, P] of images."""
        return _to_patches(images_B3HW, self.config.patch_size)

    def base(self, globals_BMC: Tensor, grid: tuple[int, int]) -> Tensor:
        """The image [B, N, P], as patches, that the globals alone tell."""
        patch, config = self.config.patch_size, self.config
        corrections = self.decoder.cells(globals_BMC, self.coordinates(grid)[: config.num_global])
        thumbnail = _to_images(self.cell_basis.decode(globals_BMC) + corrections, anchor_grid(config.num_global), patch)
        size = (grid[0] * patch, grid[1] * patch)
        return _to_patches(F.interpolate(thumbnail.float(), size=size, mode="bilinear", align_corners=False), patch)

    def encode(self, images_B3HW: Tensor) -> Encoded:
        """Quantized globals and patches, all N of them, and the base image; images are float in [-1, 1]."""
        grid = self.grid(images_B3HW)
        coordinates = self.coordinates(grid)
        patches, cells = self.patches(images_B3HW), self.cells(images_B3HW)
        states, global_corrections = self.encoder.look(patches, cells, coordinates)
        quantized_globals = self.global_quantizer(self.cell_basis.encode(cells) + global_corrections)
        base = self.base(quantized_globals.vectors, grid)
        residual = patches - base
        patch_corrections = self.encoder.refine(states, quantized_globals.vectors, residual, coordinates)
        quantized_patches = self.patch_quantizer(self.residual_basis.encode(residual) + patch_corrections)
        return Encoded(quantized_globals, quantized_patches, base)

    def decode(
        self, globals_BMC: Tensor, vectors_BNC: Tensor, kept_BN: Tensor, base_BNP: Tensor, grid: tuple[int, int]
    ) -> Tensor:
        """The image, float [B, 3, H, W], about [-1, 1], from the globals and the kept patch vectors."""
        corrections = self.decoder(globals_BMC, vectors_BNC, kept_BN, base_BNP, self.coordinates(grid))
        told = torch.where(kept_BN[:, :, None], self.residual_basis.decode(vectors_BNC), 0.0)
        return _to_images((base_BNP + told + corrections).float(), grid, self.config.patch_size)

    def decode_codes(self, codes: Codes, kept_BN: Tensor, grid: tuple[int, int]) -> Tensor:
        """As `decode`, from codes; codes of patches that are not kept may be anything inside the codebook."""
        globals_BMC = self.global_quantizer.decode(codes.global_BM)
        vectors_BNC = self.patch_quantizer.decode(codes.patch_BN)
        return self.decode(globals_BMC, vectors_BNC, kept_BN, self.base(globals_BMC, grid), grid)
