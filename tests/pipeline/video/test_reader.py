"""Video decoders: frames, stamps and pictures of good files in every container; where damaged ones end."""

from __future__ import annotations

import random
import shutil
from functools import cache
from pathlib import Path

import numpy as np
import pytest

from tatok.pipeline.readers.formats import (
    HEAD_BYTES,
    VIDEO_CONTAINERS,
    VIDEO_EXTENSIONS,
    container_of,
    is_media,
    media_of,
)
from tatok.pipeline.video.decord import DecordReader
from tatok.pipeline.video.pyav import PyAVReader
from tatok.pipeline.video.reader import VideoDamage
from tatok.schemas.errors import DecodeError
from tatok.schemas.job import Limits
from tests.support.synthetic_videos import (
    CODECS,
    cut_to,
    drain,
    ffprobe_stamps,
    noise,
    number_of,
    picture,
    rotated,
    video_bytes,
)

LIMITS = Limits()
READERS = [PyAVReader, DecordReader]
WIDTH = 128  # with decord: of 96 it gives four channels on AVX-512 (docs/decisions/pyav-by-default.md)
DECORD_SHIFTS = {"mpg", "mpegts", "m2ts"}  # their frames, at times, and is found out

needs_ffprobe = pytest.mark.skipif(shutil.which("ffprobe") is None, reason="ffprobe is not installed")


@cache
def moving_video(container: str) -> bytes:
    return video_bytes(40, container=container, pictures=noise(40))


@pytest.mark.parametrize("container", CODECS)
def test_every_container_gives_its_frames_in_order(container: str) -> None:
    frames, damage = drain(PyAVReader(video_bytes(30, container=container), LIMITS))
    assert damage is None
    assert [number_of(frame.rgb()) for frame in frames] == list(range(30))
    steps = np.diff([frame.pts_s for frame in frames])
    assert np.allclose(steps, 0.04, atol=0.0015)


# A container of CODECS for each extension; raw MPEG streams go under the names of program streams.
EXTENSIONS = {extension: extension for extension in CODECS if extension != "mpegts"} | {
    "m4v": "mp4",
    "mpeg": "mpg",
    "ts": "mpegts",
    "mts": "m2ts",
}


@pytest.mark.parametrize("extension", sorted(VIDEO_EXTENSIONS))
def test_what_is_named_a_video_is_read_as_one(extension: str) -> None:
    video = video_bytes(12, container=EXTENSIONS[extension])
    frames, damage = drain(PyAVReader(video, LIMITS))
    assert (len(frames), damage) == (12, None)
    assert is_media(f"a.{extension}")
    assert media_of(f"a.{extension}") == "video"
    if extension not in VIDEO_CONTAINERS["mpegts"]:
        assert extension in VIDEO_CONTAINERS[container_of(video[:HEAD_BYTES]) or ""]
        assert media_of("nameless", video[:HEAD_BYTES]) == "video"


def test_raw_mpeg_streams_are_read() -> None:
    video = video_bytes(12, container="mpeg2video")
    frames, damage = drain(PyAVReader(video, LIMITS))
    assert ([number_of(frame.rgb()) for frame in frames], damage) == (list(range(12)), None)
    assert container_of(video) == "mpegvideo"


@pytest.mark.parametrize(("extension", "container"), [("wmv", "asf"), ("ogv", "ogg"), ("y4m", "yuv4mpegpipe")])
def test_what_cannot_be_read_is_not_named_a_video(extension: str, container: str) -> None:
    assert not is_media(f"a.{extension}")
    with pytest.raises(DecodeError) as error:
        PyAVReader(video_bytes(4, container=container), LIMITS)
    assert error.value.reason == "not_a_video"


@pytest.mark.parametrize("container", CODECS)
def test_decord_gives_the_same_pixels_or_is_found_out(container: str) -> None:
    video = video_bytes(40, container=container, width=WIDTH, pictures=noise(40, WIDTH))
    expected, _ = drain(PyAVReader(video, LIMITS))
    frames, damage = drain(DecordReader(video, LIMITS))
    assert len(frames) == 40 if damage is None else container in DECORD_SHIFTS
    for frame, other in zip(frames, expected, strict=False):
        assert frame.pts_s == other.pts_s
        assert np.abs(frame.rgb().astype(int) - other.rgb()).mean() <= 1


@pytest.mark.parametrize("container", ["mp4", "mov", "mkv"])
@pytest.mark.parametrize("reader", READERS)
def test_variable_frame_rates_keep_their_stamps(reader: type, container: str) -> None:
    stamps_ms = [0, 40, 80, 200, 210, 300, 1000, 1040]
    video = video_bytes(8, container=container, width=WIDTH, stamps_ms=stamps_ms)
    frames, damage = drain(reader(video, LIMITS))
    assert damage is None
    assert [round(1000 * frame.pts_s) for frame in frames] == stamps_ms


@needs_ffprobe
@pytest.mark.parametrize("container", sorted(set(CODECS) - {"mpg"}))  # there, ffprobe leaves stamps out
def test_stamps_are_those_of_ffprobe(tmp_path: Path, container: str) -> None:
    path = tmp_path / f"video.{container}"
    path.write_bytes(video_bytes(30, container=container, audio_s=1.5 if container in ("mp4", "mkv") else 0))
    frames, damage = drain(PyAVReader(path.read_bytes(), LIMITS))
    assert damage is None
    assert [frame.pts_s for frame in frames] == pytest.approx(ffprobe_stamps(path), abs=1e-6)


@pytest.mark.parametrize("quarter_turns", [0, 1, 2, 3])
@pytest.mark.parametrize("reader", READERS)
def test_rotation_in_the_header_turns_frames_clockwise(reader: type, quarter_turns: int) -> None:
    frames, _ = drain(reader(rotated(video_bytes(3, width=WIDTH), quarter_turns=quarter_turns), LIMITS))
    expected = np.rot90(picture(0, WIDTH, 64), -quarter_turns)
    assert frames[0].rgb().shape == expected.shape
    assert np.abs(frames[0].rgb().astype(int) - expected).mean() < 3


@pytest.mark.parametrize("reader", READERS)
def test_edit_lists_cut_the_frames_that_players_do_not_show(reader: type) -> None:
    video = cut_to(video_bytes(40, width=WIDTH), start_ticks=1024 + 10 * 512, duration_ms=1200)
    frames, damage = drain(reader(video, LIMITS))
    assert damage is None
    assert [number_of(frame.rgb()) for frame in frames] == list(range(10, 40))
    assert frames[0].pts_s == 0


@pytest.mark.parametrize("fraction", [0.6, 0.76, 0.95])
@pytest.mark.parametrize("container", CODECS)
def test_a_truncated_video_keeps_good_frames_and_tells_the_second(container: str, fraction: float) -> None:
    video = moving_video(container)
    whole, _ = drain(PyAVReader(video, LIMITS))
    frames, damage = drain(PyAVReader(video[: int(fraction * len(video))], LIMITS))
    assert isinstance(damage, VideoDamage)
    assert damage.reason in ("truncated", "corrupt")
    assert len(frames) < 40
    for frame, good in zip(frames, whole, strict=False):
        assert np.array_equal(frame.rgb(), good.rgb())
    next_s = whole[len(frames)].pts_s
    assert damage.at_s == pytest.approx(next_s, abs=0.2)
    assert f"from {damage.at_s:.3f} s on" in damage.detail


def test_frames_shown_before_a_damaged_reference_are_not_trusted() -> None:
    """B frames are decoded after the frame that they lean on and shown before it; only that one is marked."""
    video = video_bytes(60, pictures=noise(60), bf="3", g="60", threads="1")
    whole, _ = drain(PyAVReader(video, LIMITS))
    generator, num_damaged = random.Random(0), 0
    for _ in range(25):
        broken = bytearray(video)
        at = generator.randrange(len(video) // 2, len(video) - 100)
        broken[at : at + 40] = generator.randbytes(40)
        frames, damage = drain(PyAVReader(bytes(broken), LIMITS))
        if damage is not None:
            num_damaged += 1
            for frame, good in zip(frames, whole, strict=False):
                assert np.array_equal(frame.rgb(), good.rgb())
    assert num_damaged >= 15


def test_lenient_readers_go_on_through_damage() -> None:
    video = bytearray(moving_video("mp4"))
    middle = len(video) // 2
    video[middle : middle + 200] = bytes(200)
    strict, damage = drain(PyAVReader(bytes(video), LIMITS))
    lenient, none = drain(PyAVReader(bytes(video), LIMITS, strict=False))
    assert damage is not None
    assert none is None
    assert len(lenient) > len(strict)


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize(
    ("payload", "reason"),
    [
        (b"", "empty"),
        (b"no video", "not_a_video"),
        (b"#EXTM3U\n#EXT-X-TARGETDURATION:10\n#EXTINF:10,\nfile:///etc/hostname\n#EXT-X-ENDLIST\n", "not_a_video"),
        (b"ffconcat version 1.0\nfile /etc/hostname\n", "not_a_video"),
    ],
    ids=["empty", "text", "playlist", "concat"],
)
def test_what_is_no_video_is_refused(reader: type, payload: bytes, reason: str) -> None:
    with pytest.raises(DecodeError) as error:
        reader(payload, LIMITS)
    assert error.value.reason == reason


@pytest.mark.parametrize("reader", READERS)
def test_an_mp4_that_ends_before_its_index_is_damaged_from_its_start(reader: type) -> None:
    video = video_bytes(12, index_first=False)
    index = video.index(b"moov") - 4
    for cut in (index // 2, index, index + 6, index + 100):
        with pytest.raises(VideoDamage) as error:
            reader(video[:cut], LIMITS)
        assert (error.value.reason, error.value.at_s) == ("truncated", 0.0)
        assert f"{cut} bytes" in error.value.detail
        assert error.value.detail.endswith("from 0.000 s on")


@pytest.mark.parametrize("reader", READERS)
def test_a_container_that_cannot_be_opened_is_damaged_from_its_start(reader: type) -> None:
    unnamed = video_bytes(12, index_first=False).replace(b"moov", b"mo\0v")
    for video in (unnamed, video_bytes(12).replace(b"moov", b"mo\0v"), b"FLV\x01" + bytes(100)):
        with pytest.raises(VideoDamage) as error:
            reader(video, LIMITS)
        assert (error.value.reason, error.value.at_s) == ("corrupt", 0.0)
        assert error.value.detail.endswith("from 0.000 s on")


def test_sizes_are_checked_before_decoding() -> None:
    video = video_bytes(2)
    for limits, reason in ((Limits(max_pixels=96 * 63), "too_many_pixels"), (Limits(min_side=65), "too_small")):
        with pytest.raises(DecodeError) as error:
            PyAVReader(video, limits)
        assert error.value.reason == reason


def test_info_is_the_containers() -> None:
    with PyAVReader(video_bytes(50), LIMITS) as reader:
        info = reader.info
    assert (info.width, info.height, info.codec, info.num_frames) == (96, 64, "h264", 50)
    assert info.average_fps == pytest.approx(25)
    assert info.duration_s == pytest.approx(2.0)
