"""File names and first bytes -> what is in a file: an archive, a table, a list, an image or a video."""

from __future__ import annotations

from typing import Literal
from urllib.parse import urlsplit

from PIL import Image

__all__ = [
    "ARCHIVE_FORMATS",
    "ATTACHMENTS",
    "IMAGE_EXTENSIONS",
    "VIDEO_EXTENSIONS",
    "SourceFormat",
    "extension_of",
    "format_of",
    "is_media",
    "media_of",
]

SourceFormat = Literal["webdataset", "parquet", "list", "media", "unknown"]

ARCHIVE_FORMATS: tuple[SourceFormat, ...] = ("webdataset", "parquet")
"""Files of many samples; a folder that holds any stands for these."""
ATTACHMENTS = ("txt", "cls", "json")
# Pillow registers these only to name or to write them; EPS would run another program.
_NOT_READ = frozenset(["bufr", "eps", "grib", "h5", "hdf", "iim", "mpeg", "mpg", "pdf", "ps"])
IMAGE_EXTENSIONS = (
    frozenset(extension.removeprefix(".") for extension in Image.registered_extensions()) | {"avif"}
) - _NOT_READ
VIDEO_EXTENSIONS = frozenset(
    ["mp4", "m4v", "mov", "mkv", "webm", "avi", "mpg", "mpeg", "ts", "m2ts", "mts", "wmv", "flv", "ogv", "3gp", "y4m"]
)
_MEDIA_EXTENSIONS = IMAGE_EXTENSIONS | VIDEO_EXTENSIONS
_ARCHIVES = (".tar", ".tar.gz", ".tgz", ".tar.zst", ".tzst")
_LISTS = (".txt", ".csv", ".tsv", ".jsonl", ".ndjson")
_STILL_BRANDS = (b"avif", b"avis", b"heic", b"heix", b"mif1", b"msf1")  # images in the container of MP4


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
    """By the extension; where that says nothing, by the first bytes (12 suffice); an image in doubt."""
    extension = extension_of(name)
    if extension in _MEDIA_EXTENSIONS:
        return "video" if extension in VIDEO_EXTENSIONS else "image"
    is_mp4 = head[4:8] == b"ftyp" and head[8:12] not in _STILL_BRANDS
    is_avi = head[:4] == b"RIFF" and head[8:12] == b"AVI "
    return "video" if is_mp4 or is_avi or head[:4] == b"\x1a\x45\xdf\xa3" else "image"
