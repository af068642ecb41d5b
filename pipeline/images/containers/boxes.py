"""Pictures in boxes, AVIF, HEIF, JPEG 2000 and JPEG XL: the same picture with less beside it."""

from __future__ import annotations

import struct
from collections import Counter
from collections.abc import Iterator
from typing import NamedTuple

__all__ = ["of_items", "of_jpeg_2000", "of_jpeg_xl"]

_INSIDE = (b"ftyp", b"meta", b"moov", b"mdat")
_WORDS = (b"Exif", b"mime")  # types of items: EXIF, and XMP
_OF_JPEG_XL = (b"JXL ", b"ftyp", b"jxll", b"jxlc", b"jxlp", b"jbrd")
_CODESTREAM = b"\xff\x4f\xff\x51"
_START_OF_TILE_PART, _END = b"\xff\x90", b"\xff\xd9"


class _Box(NamedTuple):
    kind: bytes
    start: int
    data: int  # where its content begins
    end: int  # as it says


def of_items(payload: bytes) -> bytes | None:
    """An AVIF or HEIF file in which EXIF and XMP are no longer items of their kind, and nothing comes after the last
    box of the picture; None where there is nothing to be left out.

    Places of items are counted from the start of the file, so bytes are changed but not moved.
    """
    boxes = list(_boxes(payload, 0, len(payload)))
    inside = [box for box in boxes if box.kind in _INSIDE]
    if not inside or inside[0].kind != b"ftyp":
        return None
    last = inside[-1]
    told = bytearray(payload[: last.end])
    if last.kind == b"mdat" and last.end > len(payload):
        told[last.start : last.start + 4] = bytes(4)  # "to the end of the file": whether pixels are missing will show
        if last.data - last.start == 16:  # a length of 64 bits
            return None
    for meta in (box for box in inside if box.kind == b"meta"):
        for of_meta in _boxes(payload, meta.data + 4, meta.end):
            if of_meta.kind == b"iinf":
                count = 2 if payload[of_meta.data] == 0 else 4
                for entry in _boxes(payload, of_meta.data + 4 + count, of_meta.end):
                    _hide(told, payload, entry)
    return bytes(told) if told != payload else None


def _hide(told: bytearray, payload: bytes, entry: _Box) -> None:
    version = payload[entry.data] if entry.data < len(payload) else 0
    at = entry.data + 4 + (4 if version >= 3 else 2) + 2
    if entry.kind == b"infe" and version >= 2 and payload[at : at + 4] in _WORDS:
        told[at : at + 4] = b"free"


def of_jpeg_2000(payload: bytes) -> bytes | None:
    """A JPEG 2000 file with nothing but its picture's boxes, and an end; None where pixels are missing.

    Each part of a tile says how long it is; a file in which one does not ("until the end") has to have its end.
    """
    if payload.startswith(_CODESTREAM):
        return _ended(payload)
    kept = []
    for box in _boxes(payload, 0, len(payload)):
        if box.kind in (b"jP  ", b"ftyp", b"jp2h") and box.end <= len(payload):
            kept.append(payload[box.start : box.end])
        elif box.kind == b"jp2c":
            stream = _ended(payload[box.data : box.end])
            if stream is None or len(kept) != 3:
                return None
            return b"".join((*kept, bytes(4), b"jp2c", stream))
    return None


def of_jpeg_xl(payload: bytes) -> Iterator[bytes]:
    """A JPEG XL file in boxes with nothing but its codestream, first with what makes it a JPEG again, if it has that.

    Nothing where pixels are missing.
    """
    kept = [box for box in _boxes(payload, 0, len(payload)) if box.kind in _OF_JPEG_XL]
    if any(box.end > len(payload) for box in kept):
        return
    for kinds in (_OF_JPEG_XL, _OF_JPEG_XL[:-1]):
        yield b"".join(payload[box.start : box.end] for box in kept if box.kind in kinds)


def _ended(stream: bytes) -> bytes | None:
    """The codestream up to its last part of a tile, and an end; None where not every part of every tile is there."""
    at = stream.find(_START_OF_TILE_PART)
    if at < 0:
        return None
    parts_seen, parts_told = Counter[int](), dict[int, int]()
    while stream[at : at + 2] == _START_OF_TILE_PART:
        tile, length, _, num_parts = struct.unpack_from(">HIBB", stream[at : at + 12].ljust(12, b"\0"), 4)
        if length < 14 or at + length > len(stream):
            return None
        parts_seen[tile] += 1
        if num_parts:
            parts_told[tile] = num_parts
        at += length
    if parts_seen != parts_told or len(parts_seen) != _num_tiles(stream):
        return None
    return stream[:at] + _END


def _num_tiles(stream: bytes) -> int:
    width, height, _, _, tile_width, tile_height, left, top = struct.unpack_from(">8I", stream[:40].ljust(40, b"\0"), 8)
    if not tile_width or not tile_height:
        return 0
    return -(-(width - left) // tile_width) * -(-(height - top) // tile_height)


def _boxes(payload: bytes, at: int, end: int) -> Iterator[_Box]:
    while at + 8 <= min(end, len(payload)):
        length, data = int.from_bytes(payload[at : at + 4], "big"), at + 8
        if length == 1:
            length, data = int.from_bytes(payload[at + 8 : at + 16], "big"), at + 16
        elif length == 0:
            length = end - at
        if length < data - at:
            return
        yield _Box(payload[at + 4 : at + 8], at, data, at + length)
        at += length
