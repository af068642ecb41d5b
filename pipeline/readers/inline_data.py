"""Text that is an image or a video itself, as a data URI or as base64, where an address was to be expected."""

from __future__ import annotations

import binascii
import re
from typing import NamedTuple
from urllib.parse import unquote_to_bytes

from tatok.pipeline.images.extras import extra_of
from tatok.pipeline.readers.formats import HEAD_BYTES, container_of, is_media
from tatok.pipeline.readers.unreadable import Unreadable

__all__ = ["InlineData", "inline_data", "is_inline"]

_DATA_URI = re.compile(r"data:([^,;]*)((?:;[^,;]*)*),", re.IGNORECASE)
_DATA = "data:"
_HEAD_CHARS = 4 * HEAD_BYTES // 3
_LONGEST_PREFIX = 1024  # of a data URI, before its comma
_SURELY_NO_NAME = 256  # as base64 without a dot or a colon: longer than a file's name may be
_LONGEST_ADDRESS = 8192  # that servers take
_BASE64 = re.compile(r"[A-Za-z0-9+/_-]*={0,2}")
_SPACE = str.maketrans("", "", " \t\r\n")  # some writers break base64 into lines
_URL_SAFE = str.maketrans("-_", "+/")
_SIGNATURES = (
    b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", b"GIF87a", b"GIF89a", b"II*\0", b"MM\0*", b"\0\0\0\x0cjP  \r\n",
)  # fmt: skip
_SHORT_SIGNATURES = (b"BM", b"\xff\x0a")  # BMP, JPEG XL: in base64 a path may begin so ("/worth/...")


class InlineData(NamedTuple):
    """The bytes, and the extension that goes with the kind that a data URI says; "" where it says none."""

    content: bytes
    extension: str


def is_inline(text: str) -> bool:
    """Whether a text is data rather than an address."""
    if text[: len(_DATA)].lower() == _DATA or len(text) > _LONGEST_ADDRESS:
        return True
    if len(text) < _SURELY_NO_NAME and "." in text:  # most addresses
        return False
    head = _decoded(text.lstrip()[:_HEAD_CHARS])
    if head is None:
        return False
    return _begins_media(head) or (len(text) >= _SURELY_NO_NAME and _decoded(text) is not None)


def inline_data(text: str) -> InlineData | Unreadable | None:
    """What a text holds, or why that is unreadable ("inline_data"); None where it is an address.

    A data URI may hold anything, base64 without one has to begin as an image or a video does. The reason's detail does
    not hold the data.
    """
    if not is_inline(text):
        return None
    prefix = _DATA_URI.match(text[:_LONGEST_PREFIX])
    if prefix is not None:
        kind, _, subtype = prefix[1].strip().lower().rpartition("/")
        extension = subtype if kind in ("image", "video") and is_media(f".{subtype}") else ""
        data = text[prefix.end() :]
        if not prefix[2].lower().replace(" ", "").endswith(";base64"):
            return InlineData(unquote_to_bytes(data), extension)
        content = _decoded(unquote_to_bytes(data).decode("ascii", "replace") if "%" in data else data)
        return (
            _unreadable("a data URI whose base64 is damaged", text)
            if content is None
            else InlineData(content, extension)
        )
    if text[: len(_DATA)].lower() == _DATA:
        return _unreadable("a data URI without a comma", text)
    content = _decoded(text)
    if content is None:
        return _unreadable("damaged base64, or no address", text)
    head = content[:HEAD_BYTES]
    if not _begins_media(head) and not head.startswith(_SHORT_SIGNATURES):
        return _unreadable("base64 of no image or video that is known", text)
    return InlineData(content, "")


def _unreadable(what: str, text: str) -> Unreadable:
    return Unreadable(reason="inline_data", detail=f"{what}, of {len(text)} characters")


def _decoded(text: str) -> bytes | None:
    """Base64, of either alphabet, with or without its padding; None where it is none."""
    plain = text.translate(_SPACE)
    if not plain or not _BASE64.fullmatch(plain):
        return None
    plain = plain.translate(_URL_SAFE).rstrip("=")
    try:
        return binascii.a2b_base64(plain + "=" * (-len(plain) % 4), strict_mode=True)
    except binascii.Error:
        return None


def _begins_media(head: bytes) -> bool:
    is_webp = head[:4] == b"RIFF" and head[8:12] == b"WEBP"
    is_avif = head[4:8] == b"ftyp" and head[8:12] in (b"avif", b"avis")
    if head.startswith(_SIGNATURES) or is_webp or is_avif or container_of(head) is not None:
        return True
    return extra_of(head) is not None and not head.startswith(_SHORT_SIGNATURES)
