"""What the bytes of a video file say by themselves: why no decoder opens it, how long its transport packets are."""

from __future__ import annotations

import io
from typing import IO

from tatok.pipeline.readers.formats import HEAD_BYTES, container_of
from tatok.pipeline.video.reader import VideoDamage
from tatok.schemas.errors import DecodeError

__all__ = ["transport_packet_bytes", "why_unopened"]

_SYNC = b"\x47"
_TRANSPORT_PACKETS = ((188, 0), (192, 4), (204, 0))
"""Bytes of a packet and where in it the sync byte is: plain, with a time code (M2TS), with error correction."""
_MOST_BOXES = 10_000
_BEFORE_THE_INDEX = (b"ftyp", b"free", b"skip", b"wide", b"uuid", b"pdin", b"mdat")


def transport_packet_bytes(file: IO[bytes]) -> int:
    """How long the packets of a transport stream are, by the distance of its first sync bytes. Moves `file`."""
    file.seek(0)
    head = file.read(3 * max(length for length, _ in _TRANSPORT_PACKETS))
    for length, sync in _TRANSPORT_PACKETS:
        if all(head[sync + i * length :][:1] == _SYNC for i in range(3)):
            return length
    return _TRANSPORT_PACKETS[0][0]


def why_unopened(file: IO[bytes], error: Exception) -> DecodeError:
    """The reject of a file that a decoder refused with `error`, or found no video in. Moves `file`.

    `error` itself if it is a DecodeError, else "not_a_video", where the bytes are no damaged video's. Damaged ones show
    nothing, which is VideoDamage from 0 s on: "truncated" where an MP4 ends before its index, "corrupt" otherwise.
    """
    num_bytes = file.seek(0, io.SEEK_END)
    file.seek(0)
    container = container_of(file.read(HEAD_BYTES))
    if container == "mov" and _ends_before_its_index(file, num_bytes):
        return VideoDamage("truncated", f"the file of {num_bytes} bytes ends before its index does", 0.0)
    if isinstance(error, DecodeError):
        return error
    if container is None:
        return DecodeError("not_a_video", f"{num_bytes} bytes cannot be opened as a video: {error}")
    return VideoDamage("corrupt", f"the container ({container}) cannot be opened: {error}", 0.0)


def _ends_before_its_index(file: IO[bytes], num_bytes: int) -> bool:
    """Whether an MP4 ends within a box, or after its frames, before a whole box of the name moov has come."""
    at = 0
    for _ in range(_MOST_BOXES):
        if at >= num_bytes:
            return True
        file.seek(at)
        header = file.read(16)
        length = int.from_bytes(header[8:16] if header[:4] == b"\0\0\0\1" else header[:4])
        if length == 0:  # up to the end
            length = num_bytes - at
        if len(header) < 8 or at + length > num_bytes:
            return True
        if length < 8 or header[4:8] not in _BEFORE_THE_INDEX:
            return False
        at += length
    return False
