"""Damage that only the decoder's own word finds: what would pass if it said nothing, as a GPU's decoder does?

    make bench-silent-decoder

FFmpeg's decoders of H.264 and MPEG-2 say which frame they met an error in. A hardware decoder is handed the bytes of
whole frames and gives pictures; what it met on the way FFmpeg does not ask it. Here FFmpeg's own decoder is kept from
saying anything: its errors and marks are dropped, and all else of strict integrity stays, what container, packets,
stamps and missing frames say. The copies are those of `make bench-damage`.
"""

from __future__ import annotations

import io
import sys
import time
import zlib
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import av
from av.error import FFmpegError

from benchmarks.robustness.damage import command, damaged_copies, decode
from benchmarks.robustness.damage import outcome as with_its_word
from tatok.pipeline.video.integrity import trusted_frames
from tatok.schemas.errors import DecodeError

__all__ = ["Outcome", "SilentReport", "decode_silently", "measure", "outcome"]

Outcome = Literal["reported", "reported after spoilt frames", "unseen", "no frame changed"]


class _SilentFrame:
    is_corrupt = False

    def __init__(self, frame: Any) -> None:
        self._frame = frame

    def __getattr__(self, name: str) -> Any:
        return getattr(self._frame, name)


class _SilentCodec:
    def __init__(self, codec: Any) -> None:
        codec.thread_type, codec.thread_count, codec.copy_opaque = "NONE", 1, True
        self._codec = codec

    def decode(self, packet: Any) -> list[_SilentFrame]:
        try:
            return [_SilentFrame(frame) for frame in self._codec.decode(packet)]
        except FFmpegError:
            return []

    def __getattr__(self, name: str) -> Any:
        return getattr(self._codec, name)


class _SilentStream:
    def __init__(self, stream: Any) -> None:
        self._stream, self.codec_context = stream, _SilentCodec(stream.codec_context)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def decode_silently(video: bytes) -> tuple[list[tuple[float, int]], DecodeError | None]:
    """`damage.decode`, by a decoder that reports nothing."""
    frames: list[tuple[float, int]] = []
    try:
        with av.open(io.BytesIO(video)) as container:
            for timed in trusted_frames(container, _SilentStream(container.streams.video[0]), ends_in_a_packet=False):
                frames.append((timed.pts_s, zlib.crc32(timed.frame.to_ndarray(format="rgb24"))))
    except (FFmpegError, IndexError) as error:
        return frames, DecodeError("not_a_video", str(error))
    except DecodeError as damage:
        return frames, damage
    return frames, None


def outcome(copy: bytes, good: list[tuple[float, int]]) -> Outcome:
    """What becomes of a damaged copy of a video whose frames are `good`, where the decoder is silent."""
    frames, damage = decode_silently(copy)
    if damage is None:
        return "no frame changed" if frames == good else "unseen"
    return "reported" if frames == good[: len(frames)] else "reported after spoilt frames"


@dataclass(frozen=True, slots=True, kw_only=True)
class SilentReport:
    """Of the damaged copies of a video that strict integrity reports: kind of damage -> outcome -> how many.

    `decode_s` is the CPU time in which one process decodes the whole video, frames turned to RGB.
    """

    video: str
    num_frames: int
    decode_s: float
    outcomes: dict[str, dict[str, int]]


def measure(videos: Mapping[str, bytes], copies: Mapping[str, int]) -> list[SilentReport]:
    """Damage each video `copies[kind]` times in each way, as `damage.measure` does; the copies are the same."""
    reports = []
    for name, video in videos.items():
        started = time.process_time()
        good, _ = decode(video)
        decode_s = time.process_time() - started
        if decode_silently(video) != (good, None):
            raise ValueError(f"{name} is decoded otherwise without the decoder's word, or damaged as it is")
        outcomes = {}
        for kind, num_copies in copies.items():
            damaged = damaged_copies(name, video, kind, num_copies)
            told = [copy for copy in damaged if with_its_word(copy, good).startswith("told")]
            outcomes[kind] = dict(sorted(Counter(outcome(copy, good) for copy in told).items()))
        reports.append(SilentReport(video=name, num_frames=len(good), decode_s=decode_s, outcomes=outcomes))
        print(reports[-1], file=sys.stderr, flush=True)
    return reports


if __name__ == "__main__":
    command(__doc__, measure)
