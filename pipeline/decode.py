"""Sample -> clips and rejects: hostile bytes in, pixels for the tokenizer out, with the words that came along."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping

from pipeline.columns import sample_id
from pipeline.images import decode_image
from schemas.errors import DecodeError
from schemas.job import Limits, Preprocessing
from schemas.records import Clip, Reject, Sample

__all__ = ["decode_sample"]


def decode_sample(sample: Sample, preprocessing: Preprocessing, limits: Limits) -> Iterator[Clip | Reject]:
    """The clips of one sample, in order, as they are decoded: each becomes a row.

    A sample that cannot be decoded, or not to its end, ends with a reject of stage "decode", whose `clip_index` is
    the number of clips before it; reasons are those of `decode_image`. `metadata` is the .json member if it is strict
    JSON, else its text as one JSON string, so that the column always parses. Never raises because of the bytes.
    """
    sha256 = hashlib.sha256(sample.payload).hexdigest()
    caption, label = _text(sample.attachments, "txt"), _text(sample.attachments, "cls")
    metadata = _json(sample.attachments)
    num_clips = 0
    try:
        of_sample = sample_id(sample.uri, sample.index, sample.key)
        for view in decode_image(sample.payload, preprocessing, limits, sample_id=of_sample):
            yield Clip(
                key=sample.key,
                uri=sample.uri,
                index=sample.index,
                media="image" if view.frame_pts_s is None else "video",
                pixels=view.pixels,
                width=view.width,
                height=view.height,
                crop=view.crop,
                flipped=view.flipped,
                sha256=sha256,
                clip_index=num_clips,
                clip_start_s=None if view.frame_pts_s is None else 0.0,
                frame_pts_s=view.frame_pts_s,
                caption=caption,
                label=label,
                metadata=metadata,
            )
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
