"""What stands beside the pixels: an image that a decoder refuses is told again with less of it, then without.

Comments, text, profiles, EXIF and XMP blocks, previews, unknown chunks, a missing end: none of it decides over pixels.
Nothing here is asked before a decoder has refused a file, so good files cost nothing.
"""

from __future__ import annotations

from collections.abc import Iterator

from tatok.pipeline.images.containers import (
    boxes,
    gif_blocks,
    jpeg_segments,
    png_chunks,
    tiff_tags,
    webp_chunks,
)

__all__ = ["pixels_alone"]


def pixels_alone(payload: bytes, *, animated: bool) -> Iterator[bytes]:
    """Files that hold the same pixels as `payload`, with less and less beside them; none where pixels are missing.

    Orientation and profile are kept for as long as they can be. Of an animation only the first frame counts, unless
    `animated`. Takes a few times the memory of the payload, and for a JPEG without an end that of two images.
    """
    told: bytes | None = None
    if payload.startswith(png_chunks.signature):
        told = png_chunks.pixels_alone(payload, animated=animated)
    elif payload.startswith(b"\xff\xd8"):
        yield from jpeg_segments.pixels_alone(payload)
    elif payload.startswith(b"RIFF") and payload[8:12] == b"WEBP":
        yield from webp_chunks.pixels_alone(payload, animated=animated)
    elif payload.startswith((b"II", b"MM")):
        yield from tiff_tags.first_picture(payload)
    elif payload.startswith((b"GIF87a", b"GIF89a")):
        told = None if animated else gif_blocks.first_picture(payload)
    elif payload[4:8] == b"ftyp":
        told = boxes.of_items(payload)
    elif payload[4:8] == b"JXL ":
        yield from boxes.of_jpeg_xl(payload)
    else:
        told = boxes.of_jpeg_2000(payload)
    if told is not None and told != payload:
        yield told
