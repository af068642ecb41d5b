"""Canvases <-> patches, where patches and the cells of anchored globals lie in an image, and how rough a patch is.

Shapes: B batch, A channels of the canvas, N patches in raster order, M globals, P = A * patch * patch numbers of one.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from tatok.model.tables import table

__all__ = ["anchor_grid", "cell_of_patches", "patch_coordinates", "texture_bits", "to_images", "to_patches"]

TEXTURE_DEVIATION = 0.1  # of pixels in [-1, 1]: 13 grey levels


def anchor_grid(num_global: int) -> tuple[int, int]:
    """Rows and columns of the thumbnail cells that anchor M >= 1 globals: the factors of M nearest to a square."""
    rows = next(r for r in range(int(num_global**0.5), 0, -1) if num_global % r == 0)
    return rows, num_global // rows


def cell_of_patches(grid: tuple[int, int], num_global: int, device: torch.device) -> Tensor:
    """The anchor cell that each patch's centre lies in, int64 [N]; a table (tables.py): not to be changed."""
    (height, width), (rows, columns) = grid, anchor_grid(num_global)

    def build(device: torch.device) -> Tensor:
        row_of = (2 * torch.arange(height, device=device) + 1) * rows // (2 * height)
        column_of = (2 * torch.arange(width, device=device) + 1) * columns // (2 * width)
        return (row_of[:, None] * columns + column_of).flatten()

    return table("cell_of_patches", (grid, num_global), device, build)


def patch_coordinates(height: int, width: int, num_global: int, device: torch.device) -> Tensor:
    """(row, column) of M globals (centres of their cells) and then N patches, float32 [M + N, 2], in patches."""

    def raster(ys: Tensor, xs: Tensor) -> Tensor:
        return torch.stack(torch.meshgrid(ys, xs, indexing="ij"), dim=-1).flatten(0, 1)

    patches = raster(
        torch.arange(height, device=device, dtype=torch.float32),
        torch.arange(width, device=device, dtype=torch.float32),
    )
    if not num_global:
        return patches
    rows, columns = anchor_grid(num_global)
    cells = raster(
        (torch.arange(rows, device=device) + 0.5) * height / rows - 0.5,
        (torch.arange(columns, device=device) + 0.5) * width / columns - 0.5,
    )
    return torch.cat([cells, patches])


def to_patches(canvas_BAhw: Tensor, patch: int) -> Tensor:
    """Patches [B, N, P], in raster order, of canvases whose sides are multiples of the patch."""
    return F.pixel_unshuffle(canvas_BAhw, patch).flatten(2).transpose(1, 2)


def to_images(patches_BNP: Tensor, grid: tuple[int, int], patch: int) -> Tensor:
    """Canvases [B, A, h, w] of patches that fill a grid of rows and columns."""
    return F.pixel_shuffle(patches_BNP.transpose(1, 2).unflatten(2, grid), patch)


def texture_bits(patches_BNP: Tensor, patch: int) -> Tensor:
    """How many bits a pixel value it takes to tell patches to a deviation of 0.1, float32 [B, N], at least 0.

    Reverse water-filling over the coefficients c of each channel's cosine transform (DCT-II, orthonormal): the mean of
    max(0, log2(|c| / 0.1)). What is smooth has few coefficients and few bits; noise has as many as there are pixels,
    however small its energy. Where the bits start, at 0.1, is not given by the paper.
    """
    basis_VV = _cosines(patch, patches_BNP.device)
    # Across, then down, each as one product of many rows: many products of small matrices take twice as long. The
    # coefficients come out transposed, and their mean is the same.
    across = patches_BNP.float().unflatten(2, (-1, patch, patch)) @ basis_VV.T
    deviations = across.transpose(-1, -2) @ basis_VV.T
    return deviations.abs_().clamp_min_(1).log2_().mean((-3, -2, -1))


def _cosines(side: int, device: torch.device) -> Tensor:
    """The orthonormal DCT-II of `side` values, a row a frequency, float32 [V, V]; a table: not to be changed.

    Twice applied, down and across, it gives coefficients in deviations of 0.1.
    """

    def build(device: torch.device) -> Tensor:
        places = torch.arange(side, device=device, dtype=torch.float64)
        basis = torch.cos(math.pi * (2 * places + 1) * places[:, None] / (2 * side)) * math.sqrt(2 / side)
        basis[0] /= math.sqrt(2)
        return (basis / math.sqrt(TEXTURE_DEVIATION)).float()

    return table("cosines", (side,), device, build)
