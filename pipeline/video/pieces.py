"""A long video in pieces that are decoded apart, each from a key frame on: together, the clips of the whole.

What the whole gives is what counts. A video is cut only where its packets say which frames there are; a piece knows
which stamps its frames must have, all of them, and fails where another comes out, or damage. Then the whole is to be
decoded after all, which alone says what a damaged video still gives.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import IO

import numpy as np

from tatok.pipeline.video.clips import PreparedViews, VideoView, damage_named
from tatok.pipeline.video.index import KeyFrame, VideoIndex
from tatok.pipeline.video.pyav import PyAVReader
from tatok.pipeline.video.reader import Frame
from tatok.pipeline.video.sampling import TakenClip, TakenFrame, sample_clips, sampled_fps
from tatok.schemas.errors import DecodeError
from tatok.schemas.job import Limits, Preprocessing
from tatok.schemas.preprocessing import Video

__all__ = ["VideoPiece", "cut_video", "decode_piece"]

_LEAST_FRAMES, _MOST_FRAMES = 100, 900  # of a piece: some tenths of a second to some seconds of decoding

Numbers = tuple[int, ...]
"""Of one clip's frames, in the display order of the video."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class VideoPiece:
    """Some clips of a video that follow each other, and the frames that answer for them and for what lies between.

    `first_clip` is the number of its first clip. `stamps_s` is float64: of every frame from `entry` on that must come
    out well, up to the next piece's entry, or to the end of the last clip if that is later; of the last piece, to the
    end of the video.
    """

    entry: KeyFrame
    first_clip: int
    clips: tuple[Numbers, ...]
    stamps_s: np.ndarray
    is_last: bool


def cut_video(
    source: bytes | IO[bytes], video: Video, limits: Limits, *, first_clip: int, piece_taken: int
) -> list[VideoPiece]:
    """A video from clip `first_clip` on, in pieces; empty if it is not to be cut.

    The clips before are known to be good. A piece takes `piece_taken` frames into clips, if key frames are not further
    apart, and is not shorter than is worth opening a file for. Not cut are videos without an index, those in which a
    clip depends on the pixels before it (`scene_cuts`) or is the only one (`clip_s: whole`), decoders and integrity
    that are not the default, and what makes no two pieces.

    Raises DecodeError, as PyAVReader does.
    """
    if video.scene_cuts or video.clip_s == "whole" or video.decoder != "pyav" or video.integrity != "strict":
        return []
    with damage_named(), PyAVReader(source, limits) as reader:
        index = reader.index()
        if index is None:
            return []
        taken = sample_clips(_numbered(index), video, reader.info, int)
        clips = [tuple(frame.prepared for frame in clip.frames) for clip in taken]
    if first_clip >= len(clips):
        return []
    frames_per_taken = len(index.stamps_s) / sum(map(len, clips))
    piece_frames = round(min(max(piece_taken * frames_per_taken, _LEAST_FRAMES), _MOST_FRAMES))
    # Frames up to the end of the clip before are known to be good, but a clip may share some of them.
    first = min(clips[first_clip][0], clips[first_clip - 1][-1] + 1 if first_clip else 0)
    entries = _entries(index, first, piece_frames)
    return list(_pieces(index, entries, clips, first_clip)) if len(entries) > 1 else []


def decode_piece(
    source: bytes | IO[bytes],
    piece: VideoPiece,
    preprocessing: Preprocessing,
    video: Video,
    limits: Limits,
    *,
    sample_id: str,
) -> Iterator[VideoView]:
    """What `decode_video` gives of the piece's clips.

    Raises DecodeError where anything is not as it was foreseen: what the reasons and clips of the video are then, the
    whole says.
    """
    with damage_named(), PyAVReader(source, limits) as reader:
        prepare = PreparedViews(preprocessing, sample_id)
        fps = sampled_fps(video, reader.info)
        for clip in _taken(reader.frames_from(piece.entry), piece, prepare):
            yield from prepare.views(clip, fps)


def _numbered(index: VideoIndex) -> Iterator[Frame]:
    """Frames whose pixels are their number."""
    for number, pts_s in enumerate(index.stamps_s.tolist()):
        yield Frame(pts_s=pts_s, rgb=partial(np.array, number), thumbnail=partial(np.array, number))


def _entries(index: VideoIndex, first: int, piece_frames: int) -> list[KeyFrame]:
    """Where pieces begin: at or before frame `first`, and from there on at key frames that are far enough apart."""
    numbers = [key.number for key in index.key_frames]
    at = bisect_right(numbers, first) - 1
    entries, least = [index.key_frames[at]], first + piece_frames
    for key in index.key_frames[at + 1 :]:
        if key.number >= least and len(index.stamps_s) - key.number >= piece_frames // 2:
            entries.append(key)
            least = key.number + piece_frames
    return entries


def _pieces(
    index: VideoIndex, entries: Sequence[KeyFrame], clips: Sequence[Numbers], first_clip: int
) -> Iterator[VideoPiece]:
    for entry, following in zip(entries, [*entries[1:], None], strict=True):
        stop_clip = first_clip
        end = len(index.stamps_s) if following is None else following.number
        while stop_clip < len(clips) and clips[stop_clip][0] < end:
            stop_clip += 1
        own = tuple(clips[first_clip:stop_clip])
        end = max(end, own[-1][-1] + 1 if own else 0)
        yield VideoPiece(
            entry=entry,
            first_clip=first_clip,
            clips=own,
            stamps_s=index.stamps_s[entry.number : end],
            is_last=following is None,
        )
        first_clip = stop_clip


def _taken(frames: Iterator[Frame], piece: VideoPiece, prepare: PreparedViews) -> Iterator[TakenClip[list[np.ndarray]]]:
    """The piece's clips, one in memory at a time, if the frames are those that it expects."""
    wanted = {number for clip in piece.clips for number in clip}
    held, given = dict[int, TakenFrame[list[np.ndarray]]](), 0
    for offset, stamp_s in enumerate(piece.stamps_s.tolist()):
        frame = next(frames, None)
        if frame is None or frame.pts_s != stamp_s:
            raise DecodeError("decoder_error", f"a frame at {stamp_s:.3f} s was to come")
        number = piece.entry.number + offset
        if number not in wanted:
            continue
        held[number] = TakenFrame(pts_s=stamp_s, prepared=prepare(frame.rgb()))
        while given < len(piece.clips) and piece.clips[given][-1] == number:
            yield TakenClip(frames=tuple(held[each] for each in piece.clips[given]))
            given += 1
            first = piece.clips[given][0] if given < len(piece.clips) else number + 1
            held = {each: frame for each, frame in held.items() if each >= first}
    if piece.is_last and next(frames, None) is not None:
        raise DecodeError("decoder_error", "there are frames after the last")
