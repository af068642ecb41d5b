"""Thousands of opens of good and bad videos in one process: memory every so often, and whether anything hangs.

    make bench-video

Each open is a whole use: a small video is opened, every frame of it decoded and one converted. One video in five
is bad: cut, overwritten, empty or none. The memory is the process's resident set, so what a library leaks in C counts.
"""

from __future__ import annotations

import argparse
import gc
import json
import random
import resource
import sys
import time
from collections import Counter
from dataclasses import asdict, dataclass
from pathlib import Path

from tatok.pipeline.video.decord import DecordReader
from tatok.pipeline.video.pyav import PyAVReader
from tatok.schemas.errors import DecodeError
from tatok.schemas.job import Limits
from tests.support.synthetic_videos import noise, video_bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class OpensReport:
    """Resident memory after every `every` opens, from the first `every` on; `longest_s` is the slowest open."""

    decoder: str
    num_opens: int
    every: int
    resident_mib: list[float]
    outcomes: dict[str, int]
    longest_s: float
    seconds: float


def videos() -> tuple[list[bytes], list[bytes]]:
    """Good ones in several containers, and damaged copies of them."""
    good = [
        video_bytes(24, container=container, pictures=noise(24))
        for container in ("mp4", "mkv", "webm", "avi", "mpg", "mpegts")
    ]
    generator, bad = random.Random(0), [b"", b"no video"]
    for video in good:
        bad.append(video[: 2 * len(video) // 3])
        broken = bytearray(video)
        broken[len(video) // 2 : len(video) // 2 + 64] = generator.randbytes(64)
        bad.append(bytes(broken))
    return good, bad


def measure(decoder: str, num_opens: int, every: int, *, strict: bool = True) -> OpensReport:
    """Open `num_opens` videos one after the other."""
    good, bad = videos()
    reader_of = {"pyav": PyAVReader, "decord": DecordReader}[decoder]
    outcomes, resident, longest_s, started = Counter[str](), list[float](), 0.0, time.monotonic()
    for number in range(num_opens):
        payload = good[number % len(good)] if number % 5 else bad[number // 5 % len(bad)]
        began = time.monotonic()
        outcome = "whole"
        try:
            with reader_of(payload, Limits(), strict=strict) as reader:
                for count, frame in enumerate(reader.frames()):
                    if count == 12:
                        frame.rgb()
        except DecodeError as error:
            outcome = error.reason
        outcomes[outcome] += 1
        longest_s = max(longest_s, time.monotonic() - began)
        if (number + 1) % every == 0:
            gc.collect()
            resident.append(resident_mib())
            print(f"{decoder}: {number + 1} opens, {resident[-1]:.1f} MiB", file=sys.stderr, flush=True)
    return OpensReport(
        decoder=decoder if strict else f"{decoder}, alone",
        num_opens=num_opens,
        every=every,
        resident_mib=resident,
        outcomes=dict(outcomes),
        longest_s=longest_s,
        seconds=time.monotonic() - started,
    )


def resident_mib() -> float:
    """Resident memory of this process now."""
    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    return pages * resource.getpagesize() / (1 << 20)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--opens", type=int, default=10_000)
    parser.add_argument("--every", type=int, default=1_000)
    parser.add_argument("--decoder", choices=["pyav", "decord"], default="pyav")
    parser.add_argument("--alone", action="store_true", help="decord without PyAV beside it")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    report = measure(options.decoder, options.opens, options.every, strict=not options.alone)
    text = json.dumps(asdict(report), indent=1)
    print(text)
    if options.json:
        options.json.write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
