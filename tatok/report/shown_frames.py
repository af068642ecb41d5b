"""Which frames of a clip stand for it in a picture, and what there is to show of each."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from tatok.schemas.records import TokenSequence
from tatok.tokenizer.frames import split_frames

__all__ = ["ShownFrame", "frame_sheet", "shown_frames", "spread_frames"]

_GAP_SHARE = 32
_GAP_GREY = 226


@dataclass(frozen=True, slots=True, kw_only=True)
class ShownFrame:
    """One frame of a clip, `number` from 0; an image has one.

    `sequence` holds the frame's own tokens, or those that it shares with the frames beside it. `original` and `rebuilt`
    are uint8 [3, H, W]; a str stands for one that is missing, and says why.
    """

    number: int
    sequence: TokenSequence
    original: np.ndarray | str
    rebuilt: np.ndarray | str


def spread_frames(num_frames: int, most: int) -> list[int]:
    """At most `most` of the frames 0 .. num_frames - 1, evenly from the first to the last."""
    if most == 1:
        return [0]
    return sorted({round(step) for step in np.linspace(0, num_frames - 1, min(most, num_frames))})


def shown_frames(
    sequence: TokenSequence, original: np.ndarray | str, rebuilt: np.ndarray | str, *, most: int
) -> tuple[ShownFrame, ...]:
    """At most `most` frames of a clip; its `original` and `rebuilt` are uint8 [T, 3, H, W], or a str instead.

    Raises ValueError where the sequence does not tell its frames apart.
    """
    num_frames = sequence.grid.frames if sequence.num_frames is None else sequence.num_frames
    if not isinstance(original, str) and len(original) != num_frames:
        original = f"no original: the source has {len(original)} frames now, the tokens {num_frames}"
    steps = split_frames(sequence)
    return tuple(
        ShownFrame(
            number=number,
            sequence=steps[number * len(steps) // num_frames],
            original=original if isinstance(original, str) else original[number],
            rebuilt=rebuilt if isinstance(rebuilt, str) else rebuilt[number],
        )
        for number in spread_frames(num_frames, most)
    )


def frame_sheet(pictures_HW3: Sequence[np.ndarray]) -> np.ndarray:
    """Pictures of one size, uint8 [H, W, 3], two in a row with a thin gap; a single one stays as it is.

    Tiny ones are enlarged by a whole factor first, so that the gap stays thin.
    """
    first = pictures_HW3[0]
    if len(pictures_HW3) == 1:
        return first
    factor = max(_GAP_SHARE // first.shape[0], 1)
    height, width = first.shape[0] * factor, first.shape[1] * factor
    gap, num_rows = max(height // _GAP_SHARE, 1), -(-len(pictures_HW3) // 2)
    sheet = np.full((num_rows * (height + gap) - gap, 2 * width + gap, 3), _GAP_GREY, np.uint8)
    for number, picture in enumerate(pictures_HW3):
        top, left = number // 2 * (height + gap), number % 2 * (width + gap)
        sheet[top : top + height, left : left + width] = picture.repeat(factor, axis=0).repeat(factor, axis=1)
    return sheet
