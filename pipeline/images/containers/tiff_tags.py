"""TIFF files: the first picture with no tags but those that its pixels depend on."""

from __future__ import annotations

import struct
from collections.abc import Iterator

__all__ = ["first_picture"]

_ORIENTATION, _PROFILE = 274, 34_675
_OF_PIXELS = frozenset(
    [
        *range(254, 260),  # which picture, its sides, its bits, how it is packed
        *(262, 266, 273, 277, 278, 279, 284, 292, 293, 317, 320, 322, 323, 324, 325, 332, 338, 339),
        *(347, *range(512, 522), 529, 530, 531, 532),  # of JPEGs inside, and of YCbCr
    ]
)


def first_picture(payload: bytes) -> Iterator[bytes]:
    """The file with its first directory shortened, in place: with orientation and profile, then without.

    No other directory is reached from it. Nothing where the directory is not whole.
    """
    order = {b"II": "<", b"MM": ">"}.get(payload[:2])
    if order is None or len(payload) < 16:
        return
    is_big = struct.unpack_from(order + "H", payload, 2)[0] == 43
    place, number, size = (order + "Q", order + "Q", 20) if is_big else (order + "I", order + "H", 12)
    (at,) = struct.unpack_from(place, payload, 8 if is_big else 4)
    first = at + struct.calcsize(number)
    if first > len(payload):
        return
    (count,) = struct.unpack_from(number, payload, at)
    end = first + count * size
    if end > len(payload):
        return
    for beside in (frozenset([_ORIENTATION, _PROFILE]), frozenset[int]()):
        entries = [payload[start : start + size] for start in range(first, end, size)]
        kept = [each for each in entries if struct.unpack_from(order + "H", each)[0] in _OF_PIXELS | beside]
        told = struct.pack(number, len(kept)) + b"".join(kept) + struct.pack(place, 0)
        yield payload[:at] + told + payload[at + len(told) :]
