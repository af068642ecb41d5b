"""Temporal TaTok: clips <-> token sequences, frame after frame in a closed loop.

The first frame is coded as an image. A later one follows the frame before it, *as decoded*, which is a function of all
earlier tokens: it takes the place of the base image, the refiner codes what differs from it, the prior tells what was
to be expected, DTF keeps what it must, and a patch without a token stays as it was. Globals are renewed where that
pays, cell by cell of the thumbnail that anchors them: within a renewed cell the frame is coded as an image is. With no
cell renewed only changes are coded; with all of them the frame is an image of its own, which no past can make dearer.

The encoder codes against what the decoder will show, so that errors do not add up: what is missing of one frame is
part of what the next one may still code. All this is ours, not the paper's; docs/METHOD.md tells why.

Shapes: B clips, T frames, N patches of a frame, M globals of an image.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from schemas.errors import ConfigError
from schemas.records import TokenSequence
from schemas.tokens import MAX_POSITIONS
from tatok.dtf import Filtered
from tatok.frames import join_frames, split_frames
from tatok.patches import cell_of_patches

if TYPE_CHECKING:
    from tatok.tokenizer import FullRate, Tokenizer

__all__ = ["decode_clips", "encode_clips"]


@torch.inference_mode()
def encode_clips(tokenizer: Tokenizer, pixels_BT3HW: Tensor) -> list[TokenSequence]:
    """`Tokenizer.encode_clips`."""
    _check_pixels(tokenizer, pixels_BT3HW)
    clips: list[list[TokenSequence]] = [[] for _ in pixels_BT3HW]
    coded: _Coded | None = None
    for pixels in pixels_BT3HW.to(tokenizer.device).unbind(1):
        if pixels_BT3HW.shape[1] == 1 or not tokenizer.dtf.temporal:
            frames = tokenizer.encode(pixels)
        else:
            coded = _code_anew(tokenizer, pixels) if coded is None else _code_cheapest(tokenizer, pixels, coded)
            frames = coded.frames
        for clip, frame in zip(clips, frames, strict=True):
            clip.append(frame)
    return [join_frames(clip) for clip in clips]


def _check_pixels(tokenizer: Tokenizer, pixels_BT3HW: Tensor) -> None:
    if pixels_BT3HW.dtype is not torch.uint8 or pixels_BT3HW.ndim != 5 or pixels_BT3HW.shape[1] == 0:
        raise ValueError(
            f"clips are {pixels_BT3HW.dtype} {list(pixels_BT3HW.shape)}; expected torch.uint8 [B, T, 3, H, W]"
        )
    num_frames, height, width = pixels_BT3HW.shape[1], *pixels_BT3HW.shape[3:]
    if num_frames * height * width > MAX_POSITIONS * tokenizer.patch_size**2:
        raise ValueError(f"clips of {num_frames} frames have more than {MAX_POSITIONS} positions; cut them shorter")
    if num_frames == 1 or not tokenizer.dtf.temporal:
        return
    if tokenizer.dtf.threshold_kind != "distortion":
        raise ConfigError(
            "temporal TaTok weighs tokens against distortion, but dtf.threshold_kind is "
            f"{tokenizer.dtf.threshold_kind!r}; use criterion distance or content, or code frame by frame "
            "(dtf.temporal: false)"
        )
    if not tokenizer.has_cells:
        raise ConfigError("temporal TaTok needs anchored globals; code frame by frame (dtf.temporal: false)")


@torch.inference_mode()
def decode_clips(tokenizer: Tokenizer, sequences: Sequence[TokenSequence]) -> Tensor:
    """`Tokenizer.decode_clips`."""
    if not sequences:
        return torch.empty(0, 0, 3, 0, 0, dtype=torch.uint8, device=tokenizer.device)
    grid = sequences[0].grid
    for number, sequence in enumerate(sequences):
        if sequence.grid != grid:
            raise ValueError(f"sequence {number} has grid {tuple(sequence.grid)}, the first has {tuple(grid)}")
        _check_globals(tokenizer, sequence, number)
        tokenizer.check_codes(sequence, number, num_global=sequence.num_global)
    shown: list[Tensor] = []
    global_BM = torch.empty(0)
    for frames in zip(*(split_frames(sequence) for sequence in sequences), strict=True):
        codes, kept_BN, renewed_BM = tokenizer.code_grids(frames)
        if not shown or not tokenizer.has_cells:  # images, all of them
            global_BM = codes.global_BM
            shown.append(tokenizer.rebuild_codes(codes, kept_BN, (grid.height, grid.width)))
        else:
            global_BM = torch.where(renewed_BM, codes.global_BM, global_BM)
            codes = codes._replace(global_BM=global_BM)
            shown.append(tokenizer.rebuild_after(codes, kept_BN, renewed_BM, shown[-1]))
    return torch.stack(shown, dim=1)


def _check_globals(tokenizer: Tokenizer, sequence: TokenSequence, number: int) -> None:
    num_global, num_frames = tokenizer.num_global, sequence.grid.frames
    frames, cells = sequence.global_frames, sequence.global_cells
    if frames is None or cells is None:
        if num_frames != 1 or sequence.num_global != num_global:
            raise ValueError(
                f"sequence {number} has {num_frames} frames and {sequence.num_global} globals; only an image, with "
                f"{num_global} of them, may leave out global_frames and global_cells"
            )
        return
    places = frames.astype(np.int64) * max(num_global, 1) + cells.astype(np.int64)
    wanted = num_global if tokenizer.has_cells else num_global * num_frames  # of the frames that are images
    is_right = len(frames) == len(cells) == sequence.num_global and (np.diff(places) > 0).all()
    is_right &= places[:wanted].tolist() == list(range(wanted))
    is_right &= not len(places) or bool(cells.max() < num_global and frames.max() < num_frames)
    if not is_right:
        raise ValueError(
            f"sequence {number}: global_frames and global_cells must ascend within {num_frames} frames of {num_global} "
            "cells, one of each a global, and the first frame must have all cells"
        )


# --- one frame of every clip --------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class _Coded:
    """One frame of each clip, coded.

    `shown_B3HW` (uint8) is what the decoder will show; `global_BM` are the latest codes of every cell, `renewed_BM` the
    new ones. `cost_BN` (float64) is what each patch costs: its squared error, and its token if it has one.
    """

    frames: list[TokenSequence]
    shown_B3HW: Tensor
    global_BM: Tensor
    renewed_BM: Tensor
    cost_BN: Tensor

    def total_B(self, token_cost: float) -> Tensor:
        """What the frames cost."""
        return self.cost_BN.sum(1) + token_cost * self.renewed_BM.sum(1)

    def rows(self, rows_R: Tensor) -> _Coded:
        """Some of the clips."""
        return _Coded(
            frames=[self.frames[row] for row in rows_R.tolist()],
            shown_B3HW=self.shown_B3HW[rows_R],
            global_BM=self.global_BM[rows_R],
            renewed_BM=self.renewed_BM[rows_R],
            cost_BN=self.cost_BN[rows_R],
        )

    def with_rows(self, rows_R: Tensor, other: _Coded) -> _Coded:
        """These with other results for some of the clips."""
        frames = list(self.frames)
        for row, frame in zip(rows_R.tolist(), other.frames, strict=True):
            frames[row] = frame
        return _Coded(
            frames=frames,
            shown_B3HW=self.shown_B3HW.index_copy(0, rows_R, other.shown_B3HW),
            global_BM=self.global_BM.index_copy(0, rows_R, other.global_BM),
            renewed_BM=self.renewed_BM.index_copy(0, rows_R, other.renewed_BM),
            cost_BN=self.cost_BN.index_copy(0, rows_R, other.cost_BN),
        )


def _token_cost(tokenizer: Tokenizer) -> float:
    """What a token must be worth: the threshold's squared error, here in pixel values of 0 .. 255."""
    return tokenizer.dtf.threshold * 127.5**2


def _errors(shown_B3HW: Tensor, pixels_B3HW: Tensor, patch: int) -> Tensor:
    """Squared error of each patch, int64 [B, N]: sums of integers are exact, in any batch and on any device."""
    squares = (shown_B3HW.long() - pixels_B3HW.long()).square().sum(1, keepdim=True)
    return F.pixel_unshuffle(squares, patch).sum(1).flatten(1)


def _coded(
    tokenizer: Tokenizer, pixels_B3HW: Tensor, shown_B3HW: Tensor, full: FullRate, filtered: Filtered, renewed: Tensor
) -> _Coded:
    frames = [
        replace(
            frame,
            codes=np.concatenate([frame.codes[: frame.num_global][cells_M], frame.codes[frame.num_global :]]),
            num_global=int(cells_M.sum()),
            global_cells=cells_M.nonzero()[0],
        )
        for frame, cells_M in zip(tokenizer.sequences(full, filtered), renewed.cpu().numpy(), strict=True)
    ]
    errors_BN = _errors(shown_B3HW, pixels_B3HW, tokenizer.patch_size)
    return _Coded(
        frames=frames,
        shown_B3HW=shown_B3HW,
        global_BM=full.codes.global_BM,
        renewed_BM=renewed,
        cost_BN=errors_BN.double() + _token_cost(tokenizer) * filtered.kept_BN,
    )


def _code_anew(tokenizer: Tokenizer, pixels_B3HW: Tensor) -> _Coded:
    full = tokenizer.full_rate(pixels_B3HW)
    filtered = tokenizer.filter(full)
    shown = tokenizer.rebuild(full, filtered.kept_BN)
    renewed = torch.ones_like(full.codes.global_BM, dtype=torch.bool)
    return _coded(tokenizer, pixels_B3HW, shown, full, filtered, renewed)


def _code_after(
    tokenizer: Tokenizer, pixels_B3HW: Tensor, before: _Coded, global_BM: Tensor, renewed_BM: Tensor
) -> _Coded:
    full = tokenizer.full_rate_after(pixels_B3HW, before.shown_B3HW, global_BM, renewed_BM)
    filtered = tokenizer.filter(full, new_globals_B=renewed_BM.sum(1))
    shown = tokenizer.rebuild_after(full.codes, filtered.kept_BN, renewed_BM, before.shown_B3HW)
    if tokenizer.dtf.threshold:  # at zero every patch is kept
        # A code may say too little of a patch that changed to be worth its token, or even add to the error: the
        # encoder has decoded it, and knows.
        patch = tokenizer.patch_size
        gains_BN = _errors(before.shown_B3HW, pixels_B3HW, patch) - _errors(shown, pixels_B3HW, patch)
        in_renewed_BN = renewed_BM[:, _cells(tokenizer, full.grid)]
        worth_BN = in_renewed_BN | (gains_BN > _token_cost(tokenizer))
        filtered = replace(filtered, kept_BN=filtered.kept_BN & worth_BN)
        shown = tokenizer.rebuild_after(full.codes, filtered.kept_BN, renewed_BM, before.shown_B3HW)
    return _coded(tokenizer, pixels_B3HW, shown, full, filtered, renewed_BM)


def _cells(tokenizer: Tokenizer, grid: tuple[int, int]) -> Tensor:
    return cell_of_patches(grid, tokenizer.num_global).to(tokenizer.device)


def _code_cheapest(tokenizer: Tokenizer, pixels_B3HW: Tensor, before: _Coded) -> _Coded:
    """The cheapest of three ways for each clip's frame: no cell renewed, those where it seems to pay, or all."""
    token_cost = _token_cost(tokenizer)
    grid = (pixels_B3HW.shape[2] // tokenizer.patch_size, pixels_B3HW.shape[3] // tokenizer.patch_size)
    cells_N = _cells(tokenizer, grid)

    def by_cell(coded: _Coded) -> Tensor:
        return torch.zeros_like(coded.global_BM, dtype=torch.float64).index_add_(1, cells_N, coded.cost_BN)

    best = _code_after(tokenizer, pixels_B3HW, before, before.global_BM, torch.zeros_like(before.renewed_BM))
    # A cell that costs less than a global cannot be cheaper anew: a frame that hardly changed need not be tried.
    rows = (by_cell(best) > token_cost).any(1).nonzero()[:, 0]
    if not len(rows):
        return best
    pixels, before, after = pixels_B3HW[rows], before.rows(rows), best.rows(rows)
    anew = _code_anew(tokenizer, pixels)
    renewed_RM = by_cell(anew) + token_cost < by_cell(after)
    global_RM = torch.where(renewed_RM, anew.global_BM, before.global_BM)
    in_part = _code_after(tokenizer, pixels, before, global_RM, renewed_RM)
    for way in (in_part, anew):
        is_cheaper = (way.total_B(token_cost) < best.rows(rows).total_B(token_cost)).nonzero()[:, 0]
        best = best.with_rows(rows[is_cheaper], way.rows(is_cheaper))
    return best
