"""The size of a JPEG XL picture from its first bytes: the plug-in would decode it before it says it."""

from __future__ import annotations

__all__ = ["jxl_size"]

_STREAM = b"\xff\x0a"
_RATIOS = {1: (1, 1), 2: (12, 10), 3: (4, 3), 4: (3, 2), 5: (16, 9), 6: (5, 4), 7: (2, 1)}  # width to height
_HEADER_BYTES = 16


def jxl_size(payload: bytes) -> tuple[int, int] | None:
    """(width, height) as stored, before it is turned upright; None where no codestream begins in the file."""
    stream = payload[:_HEADER_BYTES] if payload.startswith(_STREAM) else _stream_in_boxes(payload)
    if not stream.startswith(_STREAM) or len(stream) < 3:
        return None
    bits = _Bits(int.from_bytes(stream[2:], "little"))
    is_small = bits.take(1)
    height = _side(bits, is_small)
    ratio = bits.take(3)
    if not ratio:
        return _side(bits, is_small), height
    across, down = _RATIOS[ratio]
    return height * across // down, height


class _Bits:
    """Bits of a number, the lowest first."""

    def __init__(self, value: int) -> None:
        self._value = value

    def take(self, count: int) -> int:
        taken = self._value & ((1 << count) - 1)
        self._value >>= count
        return taken


def _side(bits: _Bits, is_small: int) -> int:
    if is_small:
        return 8 * (bits.take(5) + 1)
    return bits.take((9, 13, 18, 30)[bits.take(2)]) + 1


def _stream_in_boxes(payload: bytes) -> bytes:
    """The first bytes of the codestream, which may lie in one box (jxlc) or in parts (jxlp, each with a number)."""
    found, at = b"", 0
    while at + 8 <= len(payload) and len(found) < _HEADER_BYTES:
        length, kind, data = int.from_bytes(payload[at : at + 4], "big"), payload[at + 4 : at + 8], at + 8
        if length == 1:
            length, data = int.from_bytes(payload[at + 8 : at + 16], "big"), at + 16
        elif length == 0:
            length = len(payload) - at
        if length < data - at:
            break
        if kind in (b"jxlc", b"jxlp"):
            start = data + (4 if kind == b"jxlp" else 0)
            found += payload[start : min(start + _HEADER_BYTES, at + length)]
        at += length
    return found
