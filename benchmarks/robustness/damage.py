"""Damaged copies of videos: how many are told, with the second, and whether every frame before that is a good one.

    make bench-damage

Three kinds of copies of each video, at places drawn by chance over the whole file: one bit flipped, 64 bytes
overwritten, cut short. Each is decoded to its end under strict integrity, and every frame's pixels are compared with
those of the undamaged video.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import zlib
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from tatok.pipeline.video.pyav import PyAVReader
from tatok.pipeline.video.reader import VideoDamage
from tatok.schemas.errors import DecodeError
from tatok.schemas.job import Limits

Outcome = Literal["told", "told without a second", "harmless", "unseen", "spoilt"]
"""`harmless`: no reject, all frames as they were. `unseen`: no reject, other frames. `spoilt`: a reject, after frames
that are not those of the video."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DamageReport:
    """What became of `num_copies` copies of one video; `outcomes` are counts by Outcome."""

    video: str
    codec: str
    num_frames: int
    kind: str
    num_copies: int
    outcomes: dict[str, int]


def flipped(video: bytes, generator: random.Random) -> bytes:
    """One bit is another."""
    copy = bytearray(video)
    copy[generator.randrange(len(copy))] ^= 1 << generator.randrange(8)
    return bytes(copy)


def overwritten(video: bytes, generator: random.Random) -> bytes:
    """64 bytes are others."""
    at = generator.randrange(len(video) - 64)
    return video[:at] + generator.randbytes(64) + video[at + 64 :]


def cut(video: bytes, generator: random.Random) -> bytes:
    """The end is missing."""
    return video[: generator.randrange(1, len(video))]


KINDS: Mapping[str, Callable[[bytes, random.Random], bytes]] = {
    "one bit flipped": flipped,
    "64 bytes overwritten": overwritten,
    "cut short": cut,
}


def damaged_copies(name: str, video: bytes, kind: str, num_copies: int) -> Iterator[bytes]:
    """Copies of a video, damaged in one way at places that its name decides."""
    generator = random.Random(f"{name} {kind}")
    return (KINDS[kind](video, generator) for _ in range(num_copies))


def measure(videos: Mapping[str, bytes], copies: Mapping[str, int]) -> list[DamageReport]:
    """Damage each video `copies[kind]` times in each way; raises ValueError for one that is damaged as it is."""
    reports = []
    for name, video in videos.items():
        with PyAVReader(video, Limits()) as reader:
            codec = reader.info.codec
        good, damage = decode(video)
        if damage is not None:
            raise ValueError(f"{name} is damaged before anything was done to it: {damage.detail}")
        for kind, num_copies in copies.items():
            outcomes = Counter(outcome(copy, good) for copy in damaged_copies(name, video, kind, num_copies))
            reports.append(
                DamageReport(
                    video=name,
                    codec=codec,
                    num_frames=len(good),
                    kind=kind,
                    num_copies=num_copies,
                    outcomes=dict(sorted(outcomes.items())),
                )
            )
            print(reports[-1], file=sys.stderr, flush=True)
    return reports


def outcome(copy: bytes, good: list[tuple[float, int]]) -> Outcome:
    """What becomes of a damaged copy of a video whose frames are `good`."""
    frames, damage = decode(copy)
    if damage is None:
        return "harmless" if frames == good else "unseen"
    if frames != good[: len(frames)]:
        return "spoilt"
    return "told" if isinstance(damage, VideoDamage) else "told without a second"


def decode(video: bytes) -> tuple[list[tuple[float, int]], DecodeError | None]:
    """Each frame's time stamp and a checksum of its pixels, up to the damage."""
    frames: list[tuple[float, int]] = []
    try:
        with PyAVReader(video, Limits()) as reader:
            for frame in reader.frames():
                frames.append((frame.pts_s, zlib.crc32(frame.rgb())))
    except DecodeError as damage:
        return frames, damage
    return frames, None


def command(
    description: str | None, measure: Callable[[Mapping[str, bytes], Mapping[str, int]], Sequence[Any]]
) -> None:
    """The command of a bench that damages the videos of a folder: `measure` gives reports, which are dataclasses."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--flips", type=int, default=40)
    parser.add_argument("--others", type=int, default=15)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    paths = sorted(path for path in options.folder.iterdir() if path.is_file())
    copies = {kind: options.flips if kind == "one bit flipped" else options.others for kind in KINDS}
    reports = measure({path.name: path.read_bytes() for path in paths}, copies)
    text = json.dumps([asdict(report) for report in reports], indent=1)
    print(text)
    if options.json:
        options.json.write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    command(__doc__, measure)
