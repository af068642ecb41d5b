"""docs/results/temporal.md out of the results of clips.py."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

__all__ = ["STATIC_CAMERAS", "TRAINING_HEADING", "ClipResult", "Point", "document", "split_document"]

STATIC_CAMERAS = ("bottle-detection", "car-detection", "opencvdoc_box")

TRAINING_HEADING = "## Training on clips\n"

_COLUMNS = (
    "clip",
    "camera",
    "frames",
    "frames a s",
    "threshold",
    "temporal: tokens a s",
    "PSNR",
    "frame by frame: tokens a s",
    "PSNR",
    "ratio at equal PSNR",
)

_HEAD = """# Temporal TaTok on real clips

Written by `make bench-temporal` (`benchmarks/temporal/clips.py`) out of [temporal.json](temporal.json).
None of these clips was trained on: the checkpoint has seen photos only, and temporal coding adds no weights to it
([the method](../explanation/method.md)).

The first frames of each clip at the rate given, centre-cropped to {side}x{side}. PSNR is that of the mean squared error
over the clip. *Frame by frame* is `temporal: false`, at the same threshold. The ratio is temporal tokens over those
that frame-by-frame coding needs for the *same PSNR*, read off its curve over thresholds (linear between the points
measured). Where temporal PSNR lies above that curve, the curve's last count stands, which flatters frame by frame;
where it lies below what globals alone give, there is no ratio. The wanted: at most 0.5 for static cameras, at most 1
for the others. Short samples: each row tells how many frames it rests on (the default is 64 at 8 a second), and the
fewer there are the more the first frame weighs, which is coded as an image.

"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Point:
    """What coding a clip at one threshold came to; `renewed` are the globals after the first frame's."""

    threshold: float
    tokens: int
    psnr_db: float
    renewed: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class ClipResult:
    """The points of one clip; the first of `temporal` is at the checkpoint's threshold."""

    name: str
    num_frames: int
    fps: float
    temporal: list[Point]
    frame_by_frame: list[Point]
    encode_frames_per_s: float

    def ratio(self, point: Point) -> float | None:
        """Tokens of a temporal point over those of frame by frame at its PSNR; None below the PSNR of globals alone.

        Above the highest PSNR that was measured frame by frame the tokens there are taken, which are too few.
        """
        curve = sorted((p.psnr_db, p.tokens) for p in self.frame_by_frame)
        if point.psnr_db < curve[0][0]:
            return None
        return point.tokens / float(np.interp(point.psnr_db, *zip(*curve, strict=True)))


def split_document(path: Path) -> tuple[str, str]:
    """What is in a document, the part on training on clips apart, which training.py writes."""
    text = path.read_text(encoding="utf-8") if path.exists() else ""
    head, heading, training = text.partition(TRAINING_HEADING)
    return head, heading + training


def document(results: Sequence[ClipResult], about: Mapping[str, object]) -> str:
    """The whole text."""
    lines = []
    for result in sorted(results, key=lambda result: (result.name not in STATIC_CAMERAS, result.name)):
        camera = "static" if result.name in STATIC_CAMERAS else "moving, cuts, or close-up"
        seconds = result.num_frames / result.fps
        for point in result.temporal:
            ratio = result.ratio(point)
            same = min(result.frame_by_frame, key=lambda p: abs(p.threshold - point.threshold))
            lines.append(
                f"| {result.name} | {camera} | {result.num_frames} | {result.fps:g} | {point.threshold:g} | "
                f"{point.tokens / seconds:,.0f} | {point.psnr_db:.2f} | {same.tokens / seconds:,.0f} | "
                f"{same.psnr_db:.2f} | {'-' if ratio is None else f'{ratio:.2f}'} |"
            )
    head = [f"| {' | '.join(_COLUMNS)} |", "|---" * len(_COLUMNS) + "|"]
    wanted = {result.name: 0.5 if result.name in STATIC_CAMERAS else 1.0 for result in results}
    missed = [
        f"{result.name} ({ratio:.3f})"
        for result in results
        for ratio in [result.ratio(result.temporal[0])]
        if ratio is not None and ratio > wanted[result.name]
    ]
    unrated = []
    for result in results:
        poorest, point = min(result.frame_by_frame, key=lambda p: p.psnr_db), result.temporal[0]
        if result.ratio(point) is None:
            unrated.append(
                f"{result.name} ({point.tokens} tokens at {point.psnr_db:.2f} dB; "
                f"globals alone, {poorest.tokens} tokens at {poorest.psnr_db:.2f} dB)"
            )
    verdict = f"\nMissed: {', '.join(missed) or 'none'}. Without a ratio: {', '.join(unrated) or 'none'}."
    return _HEAD.format(**about) + "\n".join([*head, *lines, verdict]) + "\n"
