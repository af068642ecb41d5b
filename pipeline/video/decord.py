"""Videos by decord, never alone where integrity is strict: each frame taken is held against PyAV's.

decord hands out repeated or shifted frames of damaged files, and of some good ones, without a word
(docs/decisions/pyav-by-default.md). It also opens whatever FFmpeg can, playlists included, so PyAV looks at the bytes
first.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from typing import IO, Any, Self

import av
import decord
import numpy as np

from tatok.pipeline.video.pyav import PyAVReader
from tatok.pipeline.video.reader import THUMBNAIL_HW, Frame, VideoDamage, VideoInfo
from tatok.schemas.errors import DecodeError
from tatok.schemas.job import Limits

__all__ = ["DecordReader"]

_MOST_DIFFERENCE = 1.0  # mean over every eighth row and column, of 255; good files of even height differ by 0
_EVERY = 8

# Damage is PyAV's to report; decord would write every concealed block to stderr.
decord.logging.set_level(decord.logging.QUIET)


class DecordReader:
    """A `VideoReader` over a video's bytes, or over a file that seeks, whose pixels are decord's.

    decord reads a file into memory; PyAV does not.

    `strict`: PyAV decodes the video too; its stamps and its judgement of damage hold, and decord's pixels must equal
    its pixels up to rounding, else VideoDamage("decoders_disagree") is raised, also by `Frame.rgb`. Otherwise decord
    decodes alone, with its own stamps, and what it makes of damage is not known.

    Raises DecodeError: what PyAVReader raises, and "decoder_error" where decord cannot open what PyAV can.
    """

    def __init__(self, source: bytes | IO[bytes], limits: Limits, *, strict: bool = True) -> None:
        self._strict = strict
        payload = source if isinstance(source, bytes) else source.read()
        self._reference = PyAVReader(payload, limits, strict=strict)
        try:
            self._video = decord.VideoReader(io.BytesIO(payload), ctx=decord.cpu(0), num_threads=1)
        except (decord.DECORDError, RuntimeError, AssertionError) as error:
            self._reference.__exit__()
            raise DecodeError("decoder_error", f"decord cannot open it: {_first_line(error)}") from None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._reference.__exit__()
        del self._video

    @property
    def info(self) -> VideoInfo:
        """What the container says."""
        return self._reference.info

    def frames(self) -> Iterator[Frame]:
        """Every frame in display order, then VideoDamage if the video does not end well."""
        return self._checked() if self._strict else self._alone()

    def _checked(self) -> Iterator[Frame]:
        for reference in self._reference.frames():
            picture = self._next(reference.pts_s)
            yield replace(reference, rgb=partial(_agreed, picture, reference))

    def _alone(self) -> Iterator[Frame]:
        stamps = self._video.get_frame_timestamp(range(len(self._video)))[:, 0]
        for pts_s in stamps:
            picture = self._next(float(pts_s))
            rgb: Callable[[], np.ndarray] = picture.asnumpy
            yield Frame(pts_s=float(pts_s), rgb=rgb, thumbnail=partial(_thumbnail, rgb))

    def _next(self, pts_s: float) -> Any:
        try:
            return self._video.next()
        except StopIteration:
            raise VideoDamage("decoders_disagree", "decord has no more frames, PyAV has", pts_s) from None
        except decord.DECORDError as error:
            raise VideoDamage("corrupt", f"decord gave up: {_first_line(error)}", pts_s) from None


def _agreed(picture: Any, reference: Frame) -> np.ndarray:
    rgb: np.ndarray = picture.asnumpy()
    expected = reference.rgb()
    if rgb.shape != expected.shape:
        raise VideoDamage(
            "decoders_disagree",
            f"decord's frame is {rgb.shape}, PyAV's {expected.shape}; use video.decoder: pyav",
            reference.pts_s,
        )
    difference = np.abs(rgb[::_EVERY, ::_EVERY].astype(np.int16) - expected[::_EVERY, ::_EVERY]).mean()
    if difference > _MOST_DIFFERENCE:
        raise VideoDamage(
            "decoders_disagree",
            f"decord's frame differs from PyAV's by {difference:.1f} of 255; use video.decoder: pyav",
            reference.pts_s,
        )
    return rgb


def _thumbnail(rgb: Callable[[], np.ndarray]) -> np.ndarray:
    height, width = THUMBNAIL_HW
    grey: np.ndarray = (
        av.VideoFrame.from_ndarray(np.ascontiguousarray(rgb()), format="rgb24")
        .reformat(width=width, height=height, format="gray", interpolation="AREA")
        .to_ndarray()
    )
    return grey


def _first_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
