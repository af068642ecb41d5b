"""JPEG files, segment by segment: the same pixels with less beside them, and whether all of them are there."""

from __future__ import annotations

import io
import random
import re
from collections.abc import Iterator
from typing import NamedTuple

from PIL import Image

__all__ = ["lacks_pixels", "pixels_alone"]

_START, _END = b"\xff\xd8", b"\xff\xd9"
_TABLES = (0xC4, 0xCC, 0xDB, 0xDD)
_FRAMES = (0xC0, 0xC1, 0xC2, 0xC9, 0xCA)  # baseline, extended and progressive, by Huffman or arithmetic codes
_PROGRESSIVE = (0xC2, 0xCA)
_SCAN = 0xDA
_BESIDE = (*range(0xE0, 0xF0), 0xFE)
_EXIF, _XMP, _ICC = b"Exif\0\0", b"http://ns.adobe.com/xap/1.0/\0", b"ICC_PROFILE\0"
_MARKER = re.compile(rb"\xff+([\xc0-\xcf\xd9-\xfe])")
_SEGMENT = re.compile(rb"\xff(?:[\xc0-\xc2\xc4\xc9\xca\xcc\xdb\xdd\xe0-\xef\xfe]|\xd8\xff)")
_LONGEST = 2 + 0xFFFF
_MOST_TRIES = 4096  # for a file
_NUM_ENDINGS = 8


class _Segment(NamedTuple):
    marker: int
    start: int  # of its marker
    end: int


class _End(NamedTuple):
    at: int  # where it is, or has to be put
    is_there: bool


def pixels_alone(payload: bytes) -> Iterator[bytes]:
    """The file with an end, then with its EXIF, XMP and profile alone, then without them.

    A file without its end is told only if no pixel depends on what could come after it (see `_ended`).
    """
    told = {payload}
    for candidate in (payload, _header_alone(payload, words=True), _header_alone(payload, words=False)):
        ended = None if candidate is None else _ended(candidate)
        if ended is not None and ended not in told:
            told.add(ended)
            yield ended


def lacks_pixels(payload: bytes) -> bool:
    """Whether an end comes before all pixels did: libjpeg would leave the rest grey. Decodes up to eight times."""
    segments = _segments(payload)
    if segments is None:
        return False
    start = payload[: _place_of_end(payload, segments).at]
    return not (_is_complete(start, segments) and _decodes_to_one(start))


def _header_alone(payload: bytes, *, words: bool) -> bytes | None:
    segments = _segments(payload)
    if segments is None:
        return None
    kept = [payload[each.start : each.end] for each in segments if _is_kept(payload, each, words=words)]
    return b"".join((_START, *kept, payload[segments[-1].end :]))


def _is_kept(payload: bytes, segment: _Segment, *, words: bool) -> bool:
    data = payload[segment.start + 4 : segment.end]
    if segment.marker == 0xE0:
        return data.startswith(b"JFIF\0") and len(data) >= 14
    if segment.marker == 0xEE:  # says which colours the channels are
        return data.startswith(b"Adobe") and len(data) >= 12
    if segment.marker == 0xE1:
        return words and data.startswith((_EXIF, _XMP))
    if segment.marker == 0xE2:
        return words and data.startswith(_ICC) and len(data) > 14
    return segment.marker not in _BESIDE


# --- the header -----------------------------------------------------------------------------------------------------


def _segments(payload: bytes) -> list[_Segment] | None:
    """From the first one to the start of the first scan; None where they do not lead to one.

    If a segment that stands beside the picture lies about its length, or something else lies there, the picture's
    segments are found behind it: those that lead to a scan, and are in no picture of their own (a thumbnail lies
    between a start and an end).
    """
    found, leads = _chain(payload, len(_START))
    if leads:
        return found
    doubtful = [(number, each.start + 4) for number, each in enumerate(found) if each.marker in _BESIDE]
    tries = iter(range(_MOST_TRIES))
    for number, at in [*reversed(doubtful), (len(found), found[-1].end if found else len(_START))]:
        until = at + 2 * _LONGEST
        for _ in tries:
            match = _SEGMENT.search(payload, at, until)
            if match is None:
                break
            if match.group().startswith(_START):
                end = payload.find(_END, match.end(), until)
                at = match.end() if end < 0 else end + 2
                continue
            others, leads = _chain(payload, match.start())
            if leads and _has_its_tables(payload, [*found[:number], *others]):
                return [*found[:number], *others]
            at = match.start() + 1
    return None


def _has_its_tables(payload: bytes, segments: list[_Segment]) -> bool:
    """Whether each table that the frame and its first scan name is there: a decoder would take others for those."""
    frame = next(each for each in segments if each.marker in _FRAMES)
    scan = segments[-1]
    quantizing, coding = set[int](), set[int]()
    for each in segments:
        at = each.start + 4
        while each.marker in (0xC4, 0xDB) and at < each.end:
            if each.marker == 0xDB:
                quantizing.add(payload[at] & 15)
                at += 129 if payload[at] >> 4 else 65
            else:
                coding.add(payload[at])
                at += 17 + sum(payload[at + 1 : at + 17])
    wanted = {table >> 4 for table in payload[scan.start + 6 : scan.end - 3 : 2]}  # of DC
    if frame.marker not in _PROGRESSIVE:
        wanted |= {0x10 | table & 15 for table in payload[scan.start + 6 : scan.end - 3 : 2]}
    is_arithmetic = frame.marker in (0xC9, 0xCA)
    return set(payload[frame.start + 12 : frame.end : 3]) <= quantizing and (is_arithmetic or wanted <= coding)


def _chain(payload: bytes, at: int) -> tuple[list[_Segment], bool]:
    """Segments, one right behind the other, and whether they lead to a scan by way of one frame."""
    found: list[_Segment] = []
    while at + 4 <= len(payload) and payload[at] == 0xFF:
        marker = payload[at + 1]
        if marker == 0xFF:  # padding
            at += 1
            continue
        end = at + 2 + int.from_bytes(payload[at + 2 : at + 4], "big")
        if marker not in (*_TABLES, *_FRAMES, _SCAN, *_BESIDE) or end < at + 4:
            break
        found.append(_Segment(marker, at, end))
        if marker == _SCAN:
            frames = [each for each in found if each.marker in _FRAMES]
            return found, len(frames) == 1 and end <= len(payload)
        at = end
    return found, False


# --- the end --------------------------------------------------------------------------------------------------------


def _ended(payload: bytes) -> bytes | None:
    """The file itself where it has an end; with an end where all pixels came; else None.

    Scans must have brought every coefficient to its last bit. Whether the last scan is whole cannot be read off its
    bytes, so it is tried: decoded with eight endings, whose next three bits take every value, an unfinished picture
    comes out in several ways, while to a finished one they are noise before its end.
    """
    segments = _segments(payload)
    if segments is None:
        return None
    end = _place_of_end(payload, segments)
    if end.is_there:
        return payload
    start = payload[: end.at]
    return start + _END if _is_complete(start, segments) and _decodes_to_one(start) else None


def _place_of_end(payload: bytes, segments: list[_Segment]) -> _End:
    at = segments[-1].end
    while (match := _MARKER.search(payload, at)) is not None:
        marker = match.group(1)[0]
        if marker == _END[1]:
            return _End(match.start(), True)
        at = match.end() + int.from_bytes(payload[match.end() : match.end() + 2], "big")
        if at > len(payload) or at < match.end() + 2:
            return _End(match.start(), False)
    return _End(len(payload.rstrip(b"\xff")), False)


def _is_complete(payload: bytes, segments: list[_Segment]) -> bool:
    frame = next(each for each in segments if each.marker in _FRAMES)
    components = payload[frame.start + 10 : frame.end : 3]
    is_progressive = frame.marker in _PROGRESSIVE
    missing = {(component, k) for component in components for k in range(64)}
    at = segments[-1].start
    while missing and (match := _MARKER.search(payload, at)) is not None:
        data, at = match.end() + 2, match.end() + int.from_bytes(payload[match.end() : match.end() + 2], "big")
        if match.group(1)[0] != _SCAN or at <= data + 4:
            continue
        first, last, shifts = payload[at - 3 : at]
        if not is_progressive:
            first, last, shifts = 0, 63, 0
        if not shifts & 15:
            for component in payload[data + 1 : at - 3 : 2]:
                missing -= {(component, k) for k in range(first, last + 1)}
    return not missing


def _decodes_to_one(payload: bytes) -> bool:
    noise = random.Random(0)
    first = None
    for number in range(_NUM_ENDINGS):
        ending = bytes((number << 5 | noise.randrange(31), *(noise.randrange(255) for _ in range(64))))
        try:
            with Image.open(io.BytesIO(payload + ending + _END), formats=("JPEG",)) as image:
                pixels = image.tobytes()
        except (Image.DecompressionBombError, Image.DecompressionBombWarning, MemoryError):
            raise
        except Exception:  # hostile bytes, and another way of telling the file may do
            return False
        if first is None:
            first = pixels
        elif pixels != first:
            return False
    return True
