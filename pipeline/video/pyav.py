"""Videos by PyAV (FFmpeg), in one thread: frames as they are decoded, converted when they are asked for."""

from __future__ import annotations

import io
from collections.abc import Iterator
from functools import partial
from typing import IO, Any, Self

import av
import numpy as np
from av.error import FFmpegError

from tatok.pipeline.readers.formats import VIDEO_CONTAINERS
from tatok.pipeline.video.head import transport_packet_bytes, why_unopened
from tatok.pipeline.video.index import KeyFrame, VideoIndex, frames_from, read_index
from tatok.pipeline.video.integrity import Stamps, TimedFrame, trusted_frames
from tatok.pipeline.video.reader import THUMBNAIL_HW, Frame, VideoInfo, check_size
from tatok.schemas.errors import DecodeError
from tatok.schemas.job import Limits

__all__ = ["PyAVReader"]

# What the decoders report comes as rejects; on stderr it would come a hundred times for one damaged file.
av.logging.set_libav_level(av.logging.FATAL)


class PyAVReader:
    """A `VideoReader` over a video's bytes, or over a file that seeks and that the caller closes.

    `strict`: damage ends the frames. Otherwise frames come as the decoder conceals them, as far as it comes.

    Raises DecodeError: "empty", "not_a_video", "no_video", "too_many_pixels", "too_small"; VideoDamage, from 0 s on,
    where nothing of a damaged container can be read.
    """

    def __init__(self, source: bytes | IO[bytes], limits: Limits, *, strict: bool = True) -> None:
        file = io.BytesIO(source) if isinstance(source, bytes) else source
        num_bytes = file.seek(0, io.SEEK_END)
        if not num_bytes:
            raise DecodeError("empty", "the file has no bytes")
        self._strict, self._ends_in_a_packet = strict, bool(num_bytes % transport_packet_bytes(file))
        file.seek(0)
        try:
            self._container = av.open(
                file,
                mode="r",
                metadata_errors="replace",
                container_options={"format_whitelist": ",".join(VIDEO_CONTAINERS), "protocol_whitelist": ""},
            )
        except (FFmpegError, OSError, ValueError) as error:
            raise why_unopened(file, error) from None
        try:
            self._stream, self._codec = _video_stream(self._container)
            check_size(self._codec.width, self._codec.height, limits)
            self._codec.thread_type, self._codec.thread_count = "NONE", 1  # this is one of many processes
        except DecodeError as error:
            self._container.close()
            raise (why_unopened(file, error) if error.reason == "no_video" else error) from None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._container.close()

    @property
    def info(self) -> VideoInfo:
        """What the container says."""
        stream, duration_s = self._stream, None
        if stream.duration is not None:
            duration_s = float(stream.duration * stream.time_base)
        elif self._container.duration is not None:
            duration_s = self._container.duration / av.time_base
        return VideoInfo(
            width=self._codec.width,
            height=self._codec.height,
            codec=self._codec.name,
            average_fps=float(stream.average_rate) if stream.average_rate else None,
            duration_s=duration_s,
            num_frames=stream.frames or None,
        )

    def frames(self) -> Iterator[Frame]:
        """Every frame in display order; VideoDamage if the video does not continue well to its end."""
        if self._strict:
            timed = trusted_frames(self._container, self._stream, self._ends_in_a_packet)
        else:
            timed = self._concealed()
        yield from map(_frame, timed)

    def index(self) -> VideoIndex | None:
        """What the packets say of the frames, instead of `frames`; None where they do not say enough."""
        return read_index(self._container, self._stream)

    def frames_from(self, entry: KeyFrame) -> Iterator[Frame]:
        """`frames` from a key frame of the index on, as strictly; may be called once."""
        yield from map(_frame, frames_from(self._container, self._stream, entry))

    def _concealed(self) -> Iterator[TimedFrame]:
        stamps = Stamps(self._stream)
        packets = self._container.demux(self._stream)
        while True:
            try:
                packet = next(packets, None)
                frames = [] if packet is None else packet.decode()
            except (FFmpegError, OSError):
                continue  # the user chose to continue; a container that cannot be read any more ends the packets
            if packet is None:
                return
            for frame in frames:
                yield TimedFrame(frame=frame, order=0, pts_s=stamps.of(frame))


def _video_stream(container: Any) -> tuple[Any, Any]:
    stream = container.streams.best("video")
    if stream is None or stream.disposition & av.stream.Disposition.attached_pic:
        raise DecodeError("no_video", "the file has no video stream")
    if stream.codec_context is None:
        raise DecodeError("no_video", "the file's video is of a codec that FFmpeg does not know")
    return stream, stream.codec_context


def _frame(timed: TimedFrame) -> Frame:
    return Frame(pts_s=timed.pts_s, rgb=partial(_rgb, timed.frame), thumbnail=partial(_thumbnail, timed.frame))


def _rgb(frame: Any) -> np.ndarray:
    rgb_HWC: np.ndarray = frame.to_ndarray(format="rgb24")
    turns = round(frame.rotation / 90) % 4  # FFmpeg's angle, like NumPy's, is against the clock
    return np.ascontiguousarray(np.rot90(rgb_HWC, turns)) if turns else rgb_HWC


def _thumbnail(frame: Any) -> np.ndarray:
    height, width = THUMBNAIL_HW
    grey: np.ndarray = frame.reformat(width=width, height=height, format="gray", interpolation="AREA").to_ndarray()
    return grey
