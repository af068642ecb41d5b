"""Sample -> clips and rejects: hostile bytes in, pixels for the tokenizer out, with the words that came along."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import IO

from tatok.pipeline.images.decode import View, decode_image
from tatok.schemas.errors import DecodeError
from tatok.schemas.identity import sample_id
from tatok.schemas.job import Limits, Preprocessing
from tatok.schemas.preprocessing import Video
from tatok.schemas.records import Clip, Reject, Sample

__all__ = ["SampleWords", "clip_of", "decode_sample"]

_EVERY_FRAME = Video()


def decode_sample(
    sample: Sample, preprocessing: Preprocessing, limits: Limits, video: Video = _EVERY_FRAME
) -> Iterator[Clip | Reject]:
    """The clips of one sample, in order, as they are decoded: each becomes a row.

    A sample that cannot be decoded, or not to its end, ends with a reject of stage "decode", whose `clip_index` is
    the number of clips before it; reasons are those of `decode_image` and `decode_video`. `metadata` is the .json
    member if it is strict JSON, else its text as one JSON string, so that the column always parses. A `payload_uri` is
    a path on this machine (see `local_video`). Never raises because of the bytes.
    """
    num_clips = 0
    try:
        with _opened(sample) as source:
            words = SampleWords.of(sample, source)
            for view, fps in _views(sample, source, preprocessing, limits, video):
                yield clip_of(sample, words, view, fps, num_clips)
                num_clips += 1
    except DecodeError as error:
        yield Reject(
            key=sample.key,
            uri=sample.uri,
            index=sample.index,
            stage="decode",
            reason=error.reason,
            detail=error.detail,
            clip_index=num_clips,
        )


@contextmanager
def _opened(sample: Sample) -> Iterator[bytes | IO[bytes]]:
    if sample.payload_uri is None:
        yield sample.payload
        return
    if not os.path.isfile(sample.payload_uri):
        raise DecodeError("missing", f"there is no file {sample.payload_uri}")
    with open(sample.payload_uri, "rb") as file:
        yield file


@dataclass(frozen=True, slots=True, kw_only=True)
class SampleWords:
    """What every clip of a sample shares, besides its place: its bytes' hash, and the words that came along."""

    sha256: str
    caption: str | None
    label: str | None
    metadata: str | None

    @staticmethod
    def of(sample: Sample, source: bytes | IO[bytes]) -> SampleWords:
        """Of a sample whose bytes are `source`."""
        if isinstance(source, bytes):
            sha256 = hashlib.sha256(source).hexdigest()
        else:
            sha256 = hashlib.file_digest(source, "sha256").hexdigest()  # type: ignore[arg-type]  # an open file
            source.seek(0)
        return SampleWords(
            sha256=sha256,
            caption=_text(sample.attachments, "txt"),
            label=_text(sample.attachments, "cls"),
            metadata=_json(sample.attachments),
        )

    @staticmethod
    def of_clip(clip: Clip) -> SampleWords:
        """Those of the sample that a clip is of."""
        return SampleWords(sha256=clip.sha256, caption=clip.caption, label=clip.label, metadata=clip.metadata)


def _views(
    sample: Sample, source: bytes | IO[bytes], preprocessing: Preprocessing, limits: Limits, video: Video
) -> Iterator[tuple[View, float | None]]:
    of_sample = sample_id(sample.uri, sample.index, sample.key)
    if sample.media == "video":
        from tatok.pipeline.video.clips import decode_video  # jobs on images alone need no video decoder

        for clip in decode_video(source, preprocessing, video, limits, sample_id=of_sample):
            yield clip.view, clip.fps
    else:
        payload = source if isinstance(source, bytes) else source.read()
        for view in decode_image(payload, preprocessing, limits, sample_id=of_sample, extension=sample.extension):
            yield view, None


def clip_of(sample: Sample, words: SampleWords, view: View, fps: float | None, clip_index: int) -> Clip:
    """A view that was decoded, as the clip of that number of its sample."""
    return Clip(
        key=sample.key,
        uri=sample.uri,
        index=sample.index,
        media="image" if view.frame_pts_s is None else "video",
        pixels=view.pixels,
        width=view.width,
        height=view.height,
        crop=view.crop,
        flipped=view.flipped,
        sha256=words.sha256,
        clip_index=clip_index,
        clip_start_s=None if view.frame_pts_s is None else view.frame_pts_s[0],
        fps=fps,
        frame_pts_s=view.frame_pts_s,
        caption=words.caption,
        label=words.label,
        metadata=words.metadata,
    )


def _text(attachments: Mapping[str, bytes], extension: str) -> str | None:
    if extension not in attachments:
        return None
    return attachments[extension].decode("utf-8-sig", errors="replace").strip()


def _json(attachments: Mapping[str, bytes]) -> str | None:
    text = _text(attachments, "json")
    if text is None:
        return None
    try:
        json.loads(text, parse_constant=_refuse_constant)
    except (ValueError, RecursionError):
        return json.dumps(text)
    return text


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is not JSON")
