"""The token sequences of single frames <-> that of their clip."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from tatok.schemas.records import EntropyStatistics, Grid, TokenSequence

__all__ = ["join_frames", "split_frames"]


def join_frames(frames: Sequence[TokenSequence]) -> TokenSequence:
    """One clip of frames of one grid, each a sequence of one frame; its `global_cells` say which globals it has.

    A single frame is an image, and becomes one: it has all globals, and need not say.
    """
    first = frames[0]
    if len(frames) == 1:
        return replace(first, global_frames=None, global_cells=None)
    cells = [np.arange(f.num_global) if f.global_cells is None else f.global_cells for f in frames]
    positions = [f.positions.astype(np.int64) + t * first.grid.num_positions for t, f in enumerate(frames)]
    entropies = [frame.entropy for frame in frames if frame.entropy is not None]
    worths = [entropy.patch_worth_bits_N for entropy in entropies if entropy.patch_worth_bits_N is not None]
    return TokenSequence(
        codes=np.concatenate([f.codes[: f.num_global] for f in frames] + [f.codes[f.num_global :] for f in frames]),
        positions=np.concatenate(positions).astype(first.positions.dtype),
        num_global=sum(frame.num_global for frame in frames),
        grid=Grid(len(frames), first.grid.height, first.grid.width),
        entropy=None
        if len(entropies) < len(frames)
        else EntropyStatistics(
            entropy_bits=sum(entropy.entropy_bits for entropy in entropies),
            kept_entropy_bits=sum(entropy.kept_entropy_bits for entropy in entropies),
            residual_bits=sum(entropy.residual_bits for entropy in entropies),
            surprisal_bits=sum(entropy.surprisal_bits for entropy in entropies),
            entropy_mean_bits=sum(entropy.entropy_mean_bits for entropy in entropies) / len(entropies),
            entropy_max_bits=max(entropy.entropy_max_bits for entropy in entropies),
            patch_entropy_bits_N=np.concatenate([entropy.patch_entropy_bits_N for entropy in entropies]),
            patch_worth_bits_N=np.concatenate(worths) if len(worths) == len(frames) else None,
        ),
        global_frames=np.repeat(np.arange(len(frames)), [len(of_frame) for of_frame in cells]).astype(np.uint16),
        global_cells=np.concatenate(cells).astype(np.uint16),
    )


def split_frames(clip: TokenSequence) -> list[TokenSequence]:
    """The frames of a clip, as `join_frames` took them, but for their sums of entropies, which stay the clip's."""
    if clip.global_frames is None or clip.global_cells is None:
        if clip.grid.frames != 1:
            raise ValueError(f"a clip of {clip.grid.frames} frames without global_frames and global_cells")
        return [clip]
    num_frames, height, width = clip.grid
    num_positions = height * width
    positions, globals_, patches = clip.positions.astype(np.int64), *np.split(clip.codes, [clip.num_global])
    patch_cuts = np.searchsorted(positions, np.arange(1, num_frames) * num_positions)
    global_cuts = np.searchsorted(clip.global_frames, np.arange(1, num_frames))
    entropies = _split_entropy(clip.entropy, num_frames)
    return [
        TokenSequence(
            codes=np.concatenate([global_codes, patch_codes]),
            positions=(places - number * num_positions).astype(clip.positions.dtype),
            num_global=len(global_codes),
            grid=Grid(1, height, width),
            entropy=entropy,
            global_cells=cells,
        )
        for number, (global_codes, cells, patch_codes, places, entropy) in enumerate(
            zip(
                np.split(globals_, global_cuts),
                np.split(clip.global_cells, global_cuts),
                np.split(patches, patch_cuts),
                np.split(positions, patch_cuts),
                entropies,
                strict=True,
            )
        )
    ]


def _split_entropy(of_clip: EntropyStatistics | None, num_frames: int) -> list[EntropyStatistics | None]:
    if of_clip is None:
        return [None] * num_frames
    worth_N = of_clip.patch_worth_bits_N
    worths = [None] * num_frames if worth_N is None else np.split(worth_N, num_frames)
    return [
        replace(of_clip, patch_entropy_bits_N=bits_N, patch_worth_bits_N=worths_N)
        for bits_N, worths_N in zip(np.split(of_clip.patch_entropy_bits_N, num_frames), worths, strict=True)
    ]
