"""Packets -> the frames of a video that nothing can spoil any more, and where its damage begins (PyAV).

A damaged reference spoils the frames that are decoded after it, also those that are shown before it, and the decoder
marks the reference alone. So frames wait, in display order, until everything decoded before them has come out well.
At most 32 wait; nothing else of the video is held but its bytes.
"""

from __future__ import annotations

import math
import re
from collections import deque
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import av
from av.error import FFmpegError

from tatok.pipeline.video.reader import VideoDamage
from tatok.schemas.errors import DecodeError

__all__ = ["Judge", "Reach", "Stamps", "TimedFrame", "trusted_frames"]

_ONE_FRAME_A_PACKET = {"h264", "hevc", "mpeg1video", "mpeg2video", "mjpeg"}
"""Where a packet without a frame is a frame lost; elsewhere it may be one that is never shown."""
_MOST_WAITING = 32
_ROUNDING_S = 0.002  # containers that count milliseconds
_SOUND_S = 0.25  # what an audio codec's delay and last block make of a duration


@dataclass(frozen=True, slots=True, kw_only=True)
class TimedFrame:
    """A decoded frame of PyAV's and its time stamp; `order` is its packet's place in the order of decoding."""

    frame: Any
    order: int
    pts_s: float


class Stamps:
    """FFmpeg's rule for the best time stamp of a frame, which ffprobe shows as best_effort_timestamp.

    The presentation stamp, unless these have gone back more often than the decoding stamps. A frame without either, as
    MPEG program streams have them, follows its predecessor by one frame at the stream's rate.
    """

    def __init__(self, stream: Any) -> None:
        self._time_base_s = float(stream.time_base)
        self._frame_s = float(1 / stream.average_rate) if stream.average_rate else None
        self._last_s: float | None = None
        self._last_pts = self._last_dts = -(1 << 63)
        self._num_faulty_pts = self._num_faulty_dts = 0

    def of(self, frame: Any) -> float:
        """Seconds. Raises DecodeError("no_timestamps") if the container gives nothing to go by."""
        pts, dts = frame.pts, frame.dts
        if dts is not None:
            self._num_faulty_dts += dts <= self._last_dts
            self._last_dts = dts
        elif pts is not None:
            self._last_dts = pts
        if pts is not None:
            self._num_faulty_pts += pts <= self._last_pts
            self._last_pts = pts
        elif dts is not None:
            self._last_pts = dts
        trusts_pts = self._num_faulty_pts <= self._num_faulty_dts or dts is None
        best = pts if trusts_pts and pts is not None else dts
        if best is not None:
            self._last_s = float(best * self._time_base_s)
        elif self._last_s is not None and self._frame_s is not None:
            self._last_s += self._frame_s
        else:
            raise DecodeError("no_timestamps", "the container gives its frames no time stamps")
        return self._last_s


def trusted_frames(container: Any, stream: Any, ends_in_a_packet: bool) -> Iterator[TimedFrame]:
    """The frames of `stream` in display order, of a file that is opened and has not been read yet.

    `ends_in_a_packet`: whether it ends within a packet, if it is a transport stream.

    Raises VideoDamage after the last good one: "corrupt" where a frame or the container cannot be decoded,
    "truncated" where data or the declared end are missing, "size_changed".
    """
    judge, packets, reach = Judge(stream), container.demux(), Reach(stream)
    while judge.damage is None:
        try:
            packet = next(packets, None)
        except (FFmpegError, OSError) as error:
            judge.blame("corrupt", f"the container cannot be read: {error}")
            break
        if packet is None:
            if container.format.name == "mpegts" and ends_in_a_packet:
                judge.blame("truncated", "the file ends within a packet")
            elif (missing_s := reach.missing_s(container)) > 0:
                judge.miss_the_rest("truncated", f"the file ends {missing_s:.3f} s before its declared end")
            break
        reach.add(packet)
        if packet.stream_index == stream.index and packet.size:
            judge.feed(packet)
            yield from judge.safe_frames()
    judge.flush()
    yield from judge.safe_frames()
    if judge.damage is not None:
        raise VideoDamage(judge.damage.reason, judge.damage.detail, judge.damaged_from_s())


@dataclass(frozen=True, slots=True, kw_only=True)
class _Packet:
    """A packet on its way through the decoder; neither it nor a later one is shown before `earliest_s`."""

    order: int
    pts_s: float | None
    earliest_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class _Damage:
    """The first packet, in the order of decoding, that is damaged or missing."""

    packet: _Packet
    reason: str
    detail: str


class Judge:
    """Decodes the packets of one stream; `damage` is the first that it has met."""

    def __init__(self, stream: Any) -> None:
        self.damage: _Damage | None = None
        self._codec = stream.codec_context
        self._codec.copy_opaque = True
        self._time_base_s = float(stream.time_base)
        self._frame_s = float(1 / stream.average_rate) if stream.average_rate else 0.0
        self._last_s, self._next_s = -math.inf, float((stream.start_time or 0) * stream.time_base)
        self._stamps = Stamps(stream)
        self._size = (self._codec.width, self._codec.height)
        self._waiting: deque[TimedFrame] = deque()
        self._pending: dict[int, _Packet] = {}  # packets whose frames have not come out, oldest first
        self._last = _Packet(order=0, pts_s=None, earliest_s=-math.inf)
        self._first_s: float | None = None

    def feed(self, packet: Any) -> None:
        """Decode one packet."""
        # Decoding stamps never go back, and no frame is shown before it is decoded; a container may leave some out.
        dts_s = -math.inf if packet.dts is None else packet.dts * self._time_base_s
        self._last = _Packet(
            order=self._last.order + 1,
            pts_s=None if packet.pts is None else packet.pts * self._time_base_s,
            earliest_s=max(self._last.earliest_s, dts_s),
        )
        if packet.is_corrupt:
            self.blame("truncated", "the data of a frame are cut short")
            return
        if not packet.is_discard:
            self._pending[self._last.order] = self._last
        packet.opaque = _Travelling(self._last)
        self._decode(packet)
        oldest = next(iter(self._pending.values()), self._last)
        if self._last.order - oldest.order >= _MOST_WAITING:
            self._give_up(oldest)

    def flush(self) -> None:
        """Take what the decoder still holds; what has not come out then is lost."""
        self._decode(None)
        for packet in tuple(self._pending.values()):
            self._give_up(packet)

    def blame(self, reason: str, detail: str) -> None:
        """The last packet is damaged."""
        self._damaged(self._last, reason, detail)

    def miss_the_rest(self, reason: str, detail: str) -> None:
        """Packets after the last one are missing."""
        last = self._last
        missing = _Packet(order=last.order + 1, pts_s=None, earliest_s=last.earliest_s + self._frame_s / 2)
        self._damaged(missing, reason, detail)

    def safe_frames(self) -> Iterator[TimedFrame]:
        """The next frames of which everything decoded before them, and shown before them, has come out well."""
        while self._waiting and self._is_safe(self._waiting[0]):
            frame = self._waiting.popleft()
            self._last_s, self._next_s = frame.pts_s, frame.pts_s + self._frame_s
            yield frame

    def damaged_from_s(self) -> float:
        """When the first frame is shown that is not to be trusted."""
        return max(self._waiting[0].pts_s, self._last_s) if self._waiting else self._next_s

    def _is_safe(self, waiting: TimedFrame) -> bool:
        if self.damage is None:
            return waiting.order < next(iter(self._pending), self._last.order + 1)
        first = self.damage.packet
        # Where a container's own stamps are wrong, those of the frames that a decoder gives up at the end step back.
        return waiting.order < first.order and self._last_s < waiting.pts_s < first.earliest_s

    def _decode(self, packet: Any) -> None:
        try:
            frames = self._codec.decode(packet)
        except FFmpegError as error:
            self.blame("corrupt", f"the decoder gave up ({error})")
            return
        for frame in frames:
            origin = frame.opaque.packet if isinstance(frame.opaque, _Travelling) else self._last
            pts_s = self._stamps.of(frame)
            self._first_s = pts_s if self._first_s is None else self._first_s
            self._pending.pop(origin.order, None)
            if frame.is_corrupt:
                self._damaged(origin, "corrupt", "the decoder met an error")
            elif (frame.width, frame.height) != self._size:
                self._damaged(origin, "size_changed", f"frames become {frame.width} x {frame.height} pixels")
            self._waiting.append(TimedFrame(frame=frame, order=origin.order, pts_s=pts_s))

    def _give_up(self, packet: _Packet) -> None:
        del self._pending[packet.order]
        # A stream that was cut out of another begins with frames whose references are not in it.
        leads_in = packet.pts_s is not None and self._first_s is not None and packet.pts_s < self._first_s
        if self._codec.name in _ONE_FRAME_A_PACKET and not leads_in:
            self._damaged(packet, "corrupt", "a frame cannot be decoded")

    def _damaged(self, packet: _Packet, reason: str, detail: str) -> None:
        if self.damage is None or packet.order < self.damage.packet.order:
            self.damage = _Damage(packet=packet, reason=reason, detail=detail)


class _Travelling:
    """Carries a packet's record through the decoder to its frame; a new object each, as PyAV tells them by identity."""

    __slots__ = ("packet",)

    def __init__(self, packet: _Packet) -> None:
        self.packet = packet


class Reach:
    """How far the packets of a file reach, against what its container declares."""

    def __init__(self, stream: Any) -> None:
        self._stream = stream
        self._end_s = self._end_of_any_s = float((stream.start_time or 0) * stream.time_base)
        self._tells_durations = True

    def add(self, packet: Any) -> None:
        """The next packet of any stream."""
        start = packet.dts if packet.pts is None else packet.pts
        if start is None or packet.is_corrupt:
            return
        end_s = float((start + (packet.duration or 0)) * packet.time_base)
        self._end_of_any_s = max(self._end_of_any_s, end_s)
        if packet.stream_index == self._stream.index:
            self._end_s = max(self._end_s, end_s)
            self._tells_durations = bool(packet.duration)

    def missing_s(self, container: Any) -> float:
        """Seconds between the last packet's end and the declared end; 0 where they agree or none is declared."""
        stream, allowed_s = self._stream, _ROUNDING_S
        if stream.average_rate:
            # A last packet that gives no duration of its own may well last for a frame.
            allowed_s += (0.75 if self._tells_durations else 1.75) / float(stream.average_rate)
        tagged_s = _tagged_s(stream.metadata)
        if stream.duration is not None:
            missing_s = float(((stream.start_time or 0) + stream.duration) * stream.time_base) - self._end_s
        elif tagged_s is not None:
            missing_s = tagged_s - self._end_s
        elif container.duration is not None:
            # FLV says where it ends, the others how long they are.
            start = 0 if container.format.name == "flv" else container.start_time or 0
            missing_s = (start + container.duration) / av.time_base - self._end_of_any_s
            allowed_s += _SOUND_S if len(container.streams) > 1 else 0.0
        else:
            return 0.0
        return missing_s if missing_s > allowed_s else 0.0


def _tagged_s(metadata: Mapping[str, str]) -> float | None:
    """Where a Matroska stream ends, by the tag that its muxer may have left: "00:00:07.600000000"."""
    match = re.fullmatch(r"(\d+):(\d\d):(\d\d(?:\.\d+)?)", metadata.get("DURATION", ""))
    return None if match is None else int(match[1]) * 3600 + int(match[2]) * 60 + float(match[3])
