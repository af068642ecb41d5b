"""Temporal TaTok against TaTok frame by frame on real clips: tokens a second of video, PSNR, tokens at equal PSNR.

    python -m benchmarks.temporal.clips ../shared/corpus/video --json docs/results/temporal.json \
        --document docs/results/temporal.md

Each clip is coded frame by frame at a range of thresholds, which gives its curve of tokens over PSNR, and temporally at
the checkpoint's threshold (times each --factor); the ratio is that of the tokens at the PSNR that temporal coding had.
PSNR is that of the mean squared error over the whole clip. Clips that are in the JSON file are not done again.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import av
import numpy as np
import torch
from PIL import Image
from torch import Tensor

from benchmarks.temporal.report import ClipResult, Point, document, split_document
from tatok import Tokenizer
from tatok.evaluation.calibration import EncodedPhotos

SIDE = 256
FACTORS = (1 / 4, 1 / 2, 1.0, 2.0, 1e9)  # thresholds frame by frame; the last leaves globals only


def psnr(rebuilt: Tensor, pixels: Tensor) -> float:
    """In dB, of uint8 images."""
    return -10 * math.log10(max(float(((rebuilt.double() - pixels.double()) / 255).square().mean()), 1e-12))


def read_clip(path: Path, fps: float, num_frames: int) -> Tensor:
    """The first frames of a video at a rate, centre-cropped, uint8 [T, 3, 256, 256]; T is less where it ends sooner."""
    frames: list[np.ndarray] = []
    with av.open(path) as container:
        first = due = None
        for frame in container.decode(video=0):
            first = frame.time if first is None else first
            due = first if due is None else due
            if frame.time < due - 1e-6:
                continue
            due = first + (len(frames) + 1) / fps
            image = frame.to_image()
            scale = SIDE / min(image.size)
            image = image.resize([max(SIDE, round(side * scale)) for side in image.size], Image.Resampling.BICUBIC)
            left, top = ((side - SIDE) // 2 for side in image.size)
            frames.append(np.asarray(image.crop((left, top, left + SIDE, top + SIDE))).transpose(2, 0, 1))
            if len(frames) == num_frames:
                break
    return torch.from_numpy(np.stack(frames))


def measure(
    tokenizer: Tokenizer, name: str, clip_T3HW: Tensor, fps: float, *, factors: Sequence[float] = (1.0,)
) -> ClipResult:
    """Code a clip both ways."""
    threshold, temporal = tokenizer.dtf.threshold, []
    began = time.process_time()
    for factor in factors:
        priced = tokenizer.with_dtf(threshold=threshold * factor)
        (sequence,) = priced.encode_clips(clip_T3HW[None])
        point = Point(
            threshold=priced.dtf.threshold,
            tokens=sequence.num_tokens,
            psnr_db=psnr(priced.decode_clips([sequence])[0], clip_T3HW),
            renewed=sequence.num_global - tokenizer.num_global,
        )
        temporal.append(point)
    seconds = time.process_time() - began
    frames = EncodedPhotos(tokenizer, clip_T3HW)
    one_by_one = []
    for factor in FACTORS:
        kept = [f.kept_BN for f in frames.filter(tokenizer.dtf.with_threshold(threshold * factor))]
        rebuilt = torch.cat([tokenizer.rebuild(full, of_full) for full, of_full in zip(frames.full, kept, strict=True)])
        tokens = sum(int(of_full.sum()) for of_full in kept) + tokenizer.num_global * len(clip_T3HW)
        one_by_one.append(Point(threshold=threshold * factor, tokens=tokens, psnr_db=psnr(rebuilt, clip_T3HW)))
    return ClipResult(
        name=name,
        num_frames=len(clip_T3HW),
        fps=fps,
        temporal=temporal,
        frame_by_frame=one_by_one,
        encode_frames_per_s=len(factors) * len(clip_T3HW) / max(seconds, 1e-9),
    )


def result_of(values: dict) -> ClipResult:
    """A clip's result out of JSON."""
    points = {name: [Point(**point) for point in values[name]] for name in ("temporal", "frame_by_frame")}
    return ClipResult(**(values | points))


def main() -> None:
    """Measure the clips that are not in the JSON file yet, and write the document from all that are."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("videos", type=Path, help="folder of videos")
    parser.add_argument("--json", type=Path, required=True)
    parser.add_argument("--document", type=Path, required=True)
    parser.add_argument("--fps", type=float, default=8.0)
    parser.add_argument("--frames", type=int, default=64)
    parser.add_argument("--factor", type=float, action="append", help="of the checkpoint's threshold; default: 1")
    parser.add_argument("--clip", action="append", help="only clips whose name starts so; default: all")
    options = parser.parse_args()
    tokenizer = Tokenizer.load(device="cpu")
    about = {"fingerprint": tokenizer.fingerprint, "side": SIDE}
    results: list[ClipResult] = []
    if options.json.exists():
        stored = json.loads(options.json.read_text(encoding="utf-8"))
        if stored["about"] == about:
            results = [result_of(values) for values in stored["clips"]]
    for path in sorted(options.videos.iterdir()):
        is_wanted = options.clip is None or path.stem.startswith(tuple(options.clip))
        if not is_wanted or path.stem in {result.name for result in results}:
            continue
        clip = read_clip(path, options.fps, options.frames)
        results.append(measure(tokenizer, path.stem, clip, options.fps, factors=options.factor or (1.0,)))
        print(path.stem, results[-1].ratio(results[-1].temporal[0]), flush=True)
        text = json.dumps({"about": about, "clips": [asdict(result) for result in results]}, indent=1)
        options.json.write_text(text + "\n", encoding="utf-8")
    _, training = split_document(options.document)
    text = document(results, about) + (f"\n{training}" if training else "")
    options.document.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
