"""What a container's packets alone say of a video's frames, and frames from a key frame on (PyAV).

Only of streams in which one packet is one frame with a stamp of its own, and of which nothing is missing, as far as can
be seen without decoding. Of all others there is no index.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from av.error import FFmpegError

from tatok.pipeline.video.integrity import Judge, Reach, TimedFrame
from tatok.pipeline.video.reader import VideoDamage

__all__ = ["KeyFrame", "VideoIndex", "frames_from", "read_index"]

_CODECS = {"h264", "hevc"}
_CONTAINERS = {"mov", "matroska"}  # which keep a stamp of each packet, and find a key frame by it


@dataclass(frozen=True, slots=True, kw_only=True)
class KeyFrame:
    """A place at which a stream may be entered; `number` is its frame's, in display order.

    Both stamps are the stream's own; where a container leaves out that of decoding, it is the other one.
    """

    number: int
    pts: int
    dts: int


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class VideoIndex:
    """`stamps_s` has every frame's time in seconds, in display order, float64 [N]; frame 0 is a key frame."""

    stamps_s: np.ndarray
    key_frames: tuple[KeyFrame, ...]


def read_index(container: Any, stream: Any) -> VideoIndex | None:
    """The index of `stream`, of a file that is opened and has not been read yet; None where it can have none.

    Reads the whole file and decodes nothing.
    """
    if stream.codec_context.name not in _CODECS or _CONTAINERS.isdisjoint(container.format.name.split(",")):
        return None
    reach, found = Reach(stream), list[tuple[int, int, bool]]()
    try:
        for packet in container.demux():
            reach.add(packet)
            if packet.stream_index != stream.index or not packet.size:
                continue
            if packet.pts is None or packet.is_corrupt or packet.is_discard:
                return None
            dts = packet.pts if packet.dts is None else packet.dts
            found.append((packet.pts, dts, bool(packet.is_keyframe)))
    except (FFmpegError, OSError):
        return None
    pts_N = np.array([pts for pts, _, _ in found], dtype=np.int64)
    order_N = np.argsort(pts_N, kind="stable")
    is_whole = len(found) > 0 and order_N[0] == 0 and found[0][2] and not reach.missing_s(container)
    if not (is_whole and (np.diff(pts_N[order_N]) > 0).all()):
        return None
    number_N = np.empty_like(order_N)
    number_N[order_N] = np.arange(len(order_N))
    key_frames = (
        KeyFrame(number=int(number), pts=pts, dts=dts)
        for number, (pts, dts, is_key) in zip(number_N, found, strict=True)
        if is_key
    )
    return VideoIndex(stamps_s=pts_N[order_N] * float(stream.time_base), key_frames=tuple(key_frames))


def frames_from(container: Any, stream: Any, entry: KeyFrame) -> Iterator[TimedFrame]:
    """The frames of `stream` in display order, from a key frame to the end; those shown before it are left out.

    Raises VideoDamage after the last good one, also where the container does not lead to the key frame.
    """
    entry_s = entry.pts * float(stream.time_base)
    container.seek(entry.dts, stream=stream)
    judge, is_in = Judge(stream), False
    for packet in container.demux(stream):
        if not packet.size:
            continue
        is_in = is_in or (packet.is_keyframe and packet.pts == entry.pts)
        if is_in:
            judge.feed(packet)
            yield from (frame for frame in judge.safe_frames() if frame.pts_s >= entry_s)
        elif packet.is_keyframe and packet.pts > entry.pts:
            break
        if judge.damage is not None:
            break
    if not is_in:
        raise VideoDamage("corrupt", "the container does not lead to the key frame", entry_s)
    judge.flush()
    yield from (frame for frame in judge.safe_frames() if frame.pts_s >= entry_s)
    if judge.damage is not None:
        raise VideoDamage(judge.damage.reason, judge.damage.detail, judge.damaged_from_s())
