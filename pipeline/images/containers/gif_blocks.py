"""GIF files, block by block: the first picture with an end."""

from __future__ import annotations

__all__ = ["first_picture"]

_EXTENSION, _PICTURE, _END = 0x21, 0x2C, b"\0;"
_HEADER_BYTES, _DESCRIPTOR_BYTES = 13, 10


def first_picture(payload: bytes) -> bytes | None:
    """The file up to the end of its first picture, the last piece of whose data may be shorter than it says.

    Whether pixels are missing then shows: their codes are counted. None where no picture begins.
    """
    if len(payload) < _HEADER_BYTES:
        return None
    at = _HEADER_BYTES + _palette_bytes(payload[10])
    while at + _DESCRIPTOR_BYTES <= len(payload):
        is_picture = payload[at] == _PICTURE
        if is_picture:
            at += _DESCRIPTOR_BYTES + _palette_bytes(payload[at + 9]) + 1  # and the size of codes
        elif payload[at] == _EXTENSION:
            at += 2
        else:
            return None
        while at < len(payload) and payload[at]:
            end = at + 1 + payload[at]
            if end > len(payload):
                return payload[:at] + bytes([len(payload) - at - 1]) + payload[at + 1 :] + _END if is_picture else None
            at = end
        if is_picture:
            return payload[:at] + _END
        at += 1
    return None


def _palette_bytes(flags: int) -> int:
    return 3 << ((flags & 7) + 1) if flags & 0x80 else 0
