"""File names and first bytes -> what is in a file: an archive, a table, a list, an image or a video."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal
from urllib.parse import urlsplit

from PIL import Image

from tatok.pipeline.images.extras import EXTRAS, HEIF_BRANDS

__all__ = [
    "ARCHIVE_FORMATS",
    "ATTACHMENTS",
    "HEAD_BYTES",
    "IMAGE_EXTENSIONS",
    "VIDEO_CONTAINERS",
    "VIDEO_EXTENSIONS",
    "SourceFormat",
    "container_of",
    "extension_of",
    "format_of",
    "is_media",
    "media_of",
    "missing_extra",
]

SourceFormat = Literal["webdataset", "parquet", "list", "media", "unknown"]

ARCHIVE_FORMATS: tuple[SourceFormat, ...] = ("webdataset", "parquet")
"""Files of many samples."""
ATTACHMENTS = ("txt", "cls", "json")
# Pillow registers these only to name or to write them; EPS would run another program.
_NOT_READ = frozenset(["bufr", "eps", "grib", "h5", "hdf", "iim", "mpeg", "mpg", "pdf", "ps"])
_EXTRA_OF = {extension: extra for extra in EXTRAS.values() for extension in extra.extensions}
IMAGE_EXTENSIONS = (
    frozenset(extension.removeprefix(".") for extension in Image.registered_extensions()) | {"avif", *_EXTRA_OF}
) - _NOT_READ
"""Those of extras are among them whether or not they are installed: what is called an image is the same anywhere."""
VIDEO_CONTAINERS: Mapping[str, tuple[str, ...]] = {
    "mov": ("mp4", "m4v", "mov", "3gp"),
    "matroska": ("mkv", "webm"),
    "avi": ("avi",),
    "mpeg": ("mpg", "mpeg"),
    "mpegts": ("ts", "m2ts", "mts"),
    "mpegvideo": ("mpg", "mpeg"),
    "flv": ("flv",),
}
"""Every container that videos are read from, by FFmpeg's name, and the extensions that its files have.

Left out: playlists and scripts, which name other files and addresses for FFmpeg to open; WMV, Ogg and raw frames (Y4M),
where damage leaves no sign (docs/guides/video.md).
"""
VIDEO_EXTENSIONS = frozenset(extension for extensions in VIDEO_CONTAINERS.values() for extension in extensions)
HEAD_BYTES = 12
"""How many first bytes say what is in a file."""
_MEDIA_EXTENSIONS = IMAGE_EXTENSIONS | VIDEO_EXTENSIONS
_ARCHIVES = (".tar", ".tar.gz", ".tgz", ".tar.zst", ".tzst", ".tar.bz2", ".tbz2", ".tar.xz", ".txz")
_LISTS = (".txt", ".csv", ".tsv", ".jsonl", ".ndjson")
_MAGIC = {
    b"\x1a\x45\xdf\xa3": "matroska",
    b"FLV\x01": "flv",
    b"\x00\x00\x01\xba": "mpeg",
    b"\x00\x00\x01\xb3": "mpegvideo",
}
_STILL_BRANDS = (b"avif", b"avis", *HEIF_BRANDS)  # images in the container of MP4


def extension_of(uri: str) -> str:
    """The lower-case extension of a path's or URL's base name, without the dot; "" where there is none."""
    path = urlsplit(uri).path if uri.startswith(("http://", "https://")) else uri
    _, dot, extension = path.rpartition("/")[2].rpartition(".")
    return extension.lower() if dot else ""


def format_of(uri: str) -> SourceFormat:
    """What the name of a source file promises; "unknown" where it promises nothing."""
    name = (urlsplit(uri).path if uri.startswith(("http://", "https://")) else uri).lower()
    if name.endswith(_ARCHIVES):
        return "webdataset"
    if name.endswith((".parquet", ".pq")):
        return "parquet"
    if name.endswith(_LISTS):
        return "list"
    return "media" if is_media(name) else "unknown"


def is_media(name: str) -> bool:
    """Whether a name has an image's or a video's extension."""
    return extension_of(name) in _MEDIA_EXTENSIONS


def media_of(name: str, head: bytes = b"") -> Literal["image", "video"]:
    """By the extension; where that says nothing, by the first bytes (HEAD_BYTES suffice); an image in doubt."""
    extension = extension_of(name)
    if extension in _MEDIA_EXTENSIONS:
        return "video" if extension in VIDEO_EXTENSIONS else "image"
    return "image" if container_of(head) is None else "video"


def missing_extra(extension: str) -> str | None:
    """The extra of tatok ("heif", "jxl") that images of this extension need and that is not installed here, if any."""
    extra = _EXTRA_OF.get(extension)
    return None if extra is None or extra.is_installed else extra.name


def container_of(head: bytes) -> str | None:
    """Which of VIDEO_CONTAINERS a file's first bytes (HEAD_BYTES suffice) begin; None where they begin none of them.

    Transport streams are not recognized: their packets begin with a byte that any text may have.
    """
    if head[4:8] in (b"moov", b"mdat", b"wide") or (head[4:8] == b"ftyp" and head[8:12] not in _STILL_BRANDS):
        return "mov"
    if head[:4] == b"RIFF" and head[8:12] == b"AVI ":
        return "avi"
    return _MAGIC.get(head[:4])
