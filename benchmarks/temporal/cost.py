"""Frames of clips a second over images a second, one core, in turns; and where a frame's time goes.

    make bench-clips

Seconds are of this process's own CPU time. How often a frame is decoded to choose its cheapest way is most of what it
costs, and the same in every run.
"""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any
from unittest import mock

import torch
import typer

from benchmarks.temporal.clips import read_clip
from tatok.allocator import keep_freed_memory
from tatok.model.autoencoder import TaTok
from tatok.tokenizer.encoding import Encoding
from tatok.tokenizer.tokenizer import Tokenizer

__all__ = ["clip_costs"]

_STEPS = ("see", "full_rate_seen", "full_rate_after", "filter", "rebuild", "rebuild_after")
_DECODINGS = ("decode_codes", "decode_codes_after")


def clip_costs(tokenizer: Tokenizer, clips_BT3HW: torch.Tensor, *, turns: int) -> dict[str, Any]:
    """Milliseconds of a frame and of an image, their ratio in each turn, and steps and decodings of the last turn."""
    num_clips, num_frames = clips_BT3HW.shape[:2]
    images = clips_BT3HW.flatten(0, 1)
    frame_ms: list[float] = []
    image_ms: list[float] = []
    seconds: dict[str, float] = {}
    decodings: list[int] = []
    for turn in range(-1, turns):  # one warms up
        started = time.process_time()
        for first in range(0, len(images), num_clips):
            tokenizer.encode(images[first : first + num_clips])
        of_images = time.process_time() - started
        seconds, decodings = dict.fromkeys(_STEPS, 0.0), []
        with _timed(seconds), _counted(decodings):
            started = time.process_time()
            tokenizer.encode_clips(clips_BT3HW)
            of_frames = time.process_time() - started
        if turn >= 0:
            frame_ms.append(1e3 * of_frames / (num_clips * num_frames))
            image_ms.append(1e3 * of_images / (num_clips * num_frames))
    ratios = sorted(frame / image for frame, image in zip(frame_ms, image_ms, strict=True))
    return {
        "frame_ms": round(statistics.median(frame_ms), 1),
        "image_ms": round(statistics.median(image_ms), 1),
        "frame_over_image": [round(value, 2) for value in (statistics.median(ratios), ratios[0], ratios[-1])],
        "decodings_a_frame": round(sum(decodings) / (num_clips * num_frames), 2),
        "step_ms_a_frame": {step: round(1e3 * each / (num_clips * num_frames), 1) for step, each in seconds.items()},
    }


@contextmanager
def _timed(seconds: dict[str, float]) -> Iterator[None]:
    def timed(step: str, work: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **options: Any) -> Any:
            started = time.process_time()
            try:
                return work(*arguments, **options)
            finally:
                seconds[step] += time.process_time() - started

        return call

    patches = {step: timed(step, getattr(Encoding, step)) for step in _STEPS}
    with mock.patch.multiple(Encoding, **patches):
        yield


@contextmanager
def _counted(decodings: list[int]) -> Iterator[None]:
    """Add the frames of each decoding."""

    def counted(decode: Callable[..., Any]) -> Callable[..., Any]:
        def call(model: TaTok, codes: Any, *arguments: Any) -> Any:
            decodings.append(len(codes.patch_BN))
            return decode(model, codes, *arguments)

        return call

    patches = {name: counted(getattr(TaTok, name)) for name in _DECODINGS}
    with mock.patch.multiple(TaTok, **patches):
        yield


def main(
    videos: Annotated[list[Path], typer.Argument(help="Videos; the first frames of each make a clip.")],
    checkpoint: Annotated[Path | None, typer.Option(help="Default: the bundled one.")] = None,
    num_frames: int = 8,
    fps: float = 8.0,
    turns: int = 5,
) -> None:
    """Print what a frame and an image cost, as JSON: medians, and least and most of the ratio."""
    keep_freed_memory()
    torch.set_num_threads(1)
    clips = [read_clip(video, fps, num_frames) for video in videos]
    print(json.dumps(clip_costs(Tokenizer.load(checkpoint, "cpu"), torch.stack(clips), turns=turns)))


if __name__ == "__main__":
    typer.run(main)
