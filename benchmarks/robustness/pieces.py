"""Damaged copies of videos, whole and in pieces: do pieces ever say other than the whole does?

    make bench-pieces

A long video is decoded in pieces by several processes (docs/decisions/work-inside-a-shard.md); what a damaged one still
gives is for the whole to say. So the clips of the pieces before one fails must be the first of the whole's, and where
none fails, the whole must be undamaged to its end and have these clips and no others. Copies are damaged at places
drawn by chance, in the ways of `make bench-damage` and two more, and read by three settings in turn.
"""

from __future__ import annotations

import argparse
import io
import json
import random
import sys
import zlib
from collections import Counter
from collections.abc import Iterable, Mapping
from itertools import cycle, islice, product
from pathlib import Path
from typing import Literal

from benchmarks.robustness.damage import KINDS
from tatok.pipeline.video.clips import VideoView, decode_video
from tatok.pipeline.video.pieces import cut_video, decode_piece
from tatok.schemas.errors import DecodeError
from tatok.schemas.job import Limits, Preprocessing
from tatok.schemas.preprocessing import Video

__all__ = ["Outcome", "measure", "outcome"]

Outcome = Literal["not cut", "equal", "a piece failed, equal before", "OTHER"]

_LIMITS, _SMALL = Limits(), Preprocessing(image_size=64)
_PIECE_TAKEN = 20  # frames: pieces as short as they may be
_SETTINGS = (
    Video(frames_per_clip=8),
    Video(frames_per_clip=8, fps=8.0, last_clip="keep"),
    Video(frames_per_clip=8, stride=3, overlap_frames=2),
)


def zeroed(video: bytes, generator: random.Random) -> bytes:
    """300 bytes are 0."""
    at = generator.randrange(len(video) - 300)
    return video[:at] + bytes(300) + video[at + 300 :]


def inserted(video: bytes, generator: random.Random) -> bytes:
    """50 bytes too many."""
    at = generator.randrange(len(video))
    return video[:at] + generator.randbytes(50) + video[at:]


WAYS = {**KINDS, "300 bytes zeroed": zeroed, "50 bytes inserted": inserted}


def outcome(video: bytes, settings: Video, *, first_clip: int = 0) -> Outcome:
    """What pieces from a clip on are beside the whole."""
    whole, is_good = list[int](), True
    try:
        whole.extend(_checksums(decode_video(video, _SMALL, settings, _LIMITS, sample_id="video")))
    except DecodeError:
        is_good = False
    if first_clip > len(whole):
        return "not cut"
    found, has_failed, source = list[int](), False, io.BytesIO(video)
    try:
        pieces = cut_video(source, settings, _LIMITS, first_clip=first_clip, piece_taken=_PIECE_TAKEN)
    except DecodeError:
        return "not cut"
    try:
        for piece in pieces:
            found.extend(_checksums(decode_piece(source, piece, _SMALL, settings, _LIMITS, sample_id="video")))
    except DecodeError:
        has_failed = True
    if not pieces:
        return "not cut"
    expected = whole[first_clip:]
    if has_failed:
        return "a piece failed, equal before" if found == expected[: len(found)] else "OTHER"
    return "equal" if is_good and found == expected else "OTHER"


def _checksums(views: Iterable[VideoView]) -> Iterable[int]:
    for each in views:
        yield zlib.crc32(each.view.pixels.tobytes(), zlib.crc32(repr(each.view.frame_pts_s).encode()))


def measure(videos: Mapping[str, bytes], num_copies: int) -> dict[str, dict[Outcome, int]]:
    """Of each video undamaged, and of `num_copies` copies of it: how often what came of it."""
    found = dict[str, dict[Outcome, int]]()
    for name, video in videos.items():
        generator = random.Random(f"pieces of {name}")
        counts = Counter(outcome(video, settings) for settings in _SETTINGS)
        for way, settings in islice(cycle(product(WAYS.values(), _SETTINGS)), num_copies):
            counts[outcome(way(video, generator), settings, first_clip=generator.choice((0, 1, 2)))] += 1
        found[name] = dict(sorted(counts.items()))
        print(name, found[name], file=sys.stderr, flush=True)
    return found


def main() -> int:
    """Print the counts; exit code 1 where a piece was other than the whole."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--copies", type=int, default=60, help="of each video")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    paths = sorted(path for path in options.folder.iterdir() if path.is_file())
    found = measure({path.name: path.read_bytes() for path in paths}, options.copies)
    text = json.dumps({"copies": options.copies, "videos": found}, indent=1)
    print(text)
    if options.json:
        options.json.write_text(text + "\n", encoding="utf-8")
    return int(any(counts.get("OTHER", 0) for counts in found.values()))


if __name__ == "__main__":
    raise SystemExit(main())
