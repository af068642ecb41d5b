"""Temporal TaTok: clips <-> token sequences, frame after frame in a closed loop.

The first frame is coded as an image. A later one follows the frame before it, *as decoded*, which is a function of all
earlier tokens: it takes the place of the base image, the refiner codes what differs from it, the prior says what was
to be expected, DTF keeps what it must, and a patch without a token stays as it was. Globals are renewed where that
pays, cell by cell of the thumbnail that anchors them: within a renewed cell the frame is coded as an image is. With no
cell renewed only changes are coded; with all of them the frame is an image of its own, which no past can make dearer.

The encoder codes against what the decoder will show, so that errors do not add up: what is missing of one frame is
part of what the next one may still code. All this is ours, not the paper's; docs/explanation/method.md says why.

Shapes: B clips, T frames, N patches of a frame, M globals of an image.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from tatok.model.autoencoder import Codes
from tatok.model.patches import cell_of_patches
from tatok.schemas.errors import ConfigError
from tatok.schemas.records import TokenSequence
from tatok.schemas.tokens import MAX_POSITIONS
from tatok.tokenizer.codec import Codec
from tatok.tokenizer.encoding import pack
from tatok.tokenizer.frames import join_frames, split_frames
from tatok.tokenizer.launching import sent

__all__ = ["decode_clips", "encode_clips"]


@torch.inference_mode()
def encode_clips(codec: Codec, pixels_BT3HW: Tensor) -> list[TokenSequence]:
    """`Tokenizer.encode_clips`."""
    _check_pixels(codec, pixels_BT3HW)
    pixels_of_frames = sent(pixels_BT3HW, codec.device).unbind(1)
    if len(pixels_of_frames) == 1 or not codec.dtf.temporal:
        frames = [pending.result() for pending in [codec.encode_async(pixels) for pixels in pixels_of_frames]]
    else:
        frames = _frames_that_follow(codec, pixels_of_frames)
    return [join_frames(clip) for clip in zip(*frames, strict=True)]


def _frames_that_follow(codec: Codec, pixels_of_frames: Sequence[Tensor]) -> list[list[TokenSequence]]:
    """The frames of all clips, frame by frame."""
    first = pixels_of_frames[0]
    coded = _as_images(codec, first).decoded(codec, first)
    parts = [coded.part()]
    for pixels in pixels_of_frames[1:]:
        coded = _code_cheapest(codec, pixels, coded)
        parts.append(coded.part())
    num_global, grid = codec.num_global, _grid(codec, first)
    packed_TBR, is_renewed_TBM = np.split(torch.stack(parts).cpu().numpy(), [-num_global], axis=2)
    return [
        [
            replace(
                frame,
                codes=np.concatenate([frame.codes[:num_global][is_renewed_M], frame.codes[num_global:]]),
                num_global=int(is_renewed_M.sum()),
                global_cells=is_renewed_M.nonzero()[0],
            )
            for frame, is_renewed_M in zip(codec.unpacked(packed_BR, grid), is_renewed_BM == 1, strict=True)
        ]
        for packed_BR, is_renewed_BM in zip(packed_TBR, is_renewed_TBM, strict=True)
    ]


def _check_pixels(codec: Codec, pixels_BT3HW: Tensor) -> None:
    if pixels_BT3HW.dtype is not torch.uint8 or pixels_BT3HW.ndim != 5 or pixels_BT3HW.shape[1] == 0:
        raise ValueError(
            f"clips are {pixels_BT3HW.dtype} {list(pixels_BT3HW.shape)}; expected torch.uint8 [B, T, 3, H, W]"
        )
    num_frames, height, width = pixels_BT3HW.shape[1], *pixels_BT3HW.shape[3:]
    if num_frames * height * width > MAX_POSITIONS * codec.patch_size**2:
        raise ValueError(f"clips of {num_frames} frames have more than {MAX_POSITIONS} positions; cut them shorter")
    if num_frames == 1 or not codec.dtf.temporal:
        return
    if codec.dtf.threshold_kind != "distortion":
        raise ConfigError(
            "temporal TaTok weighs tokens against distortion, but dtf.threshold_kind is "
            f"{codec.dtf.threshold_kind!r}; use criterion distance, residual or content, or code frame by frame "
            "(dtf.temporal: false)"
        )
    if not codec.has_cells:
        raise ConfigError("temporal TaTok needs anchored globals; code frame by frame (dtf.temporal: false)")


@torch.inference_mode()
def decode_clips(codec: Codec, sequences: Sequence[TokenSequence]) -> Tensor:
    """`Tokenizer.decode_clips`."""
    if not sequences:
        return torch.empty(0, 0, 3, 0, 0, dtype=torch.uint8, device=codec.device)
    grid = sequences[0].grid
    for number, sequence in enumerate(sequences):
        if sequence.grid != grid:
            raise ValueError(f"sequence {number} has grid {tuple(sequence.grid)}, the first has {tuple(grid)}")
        _check_globals(codec, sequence, number)
        codec.check_codes(sequence, number, num_global=sequence.num_global)
    shown: list[Tensor] = []
    global_BM = torch.empty(0)
    for frames in zip(*(split_frames(sequence) for sequence in sequences), strict=True):
        codes, kept_BN, renewed_BM = codec.code_grids(frames)
        if not shown or not codec.has_cells:  # images, all of them
            global_BM = codes.global_BM
            shown.append(codec.rebuild_codes(codes, kept_BN, (grid.height, grid.width)))
        else:
            global_BM = torch.where(renewed_BM, codes.global_BM, global_BM)
            codes = codes._replace(global_BM=global_BM)
            shown.append(codec.rebuild_after(codes, kept_BN, renewed_BM, shown[-1]))
    return torch.stack(shown, dim=1)


def _check_globals(codec: Codec, sequence: TokenSequence, number: int) -> None:
    num_global, num_frames = codec.num_global, sequence.grid.frames
    frames, cells = sequence.global_frames, sequence.global_cells
    if frames is None or cells is None:
        if num_frames != 1 or sequence.num_global != num_global:
            raise ValueError(
                f"sequence {number} has {num_frames} frames and {sequence.num_global} globals; only an image, with "
                f"{num_global} of them, may leave out global_frames and global_cells"
            )
        return
    places = frames.astype(np.int64) * max(num_global, 1) + cells.astype(np.int64)
    wanted = num_global if codec.has_cells else num_global * num_frames  # of the frames that are images
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
    """One frame of each clip, coded; all of it on the device.

    `packed_BR` are its codes and statistics (encoding.py), `shown_B3HW` (uint8) what the decoder will show,
    `global_BM` the latest codes of every cell, `renewed_BM` the new ones. `cost_BN` (float64) is what each patch costs:
    its squared error, and its token if it has one.
    """

    packed_BR: Tensor
    shown_B3HW: Tensor
    global_BM: Tensor
    renewed_BM: Tensor
    cost_BN: Tensor

    def total_B(self, token_cost: float) -> Tensor:
        """What the frames cost."""
        return self.cost_BN.sum(1) + token_cost * self.renewed_BM.sum(1)

    def part(self) -> Tensor:
        """What the host needs: the packed rows and then which globals are new, int32 [B, R + M]."""
        return torch.cat([self.packed_BR, self.renewed_BM.int()], dim=1)

    def rows(self, rows_R: Tensor) -> _Coded:
        """Some of the clips."""
        return _Coded(**{name: values.index_select(0, rows_R) for name, values in self._tensors()})

    def with_rows(self, rows_R: Tensor, other: _Coded) -> _Coded:
        """These with other results for some of the clips."""
        others = dict(other._tensors())
        return _Coded(**{name: values.index_copy(0, rows_R, others[name]) for name, values in self._tensors()})

    def where(self, is_other_B: Tensor, other: _Coded) -> _Coded:
        """These, or other results where `is_other_B` (bool)."""
        others = dict(other._tensors())
        return _Coded(
            **{
                name: torch.where(is_other_B.view(-1, *[1] * (values.ndim - 1)), others[name], values)
                for name, values in self._tensors()
            }
        )

    def _tensors(self) -> list[tuple[str, Tensor]]:
        return [(field.name, getattr(self, field.name)) for field in fields(self)]


def _token_cost(codec: Codec) -> float:
    """What a token must be worth: the threshold's squared error, here in pixel values of 0 .. 255."""
    return codec.dtf.threshold * 127.5**2


def _errors(shown_B3HW: Tensor, pixels_B3HW: Tensor, patch: int) -> Tensor:
    """Squared error of each patch, int64 [B, N]: sums of integers are exact, in any batch and on any device."""
    squares = (shown_B3HW.long() - pixels_B3HW.long()).square().sum(1, keepdim=True)
    return F.pixel_unshuffle(squares, patch).sum(1).flatten(1)


def _coded(
    codec: Codec,
    pixels_B3HW: Tensor,
    shown_B3HW: Tensor,
    packed_BR: Tensor,
    global_BM: Tensor,
    kept_BN: Tensor,
    renewed_BM: Tensor,
) -> _Coded:
    errors_BN = _errors(shown_B3HW, pixels_B3HW, codec.patch_size)
    return _Coded(
        packed_BR=packed_BR,
        shown_B3HW=shown_B3HW,
        global_BM=global_BM,
        renewed_BM=renewed_BM,
        cost_BN=errors_BN.double() + _token_cost(codec) * kept_BN,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class _AsImages:
    """Frames coded as images and not decoded yet: what `_Coded` has of them, and which patches have tokens."""

    packed_BR: Tensor
    codes: Codes
    kept_BN: Tensor

    def rows(self, rows_R: Tensor) -> _AsImages:
        """Some of the clips."""
        return _AsImages(
            packed_BR=self.packed_BR.index_select(0, rows_R),
            codes=Codes(*(codes.index_select(0, rows_R) for codes in self.codes)),
            kept_BN=self.kept_BN.index_select(0, rows_R),
        )

    def decoded(self, codec: Codec, pixels_B3HW: Tensor) -> _Coded:
        """What they show and cost."""
        renewed_BM = torch.ones_like(self.codes.global_BM, dtype=torch.bool)
        shown = codec.rebuild_codes(self.codes, self.kept_BN, _grid(codec, pixels_B3HW))
        return _coded(codec, pixels_B3HW, shown, self.packed_BR, self.codes.global_BM, self.kept_BN, renewed_BM)


def _as_images(codec: Codec, pixels_B3HW: Tensor) -> _AsImages:
    full = codec.full_rate(pixels_B3HW)
    filtered = codec.filter(full)
    return _AsImages(packed_BR=pack(full, filtered), codes=full.codes, kept_BN=filtered.kept_BN)


def _grid(codec: Codec, pixels_B3HW: Tensor) -> tuple[int, int]:
    return pixels_B3HW.shape[2] // codec.patch_size, pixels_B3HW.shape[3] // codec.patch_size


def _code_after(codec: Codec, pixels_B3HW: Tensor, before: _Coded, global_BM: Tensor, renewed_BM: Tensor) -> _Coded:
    full = codec.full_rate_after(pixels_B3HW, before.shown_B3HW, global_BM, renewed_BM)
    filtered = codec.filter(full, new_globals_B=renewed_BM.sum(1))
    shown = codec.rebuild_after(full.codes, filtered.kept_BN, renewed_BM, before.shown_B3HW)
    if codec.dtf.threshold:  # at zero every patch is kept
        # A code may say too little of a patch that changed to be worth its token, or even add to the error: the
        # encoder has decoded it, and knows.
        patch = codec.patch_size
        gains_BN = _errors(before.shown_B3HW, pixels_B3HW, patch) - _errors(shown, pixels_B3HW, patch)
        in_renewed_BN = renewed_BM.index_select(1, cell_of_patches(full.grid, codec.num_global, codec.device))
        pays_BN = in_renewed_BN | (gains_BN > _token_cost(codec))
        filtered = replace(filtered, kept_BN=filtered.kept_BN & pays_BN, worth_BN=filtered.worth_BN * pays_BN)
        shown = codec.rebuild_after(full.codes, filtered.kept_BN, renewed_BM, before.shown_B3HW)
    return _coded(codec, pixels_B3HW, shown, pack(full, filtered), global_BM, filtered.kept_BN, renewed_BM)


def _code_cheapest(codec: Codec, pixels_B3HW: Tensor, before: _Coded) -> _Coded:
    """The cheapest of three ways for each clip's frame: no cell renewed, those where it seems to pay, or all.

    Decoding is most of the work, so that a way is not tried where what is known of it already says that it is dearer.
    A GPU is asked once which frames those are: each answer must be waited for, and costs it more than some frames do.
    """
    on_cpu = codec.device.type == "cpu"
    token_cost = _token_cost(codec)
    cells_N = cell_of_patches(_grid(codec, pixels_B3HW), codec.num_global, codec.device)

    def by_cell(cost_BN: Tensor) -> Tensor:
        zeros = cost_BN.new_zeros(len(cost_BN), codec.num_global, dtype=torch.float64)
        return zeros.index_add_(1, cells_N, cost_BN.double())

    best = _code_after(codec, pixels_B3HW, before, before.global_BM, torch.zeros_like(before.renewed_BM))
    rows = torch.arange(len(pixels_B3HW), device=codec.device)
    if on_cpu:
        # A cell that costs less than a global cannot be cheaper anew: a frame that hardly changed need not be tried.
        rows = (by_cell(best.cost_BN) > token_cost).any(1).nonzero()[:, 0]
    if not len(rows):
        return best
    pixels, after = pixels_B3HW.index_select(0, rows), best.rows(rows)
    images = _as_images(codec, pixels)
    # What its tokens cost is known before a frame is decoded, and its errors only add to that.
    may_pay = (token_cost * (1 + by_cell(images.kept_BN)) < by_cell(after.cost_BN)).any(1).nonzero()[:, 0]
    if not len(may_pay):
        return best
    rows, pixels, after = rows.index_select(0, may_pay), pixels.index_select(0, may_pay), after.rows(may_pay)
    anew = images.rows(may_pay).decoded(codec, pixels)
    renewed_RM = by_cell(anew.cost_BN) + token_cost < by_cell(after.cost_BN)
    if on_cpu:
        pays = renewed_RM.any(1).nonzero()[:, 0]  # where no cell pays, all of them do not
        if not len(pays):
            return best
        rows, pixels, renewed_RM = (each.index_select(0, pays) for each in (rows, pixels, renewed_RM))
        after, anew = after.rows(pays), anew.rows(pays)
    before = before.rows(rows)
    global_RM = torch.where(renewed_RM, anew.global_BM, before.global_BM)
    in_part = _code_after(codec, pixels, before, global_RM, renewed_RM)
    cheapest = after
    for way in (in_part, anew):
        cheapest = cheapest.where(way.total_B(token_cost) < cheapest.total_B(token_cost), way)
    return best.with_rows(rows, cheapest)
