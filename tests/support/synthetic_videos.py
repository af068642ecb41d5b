"""Small videos whose frames tell their number: encoded by PyAV, in any container, with any time stamps."""

from __future__ import annotations

import json
import struct
import subprocess
import tempfile
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path

import av
import numpy as np

from tatok.pipeline.video.reader import Frame, VideoDamage, VideoReader
from tatok.schemas.errors import DecodeError

CODECS = {
    "mp4": "libx264",
    "mov": "libx264",
    "mkv": "libx264",
    "avi": "mpeg4",
    "mpg": "mpeg2video",
    "mpegts": "libx264",
    "m2ts": "libx264",
    "flv": "libx264",
    "3gp": "libx264",
    "webm": "libvpx-vp9",
}
UNUSUAL = {"mpeg2video": "mpeg2video", "asf": "wmv2", "ogg": "libvpx", "yuv4mpegpipe": "wrapped_avframe"}
GREY_STEP = 4


def picture(number: int, width: int, height: int) -> np.ndarray:
    """uint8 [H, W, 3]: grey by the number, with a dark upper left corner."""
    rgb_HWC = np.full((height, width, 3), 40 + GREY_STEP * number, dtype=np.uint8)
    rgb_HWC[: height // 4, : width // 4] = 0
    return rgb_HWC


def number_of(rgb_HWC: np.ndarray) -> int:
    """The number of a decoded picture, by its middle."""
    height, width, _ = rgb_HWC.shape
    middle = rgb_HWC[height // 2 - 4 : height // 2 + 4, width // 2 - 4 : width // 2 + 4].mean()
    return round((float(middle) - 40) / GREY_STEP)


def video_bytes(
    num_frames: int = 40,
    *,
    container: str = "mp4",
    width: int = 96,
    height: int = 64,
    fps: int = 25,
    stamps_ms: Sequence[int] | None = None,
    pictures: Sequence[np.ndarray] | None = None,
    audio_s: float = 0.0,
    index_first: bool = True,
    codec: str = "",
    **options: str,
) -> bytes:
    """A video of numbered pictures, or of `pictures`, at `fps` or at given stamps, by `codec` or the usual one."""
    formats = {"mkv": "matroska", "mpg": "mpeg", "m2ts": "mpegts"}
    placement = {"movflags": "faststart"} if container in ("mp4", "mov", "3gp") and index_first else {}
    if container == "m2ts":
        placement = {"mpegts_m2ts_mode": "1"}
    with (
        tempfile.NamedTemporaryFile() as file,  # FFmpeg moves the index of a file only
        av.open(file.name, "w", format=formats.get(container, container), options=placement) as output,
    ):
        codec = codec or (CODECS | UNUSUAL)[container]
        stream = output.add_stream(codec, rate=fps)
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        stream.options = ({"preset": "fast"} if codec == "libx264" else {}) | options
        stream.codec_context.thread_count = 1
        if codec not in ("libx264", "libx265"):
            stream.bit_rate = 2_000_000
        if stamps_ms is not None:
            stream.codec_context.time_base = Fraction(1, 1000)
        if audio_s:
            _add_silence(output, audio_s)
        for number in range(num_frames):
            rgb_HWC = picture(number, width, height) if pictures is None else pictures[number]
            frame = av.VideoFrame.from_ndarray(rgb_HWC, format="rgb24")
            frame.pts = number if stamps_ms is None else stamps_ms[number]
            frame.time_base = Fraction(1, fps) if stamps_ms is None else Fraction(1, 1000)
            output.mux(stream.encode(frame))
        output.mux(stream.encode(None))
        output.close()
        return Path(file.name).read_bytes()


def _add_silence(output: av.container.OutputContainer, seconds: float) -> None:
    stream = output.add_stream("aac", rate=16000, layout="mono")
    for start in range(0, int(seconds * 16000), 1024):
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
        frame.sample_rate, frame.pts = 16000, start
        output.mux(stream.encode(frame))
    output.mux(stream.encode(None))


def noise(num_frames: int, width: int = 96, height: int = 64) -> list[np.ndarray]:
    """Pictures that move and do not compress to nothing, so that a file's bytes are nearly all pictures."""
    generator = np.random.default_rng(0)
    wide = generator.integers(0, 256, (height // 4, width // 4 + num_frames, 3), dtype=np.uint8)
    wide = wide.repeat(4, axis=0).repeat(4, axis=1)
    return [np.ascontiguousarray(wide[:, 4 * i : 4 * i + width]) for i in range(num_frames)]


def rotated(mp4: bytes, *, quarter_turns: int) -> bytes:
    """The same MP4, whose header asks players to turn its video clockwise."""
    cosine, sine = ((1, 0), (0, 1), (-1, 0), (0, -1))[quarter_turns]
    matrix = struct.pack(">9i", cosine << 16, sine << 16, 0, -sine << 16, cosine << 16, 0, 0, 0, 1 << 30)
    header = mp4.index(b"tkhd")
    return mp4[: header + 44] + matrix + mp4[header + 44 + 36 :]


def cut_to(mp4: bytes, *, start_ticks: int, duration_ms: int) -> bytes:
    """The same MP4, whose edit list shows `duration_ms` from `start_ticks` of the media's own time on."""
    edit = mp4.index(b"elst") + 4 + 4 + 4  # past the name, the version and the count
    return mp4[:edit] + struct.pack(">Ii", duration_ms, start_ticks) + mp4[edit + 8 :]


def padded(mp4: bytes, num_bytes: int) -> bytes:
    """The same MP4 with so many bytes behind it that nobody is to look at."""
    return mp4 + struct.pack(">I4s", num_bytes, b"free") + bytes(num_bytes - 8)


def drain(reader: VideoReader, *, pixels: bool = True) -> tuple[list[Frame], DecodeError | None]:
    """Every frame, its pixels asked for, and what ended them."""
    frames: list[Frame] = []
    with reader:
        try:
            for frame in reader.frames():
                if pixels:
                    frame.rgb()
                frames.append(frame)
        except VideoDamage as damage:
            return frames, damage
    return frames, None


def ffprobe_stamps(path: Path) -> list[float]:
    command = ["ffprobe", "-v", "error", "-select_streams", "v:0", "-show_entries", "frame=best_effort_timestamp_time"]
    output = subprocess.run([*command, "-of", "json", str(path)], capture_output=True, text=True, check=True).stdout
    return [float(frame["best_effort_timestamp_time"]) for frame in json.loads(output)["frames"]]
