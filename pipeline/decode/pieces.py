"""A long video among the samples: brought to the disk, cut into pieces, and a piece -> its clips."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from tatok.pipeline.images.crops import views_per_picture
from tatok.pipeline.video.local_video import local_video
from tatok.schemas.errors import DecodeError
from tatok.schemas.identity import sample_id
from tatok.schemas.job import JobConfig
from tatok.schemas.records import Clip, Reject, Sample

if TYPE_CHECKING:  # processes that only pass pieces on need no decoder
    from tatok.pipeline.decode.sample import SampleWords
    from tatok.pipeline.video.pieces import VideoPiece

__all__ = ["ELSEWHERE", "LongVideos", "SamplePiece"]

ELSEWHERE = "elsewhere"
"""Reason of a piece's reject where its file is not on this machine; no row's."""

_LONG_BYTES = 32 << 20
_PIECE_BYTES = 12 << 20  # of pixels: what waits for its turn at whoever has decoded it


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class SamplePiece:
    """A piece of a sample whose file lies at `sample.payload_uri`, on the machine where it was cut.

    `words` is what all clips of the sample share; `first_result` numbers its first clip among those of the sample, and
    `num_pictures` counts the frames of all its clips and crops.
    """

    sample: Sample
    words: SampleWords
    piece: VideoPiece
    first_result: int
    num_pictures: int

    def reject(self, reason: str, detail: str) -> Reject:
        """It came to no end, or not to the one that it should: never a row's, for then the whole is decoded."""
        return Reject(
            key=self.sample.key,
            uri=self.sample.uri,
            index=self.sample.index,
            stage="decode",
            reason=reason,
            detail=detail,
            clip_index=self.first_result,
        )


class LongVideos:
    """Which videos of a job are worth cutting once others can help, and how they are cut.

    Those of at least `least_bytes`, of jobs without a filter, which is asked once a sample. `piece_bytes` bounds a
    piece's pixels, as far as key frames allow.
    """

    def __init__(self, config: JobConfig, *, least_bytes: int = _LONG_BYTES, piece_bytes: int = _PIECE_BYTES) -> None:
        self._config = config
        self._least_bytes = least_bytes
        self.results_per_clip = views_per_picture(config.preprocessing)
        frame_bytes = self.results_per_clip * 3 * config.preprocessing.image_size**2
        self._piece_taken = max(piece_bytes // frame_bytes, 1)

    def __contains__(self, sample: Sample) -> bool:
        num_bytes = len(sample.payload) if sample.payload_uri is None else sample.payload_bytes or 0
        return sample.media == "video" and num_bytes >= self._least_bytes and self._config.filter is None

    @contextmanager
    def on_disk(self, sample: Sample) -> Iterator[Sample]:
        """The sample with a `payload_uri` on this machine; a copy is gone afterwards. Raises SourceError."""
        if sample.payload_uri is not None:
            with local_video(sample) as local:
                yield local
            return
        with tempfile.NamedTemporaryFile(prefix="tatok-video-", suffix=f".{sample.extension}") as copy:
            copy.write(sample.payload)
            copy.flush()
            yield replace(sample, payload=b"", payload_uri=copy.name)

    def cut(self, local: Sample, clip: Clip, num_results: int) -> list[SamplePiece]:
        """What comes after the first `num_results` results, whose last is `clip`; empty where it is not to be cut.

        `local` is a sample that is on this machine's disk. Reads all of it.
        """
        from tatok.pipeline.decode.sample import SampleWords
        from tatok.pipeline.video.pieces import cut_video

        config, words = self._config, SampleWords.of_clip(clip)
        first_clip = num_results // self.results_per_clip
        try:
            with open(local.payload_uri or "", "rb") as source:
                pieces = cut_video(
                    source, config.video, config.limits, first_clip=first_clip, piece_taken=self._piece_taken
                )
        except (DecodeError, OSError):
            return []  # whoever decodes the whole finds out what it is
        told = replace(local, attachments={})
        return [
            SamplePiece(
                sample=told,
                words=words,
                piece=piece,
                first_result=piece.first_clip * self.results_per_clip,
                num_pictures=sum(map(len, piece.clips)) * self.results_per_clip,
            )
            for piece in pieces
        ]

    def decode(self, piece: SamplePiece) -> Iterator[Clip | Reject]:
        """What `decode_sample` gives of the piece's clips.

        A reject says that the whole is to be decoded after all, from here on; of reason ELSEWHERE, that another process
        may decode the piece. Never raises because of the bytes.
        """
        from tatok.pipeline.decode.sample import clip_of
        from tatok.pipeline.video.pieces import decode_piece

        config, sample, num_results = self._config, piece.sample, piece.first_result
        of_sample = sample_id(sample.uri, sample.index, sample.key)
        try:
            with open(sample.payload_uri or "", "rb") as source:
                for each in decode_piece(
                    source, piece.piece, config.preprocessing, config.video, config.limits, sample_id=of_sample
                ):
                    yield clip_of(sample, piece.words, each.view, each.fps, num_results)
                    num_results += 1
        except OSError as error:
            yield piece.reject(ELSEWHERE, str(error))
        except DecodeError as error:
            yield piece.reject(error.reason, error.detail)
