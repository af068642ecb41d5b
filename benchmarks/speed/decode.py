"""Photos a second on one core, by preprocessing.decoder: the same photos through both, in turns.

python -m benchmarks.speed.decode ../shared/corpus/photos-raw-000{0..3}.tar

Seconds are of this process's own CPU time, so that neighbours on the machine disturb less; the best pass counts.
"""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
import torch
import typer

from tatok.pipeline.decode.sample import decode_sample
from tatok.pipeline.planning.plan import plan_shards
from tatok.pipeline.readers.read import ReadOptions, read_samples
from tatok.pipeline.tokenization.fingerprint import decoder_identity
from tatok.schemas.job import Limits
from tatok.schemas.preprocessing import Preprocessing
from tatok.schemas.records import Clip, Sample

Decoder = Literal["pillow", "simplejpeg"]
DECODERS: tuple[Decoder, ...] = ("pillow", "simplejpeg")


def photos_of(sources: list[str], limit: int) -> list[Sample]:
    photos: list[Sample] = []
    for shard in plan_shards(sources):
        for sample in read_samples(shard, ReadOptions(max_sample_bytes=64 << 20)):
            if isinstance(sample, Sample) and sample.extension in ("jpg", "jpeg"):
                photos.append(sample)
            if len(photos) == limit:
                return photos
    return photos


def measure(photos: list[Sample], *, image_size: int, passes: int) -> dict[str, object]:
    """Photos a second of each decoder, and how far their pixels are apart (of 255)."""
    recipes = {name: Preprocessing(image_size=image_size, decoder=name) for name in DECODERS}
    seconds: dict[Decoder, list[float]] = {name: [] for name in DECODERS}
    largest, means, num_compared = 0, 0.0, 0
    for number in range(passes):
        spent = dict.fromkeys(DECODERS, 0.0)
        for photo in photos:
            clips = {}
            for name in DECODERS[:: 1 if number % 2 else -1]:
                start = time.process_time()
                [clips[name]] = decode_sample(photo, recipes[name], Limits())
                spent[name] += time.process_time() - start
            slow, fast = clips["pillow"], clips["simplejpeg"]
            if number == 0 and isinstance(slow, Clip) and isinstance(fast, Clip):
                difference = np.abs(slow.pixels.astype(int) - fast.pixels)
                largest, means = max(largest, int(difference.max())), means + float(difference.mean())
                num_compared += 1
        for name in DECODERS:
            seconds[name].append(spent[name])
    rates = {name: round(len(photos) / min(seconds[name]), 1) for name in DECODERS}
    return {
        "photos": len(photos),
        "image_size": image_size,
        "photos_per_cpu_second": rates,
        "every_pass": {name: [round(len(photos) / each, 1) for each in seconds[name]] for name in DECODERS},
        "speedup": round(rates["simplejpeg"] / rates["pillow"], 2),
        "max_difference": largest,
        "mean_difference": round(means / max(num_compared, 1), 4),
        "versions": decoder_identity("simplejpeg"),
    }


def main(
    sources: list[str],
    limit: int = 320,
    image_size: int = 256,
    passes: int = 3,
    out: Annotated[Path | None, typer.Option("--json", help="Where to write the figures too.")] = None,
) -> None:
    """Compare the two decoders on the JPEGs of WebDataset tars."""
    torch.set_num_threads(1)
    text = json.dumps(measure(photos_of(sources, limit), image_size=image_size, passes=passes), indent=1)
    print(text)
    if out is not None:
        out.write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    typer.run(main)
