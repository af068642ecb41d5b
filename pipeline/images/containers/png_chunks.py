"""PNG files, chunk by chunk: the same pixels with less beside them, and whether all rows are there.

Damage is treated as libpng treats it: an ancillary chunk (its name begins with a lower-case letter) whose checksum is
wrong is left out; one that is wrong in IHDR or PLTE is damage to the picture. Checksums of IDAT are not asked for, as
Pillow does not: the compressed stream has a check of its own.
"""

from __future__ import annotations

import re
import struct
import zlib
from collections.abc import Iterator
from typing import NamedTuple

__all__ = ["MOST_BESIDE", "lacks_rows", "pixels_alone", "signature"]

signature = b"\x89PNG\r\n\x1a\n"
MOST_BESIDE = 1 << 20
"""Bytes that a compressed profile or EXIF block may come to; a larger one is dropped. It is Pillow's limit, too."""
_PICTURE = (b"IHDR", b"PLTE", b"IDAT", b"IEND")
_ANIMATION = (b"acTL", b"fcTL", b"fdAT")
_XMP, _EXIF_AS_TEXT = b"XML:com.adobe.xmp", b"Raw profile type exif"
_KNOWN = re.compile(rb"PLTE|tRNS|IDAT|IEND|iCCP|eXIf|acTL|fcTL|fdAT")
_MOST_TRIES = 256  # for a file: each may take a checksum of all of it
_CHANNELS = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}  # by colour type
_PASSES = ((0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2))


class _Chunk(NamedTuple):
    kind: bytes
    data: bytes
    is_sound: bool  # its checksum is right


def pixels_alone(payload: bytes, *, animated: bool) -> bytes | None:
    """The file with nothing in it but what pixels depend on, and an end; None where the picture itself is damaged.

    That is: header, palette, transparency, pixels; the profile and what may say which way is up, where they are sound;
    the frames of an animation if `animated`, all of which then have to be sound. Nothing that is dropped is unpacked.
    """
    kept = [signature]
    colour_type, frames_left = None, 0
    for chunk in _chunks(payload):
        of_picture = chunk.kind in (b"IHDR", b"PLTE") or (animated and chunk.kind in _ANIMATION)
        if of_picture and not chunk.is_sound:
            return None
        frames_left += int.from_bytes(chunk.data[:4], "big") if chunk.kind == b"acTL" else -(chunk.kind == b"fcTL")
        if chunk.kind == b"IHDR":
            colour_type = chunk.data[9] if len(chunk.data) >= 13 else None
        data = _kept(chunk, colour_type, animated)
        if data is not None and chunk.kind != b"IEND":
            kept.append(_written(chunk.kind, data))
    if colour_type is None or (animated and frames_left):
        return None
    return b"".join((*kept, _written(b"IEND", b"")))


def lacks_rows(payload: bytes) -> bool:
    """Whether the compressed pixels of a PNG end before its last row: Pillow would leave the rest black."""
    header, streams = None, zlib.decompressobj()
    left = 0
    for chunk in _chunks(payload):
        if chunk.kind == b"IHDR":
            header = chunk.data
            left = _num_raw_bytes(header)
        if chunk.kind != b"IDAT" or left <= 0:
            continue
        data = chunk.data
        while data and not streams.eof:
            left -= len(streams.decompress(data, 1 << 20))
            data = streams.unconsumed_tail
    return header is not None and left > 0


def _chunks(payload: bytes) -> Iterator[_Chunk]:
    """In order; where an ancillary chunk's length cannot be true, on from the next chunk whose checksum is right."""
    at, tries = len(signature), iter(range(_MOST_TRIES))
    while at + 8 <= len(payload):
        (length,), kind = struct.unpack_from(">I", payload, at), payload[at + 4 : at + 8]
        end = at + 8 + length
        if not kind.isalpha() or (_is_ancillary(kind) and not _may_end(payload, end)):
            yield _Chunk(kind, b"", False)
            found = _next_sound(payload, at + 8, tries)
            if found is None:
                return
            at = found
            continue
        data = payload[at + 8 : end]
        checksum = payload[end : end + 4]
        yield _Chunk(kind, data, len(checksum) == 4 and struct.unpack(">I", checksum)[0] == zlib.crc32(kind + data))
        if kind == b"IEND":
            return
        at = end + 4


def _may_end(payload: bytes, end: int) -> bool:
    following = payload[end + 8 : end + 12]
    return end + 4 <= len(payload) and (following.isalpha() if len(following) == 4 else end + 12 > len(payload))


def _next_sound(payload: bytes, start: int, tries: Iterator[int]) -> int | None:
    for match, _ in zip(_KNOWN.finditer(payload, start), tries, strict=False):
        at = match.start() - 4
        end = match.end() + int.from_bytes(payload[at : match.start()], "big")
        checksum = payload[end : end + 4]
        if len(checksum) == 4 and zlib.crc32(payload[match.start() : end]) == int.from_bytes(checksum, "big"):
            return at
    return None


def _is_ancillary(kind: bytes) -> bool:
    return bool(kind[0] & 0x20)


def _kept(chunk: _Chunk, colour_type: int | None, animated: bool) -> bytes | None:
    kind, data = chunk.kind, chunk.data
    if kind in _PICTURE:
        return data
    if not chunk.is_sound:
        return None
    if kind in _ANIMATION:
        return data if animated else None
    if kind == b"eXIf":
        return data
    if kind == b"tRNS":
        return data if len(data) >= {0: 2, 2: 6}.get(colour_type or 0, 1) else None
    name, zero, rest = data.partition(b"\0")
    if not zero:
        return None
    if kind == b"iCCP":
        return data if rest[:1] == b"\0" and _unpacked(rest[1:]) is not None else None
    if kind in (b"tEXt", b"zTXt") and name == _EXIF_AS_TEXT:
        return data if kind == b"tEXt" or (rest[:1] == b"\0" and _unpacked(rest[1:]) is not None) else None
    if kind == b"iTXt" and name == _XMP:
        return data if rest[:1] == b"\0" or _unpacked(rest[2:].split(b"\0", 2)[-1]) is not None else None
    return None


def _unpacked(data: bytes) -> bytes | None:
    """Of at most MOST_BESIDE bytes; None where it is damaged or longer."""
    stream = zlib.decompressobj()
    try:
        plain = stream.decompress(data, MOST_BESIDE)
    except zlib.error:
        return None
    return None if stream.unconsumed_tail else plain


def _written(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def _num_raw_bytes(header: bytes) -> int:
    if len(header) < 13:
        return 0
    width, height, depth, colour_type, _, _, interlaced = struct.unpack(">IIBBBBB", header[:13])
    bits = depth * _CHANNELS.get(colour_type, 0)
    if not interlaced:
        return height * (1 + (width * bits + 7) // 8)
    total = 0
    for left, top, step_x, step_y in _PASSES:
        columns, rows = -(-(width - left) // step_x), -(-(height - top) // step_y)
        if columns > 0 and rows > 0:
            total += rows * (1 + (columns * bits + 7) // 8)
    return total
