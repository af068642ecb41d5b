"""WebP files, chunk by chunk: the same picture with less beside it."""

from __future__ import annotations

from collections.abc import Iterator

__all__ = ["pixels_alone"]

_FLAGS = {b"ICCP": 0x20, b"EXIF": 0x08, b"XMP ": 0x04}  # in VP8X
_PICTURE = (b"VP8 ", b"VP8L", b"ALPH", b"ANIM", b"ANMF")


def pixels_alone(payload: bytes, *, animated: bool) -> Iterator[bytes]:
    """The file with what is whole of its profile, EXIF and XMP, then without them; nothing where pixels are missing.

    Of an animation the first frame is what counts, unless `animated`: then each frame that its size promises must be
    there.
    """
    chunks, is_whole = _chunks(payload)
    header = next((data for kind, data in chunks if kind == b"VP8X" and len(data) >= 10), None)
    moves = header is not None and bool(header[0] & 0x02)
    frames = [each for each in chunks if each[0] == b"ANMF"]
    if (moves and (not frames or (animated and not is_whole))) or not (
        moves or any(kind in (b"VP8 ", b"VP8L") for kind, _ in chunks)
    ):
        return
    for beside in (tuple(_FLAGS), ()):
        kept = [each for each in chunks if each[0] in _PICTURE or each[0] in beside]
        if moves and not animated:
            kept = [each for each in kept if each[0] != b"ANMF" or each is frames[0]]
        if header is not None:
            flags = header[0] & ~sum(_FLAGS.values()) | sum({_FLAGS.get(kind, 0) for kind, _ in kept})
            kept.insert(0, (b"VP8X", bytes([flags]) + header[1:10]))
        body = b"WEBP" + b"".join(
            kind + len(data).to_bytes(4, "little") + data + bytes(len(data) % 2) for kind, data in kept
        )
        yield b"RIFF" + len(body).to_bytes(4, "little") + body


def _chunks(payload: bytes) -> tuple[list[tuple[bytes, bytes]], bool]:
    """Those that are whole, and whether nothing of the picture can be among what is not."""
    promised = 8 + int.from_bytes(payload[4:8], "little")
    found: list[tuple[bytes, bytes]] = []
    at = 12
    while at + 8 <= len(payload):
        kind, length = payload[at : at + 4], int.from_bytes(payload[at + 4 : at + 8], "little")
        data = payload[at + 8 : at + 8 + length]
        if len(data) < length:
            return found, kind in _FLAGS
        found.append((kind, data))
        at += 8 + length + length % 2
    return found, at >= promised
