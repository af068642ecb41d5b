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
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from tatok.schemas.errors import ConfigError
from tatok.schemas.records import TokenSequence
from tatok.schemas.token_batch import TokenBatch
from tatok.schemas.tokens import MAX_POSITIONS
from tatok.tokenizer.codec import Codec, PendingTokens
from tatok.tokenizer.frames import join_frames, split_frames
from tatok.tokenizer.launching import sent

__all__ = ["DoneTokens", "decode_clips", "encode_clips_async"]


class DoneTokens:
    """A `Pending` batch that is done."""

    def __init__(self, batch: TokenBatch) -> None:
        self._batch = batch

    def is_done(self) -> bool:
        """It is."""
        return True

    def wait(self) -> None:
        """Return at once."""

    def result(self) -> TokenBatch:
        """One sequence a clip, in order."""
        return self._batch


def encode_clips_async(codec: Codec, pixels_BT3HW: Tensor) -> PendingTokens | DoneTokens:
    """`Tokenizer.encode_clips_async`."""
    _check_pixels(codec, pixels_BT3HW)
    if pixels_BT3HW.shape[1] == 1:
        return codec.encode_async(pixels_BT3HW[:, 0])
    return DoneTokens(_encode_frames(codec, pixels_BT3HW))


@torch.inference_mode()
def _encode_frames(codec: Codec, pixels_BT3HW: Tensor) -> TokenBatch:
    pixels_of_frames = sent(pixels_BT3HW, codec.device).unbind(1)
    frames: Sequence[Sequence[TokenSequence]]
    if not codec.dtf.temporal:
        frames = [pending.result() for pending in [codec.encode_async(pixels) for pixels in pixels_of_frames]]
    else:
        frames = _frames_that_follow(codec, pixels_of_frames)
    return TokenBatch.of([join_frames(clip) for clip in zip(*frames, strict=True)])


def _frames_that_follow(codec: Codec, pixels_of_frames: Sequence[Tensor]) -> list[list[TokenSequence]]:
    """The frames of all clips, frame by frame."""
    first = pixels_of_frames[0]
    coded = codec.following.first(first)
    parts = [coded.part()]
    for pixels in pixels_of_frames[1:]:
        coded = codec.following.next(pixels, coded)
        parts.append(coded.part())
    num_global, grid = codec.num_global, codec.checked_grid(first)
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
    codec.checked_grid(pixels_BT3HW[:, 0])
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
