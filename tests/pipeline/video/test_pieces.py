"""A video in pieces gives the clips of the whole; where bytes are damaged, those before the first piece that fails."""

from __future__ import annotations

import io
import random
from collections.abc import Sequence
from functools import cache
from typing import Any

import numpy as np
import pytest

from tatok.pipeline.video.clips import VideoView, decode_video
from tatok.pipeline.video.pieces import cut_video, decode_piece
from tatok.pipeline.video.pyav import PyAVReader
from tatok.schemas.errors import DecodeError
from tatok.schemas.job import Limits, Preprocessing
from tatok.schemas.preprocessing import Video
from tests.support.synthetic_videos import cut_to, noise, rotated, video_bytes

SMALL, LIMITS = Preprocessing(image_size=16), Limits()
NUM_FRAMES = 420
Told = tuple[bytes, tuple[float, ...] | None, float | None, object, bool, int, int]


@cache
def video(container: str = "mp4", **options: str) -> bytes:
    """Moving pictures with a key frame every twenty, and frames that are shown before those that they lean on."""
    pictures = [*noise(60), *reversed(noise(60))] * 4
    chosen = {"g": "20", "bf": "2", "sc_threshold": "0"} | options
    return video_bytes(NUM_FRAMES, container=container, pictures=pictures, **chosen)


def hevc(container: str) -> bytes:
    """With frames before each key frame, in display order, that cannot be decoded from there on."""
    pictures = [*noise(60), *reversed(noise(60))] * 4
    x265 = "keyint=20:min-keyint=20:bframes=3:open-gop=1:log-level=none"
    options = {"x265-params": x265, "preset": "ultrafast"}
    return video_bytes(NUM_FRAMES, container=container, pictures=pictures, codec="libx265", **options)


def told(view: VideoView) -> Told:
    picture = view.view
    sizes = picture.width, picture.height
    return picture.pixels.tobytes(), picture.frame_pts_s, view.fps, picture.crop, picture.flipped, *sizes


def whole(payload: bytes, settings: Video, preprocessing: Preprocessing = SMALL) -> tuple[list[Told], str]:
    """What the whole gives, and why it ends."""
    found = list[Told]()
    try:
        found.extend(map(told, decode_video(payload, preprocessing, settings, LIMITS, sample_id="v")))
    except DecodeError as error:
        return found, error.reason
    return found, "end"


def in_pieces(
    payload: bytes, settings: Video, preprocessing: Preprocessing = SMALL, *, first_clip: int = 0, piece_taken: int = 8
) -> tuple[list[list[Told]], bool]:
    """The results of each piece up to the first that fails; whether one does, or the video cannot be opened."""
    found = list[list[Told]]()
    source = io.BytesIO(payload)
    try:
        for piece in cut_video(source, settings, LIMITS, first_clip=first_clip, piece_taken=piece_taken):
            found.append([])
            for view in decode_piece(source, piece, preprocessing, settings, LIMITS, sample_id="v"):
                found[-1].append(told(view))
    except DecodeError:
        return found, True
    return found, False


def joined(pieces: Sequence[Sequence[Told]]) -> list[Told]:
    return [each for piece in pieces for each in piece]


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"stride": 3, "overlap_frames": 3},
        {"fps": 8.0, "last_clip": "keep"},
        {"clip_s": 1.5, "frames_per_clip": 4},
        {"fps": 60.0, "frames_per_clip": 50, "overlap_frames": 49},  # ticks denser than frames
        {"stride": 7, "frames_per_clip": 1},
        {"fps": 2.0, "frames_per_clip": 12, "last_clip": "keep"},  # clips that are longer than a piece
    ],
)
@pytest.mark.parametrize("first_clip", [0, 1])
def test_pieces_are_the_whole(settings: dict[str, Any], first_clip: int) -> None:
    chosen = Video.model_validate({"frames_per_clip": 8} | settings)
    pieces, failed = in_pieces(video(), chosen, first_clip=first_clip)
    assert len(pieces) >= 2
    assert not failed
    assert (joined(pieces), "end") == (whole(video(), chosen)[0][first_clip:], "end")


@pytest.mark.parametrize(
    "payload",
    [
        pytest.param(lambda: video("mkv"), id="matroska"),
        pytest.param(lambda: video("mov"), id="quicktime"),
        pytest.param(lambda: video(**{"x264-params": "open-gop=1:bframes=3"}), id="open groups of pictures"),
        pytest.param(lambda: video("mkv", **{"x264-params": "open-gop=1:bframes=3"}), id="open, matroska"),
        pytest.param(lambda: hevc("mp4"), id="HEVC, whose groups are open"),
        pytest.param(lambda: hevc("mkv"), id="HEVC, matroska"),
        pytest.param(lambda: rotated(video(), quarter_turns=1), id="rotated"),
    ],
)
def test_other_containers_and_streams(payload: Any) -> None:
    settings = Video(frames_per_clip=8, fps=8.0)
    pieces, failed = in_pieces(payload(), settings, first_clip=1)
    assert len(pieces) >= 3
    assert not failed
    assert joined(pieces) == whole(payload(), settings)[0][1:]


@pytest.mark.parametrize(
    "preprocessing",
    [
        Preprocessing.model_validate({"image_size": 16, "flips": "both"}),
        Preprocessing.model_validate({"image_size": 16, "mode": "random_crop", "random_crops": {"num_crops": 2}}),
    ],
)
def test_crops_come_clip_by_clip(preprocessing: Preprocessing) -> None:
    settings = Video(frames_per_clip=8, stride=2)
    pieces, _ = in_pieces(video(), settings, preprocessing, first_clip=3)
    assert joined(pieces) == whole(video(), settings, preprocessing)[0][6:]


@pytest.mark.parametrize(
    ("payload", "settings"),
    [
        pytest.param(lambda: video("avi"), {}, id="a codec whose packets need not be frames"),
        pytest.param(lambda: video("mpegts"), {}, id="a container without an index"),
        pytest.param(lambda: cut_to(video(), start_ticks=12800, duration_ms=8000), {}, id="an edit list"),
        pytest.param(lambda: video(g="10000"), {}, id="one key frame"),
        pytest.param(lambda: video()[:-20_000], {}, id="cut off"),
        pytest.param(video, {"scene_cuts": True}, id="scene cuts"),
        pytest.param(video, {"clip_s": "whole"}, id="one clip"),
        pytest.param(video, {"integrity": "lenient"}, id="what a decoder conceals"),
        pytest.param(video, {"decoder": "decord"}, id="another decoder"),
    ],
)
def test_what_is_not_cut(payload: Any, settings: dict[str, Any]) -> None:
    chosen = Video.model_validate({"frames_per_clip": 8} | settings)
    assert in_pieces(payload(), chosen) == ([], False)


def test_what_is_left_after_the_last_clip_is_no_piece() -> None:
    settings = Video(frames_per_clip=8, stride=2)
    num_clips = len(whole(video(), settings)[0])
    assert cut_video(io.BytesIO(video()), settings, LIMITS, first_clip=num_clips, piece_taken=20) == []


@pytest.mark.parametrize("container", ["mp4", "mkv"])
@pytest.mark.parametrize("kind", ["overwritten", "a bit", "zeros"])
def test_damage_is_never_passed_over(container: str, kind: str) -> None:
    """Whatever the bytes: the whole gives what pieces give before one fails, and no damage if none does."""
    settings = Video(frames_per_clip=8, fps=8.0, last_clip="keep")
    generator = random.Random(f"{container} {kind}")
    num_failed = 0
    for _ in range(6):
        damaged = bytearray(video(container))
        at = generator.randrange(5000, len(damaged) - 5000)
        if kind == "a bit":
            damaged[at] ^= 1 << generator.randrange(8)
        else:
            damaged[at : at + 300] = bytes(300) if kind == "zeros" else generator.randbytes(300)
        expected, reason = whole(bytes(damaged), settings)
        pieces, failed = in_pieces(bytes(damaged), settings)
        found = joined(pieces)
        num_failed += failed
        assert found == expected[: len(found)]
        assert failed or not pieces or (len(found), reason) == (len(expected), "end")
    assert num_failed or kind == "a bit"


def test_frames_before_a_key_frame_are_left_out() -> None:
    with PyAVReader(video(), LIMITS) as reader:
        index = reader.index()
    assert index is not None
    assert [key.number for key in index.key_frames] == list(range(0, NUM_FRAMES, 20))
    with PyAVReader(video(), LIMITS) as reader:
        frames = [frame.pts_s for frame in reader.frames_from(index.key_frames[5])]
    np.testing.assert_array_equal(frames, index.stamps_s[100:])
