"""Sample -> clips and rejects: hostile bytes in, pixels for the tokenizer out, and the words with them (Pillow)."""

from __future__ import annotations

import hashlib
import io
import json
import struct
import warnings
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
from PIL import Image, UnidentifiedImageError

from schemas.errors import DecodeError
from schemas.job import Limits, Preprocessing
from schemas.records import Clip, Crop, Reject, Sample

__all__ = ["FORMATS", "decode_sample"]

FORMATS = ("JPEG", "PNG", "WEBP", "AVIF", "GIF", "TIFF", "BMP", "DIB", "PPM", "JPEG2000")
"""What is decoded. Left out: formats that run other programs (EPS) or that take any bytes for theirs (TGA)."""

_RESAMPLE = {
    "bicubic": Image.Resampling.BICUBIC,
    "bilinear": Image.Resampling.BILINEAR,
    "lanczos": Image.Resampling.LANCZOS,
}
_EXIF_ORIENTATION = 0x0112
_UPRIGHT_BY = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
# What Pillow's plug-ins raise on bytes that are not what they say.
_DAMAGE = (
    OSError,
    SyntaxError,
    ValueError,
    TypeError,
    LookupError,
    ArithmeticError,
    EOFError,
    struct.error,
    zlib.error,
)


def decode_sample(sample: Sample, preprocessing: Preprocessing, limits: Limits) -> Iterator[Clip | Reject]:
    """The clips of one sample, in order, as they are decoded: each becomes a row.

    A sample that cannot be decoded, or not to its end, ends with a reject of stage "decode", whose `clip_index` is
    the number of clips before it; reasons are those of `_decode_image`. `metadata` is the .json member if it is strict
    JSON, else its text as one JSON string, so that the column always parses. Never raises because of the bytes.
    """
    sha256 = hashlib.sha256(sample.payload).hexdigest()
    caption, label = _text(sample.attachments, "txt"), _text(sample.attachments, "cls")
    metadata = _json(sample.attachments)
    num_clips = 0
    try:
        for view in _decode_image(sample.payload, preprocessing, limits):
            yield Clip(
                key=sample.key,
                uri=sample.uri,
                index=sample.index,
                media=sample.media,
                pixels=view.pixels,
                width=view.width,
                height=view.height,
                crop=view.crop,
                sha256=sha256,
                clip_index=num_clips,
                caption=caption,
                label=label,
                metadata=metadata,
            )
            num_clips += 1
    except DecodeError as error:
        yield Reject(
            key=sample.key,
            uri=sample.uri,
            index=sample.index,
            stage="decode",
            reason=error.reason,
            detail=error.detail,
            clip_index=num_clips,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class _View:
    """One part of an image as it is tokenized; `pixels` is uint8 [T, 3, H, W], sizes are the image's, upright."""

    pixels: np.ndarray
    width: int
    height: int
    crop: Crop


def _decode_image(payload: bytes, preprocessing: Preprocessing, limits: Limits) -> Iterator[_View]:
    """Decode, turn upright, convert to RGB, and bring the centred square to image_size; animations give frame 1.

    The largest centred square is resampled once, antialiased, from full-resolution pixels. Transparent pixels lie on
    `preprocessing.background`; 16-bit grey is scaled to 8; colour profiles are not applied.

    Raises DecodeError and nothing else because of the bytes; its reasons: "empty", "not_an_image", "truncated",
    "corrupt", "too_many_pixels", "too_small", "unsupported_mode", "out_of_memory", "decoder_error".
    """
    if not payload:
        raise DecodeError("empty", "the member has no bytes")
    # Pillow knows the size once it has read the header, and some plug-ins ask for the limit before they allocate.
    previous_limit, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, limits.max_pixels
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(io.BytesIO(payload), formats=FORMATS) as image:
                views = [_prepare(image, preprocessing, limits)]
    except DecodeError:
        raise
    except UnidentifiedImageError:
        raise DecodeError("not_an_image", f"no image format is recognised in {len(payload)} bytes") from None
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise DecodeError("too_many_pixels", f"{error} (limits.max_pixels is {limits.max_pixels})") from None
    except MemoryError:
        raise DecodeError("out_of_memory", f"no memory to decode {len(payload)} bytes") from None
    except _DAMAGE as error:
        cut = isinstance(error, EOFError) or "truncated" in str(error)
        raise DecodeError("truncated" if cut else "corrupt", f"{type(error).__name__}: {error}") from error
    except Exception as error:  # the boundary to hostile input: whatever a plug-in raises is this sample's fault
        raise DecodeError("decoder_error", f"{type(error).__name__}: {error}") from error
    finally:
        Image.MAX_IMAGE_PIXELS = previous_limit
    yield from views


def _prepare(image: Image.Image, preprocessing: Preprocessing, limits: Limits) -> _View:
    if image.width * image.height > limits.max_pixels:
        raise DecodeError(
            "too_many_pixels", f"{image.width} x {image.height} pixels; at most {limits.max_pixels} (limits.max_pixels)"
        )
    if min(image.size) < limits.min_side:
        raise DecodeError(
            "too_small",
            f"{image.width} x {image.height} pixels; a side has at least {limits.min_side} (limits.min_side)",
        )
    image.load()
    upright_by = _UPRIGHT_BY.get(_orientation(image))
    rgb = _to_rgb(image, preprocessing.background)
    if upright_by is not None:
        rgb = rgb.transpose(upright_by)
    side = min(rgb.size)
    crop = Crop(left=(rgb.width - side) // 2, top=(rgb.height - side) // 2, width=side, height=side)
    size = preprocessing.image_size
    # Cropped first: `resize(box=...)` would let pixels outside the crop bleed into its edges.
    square = rgb.crop((crop.left, crop.top, crop.left + side, crop.top + side)).resize(
        (size, size), _RESAMPLE[preprocessing.resample]
    )
    pixels_1CHW = np.ascontiguousarray(np.asarray(square, dtype=np.uint8).transpose(2, 0, 1))[None]
    return _View(pixels=pixels_1CHW, width=rgb.width, height=rgb.height, crop=crop)


def _orientation(image: Image.Image) -> int:
    try:
        return int(image.getexif().get(_EXIF_ORIENTATION, 1))
    except _DAMAGE:
        return 1  # a broken EXIF block does not spoil the photo


def _to_rgb(image: Image.Image, background: tuple[int, int, int]) -> Image.Image:
    if image.mode.startswith("I"):  # "I;16*", and "I" which Pillow fills with 0 .. 65535
        grey = np.clip(np.asarray(image).astype(np.int64), 0, 65535)
        image = Image.fromarray(((grey * 255 + 32767) // 65535).astype(np.uint8))
    elif image.mode == "F":
        raise DecodeError("unsupported_mode", "floating-point pixels have no defined white")
    if image.has_transparency_data:
        rgba = image.convert("RGBA")
        canvas = Image.new("RGBA", rgba.size, (*background, 255))
        canvas.alpha_composite(rgba)
        image = canvas
    return image if image.mode == "RGB" else image.convert("RGB")


def _text(attachments: Mapping[str, bytes], extension: str) -> str | None:
    if extension not in attachments:
        return None
    return attachments[extension].decode("utf-8-sig", errors="replace").strip()


def _json(attachments: Mapping[str, bytes]) -> str | None:
    text = _text(attachments, "json")
    if text is None:
        return None
    try:
        json.loads(text, parse_constant=_refuse_constant)
    except (ValueError, RecursionError):
        return json.dumps(text)
    return text


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is not JSON")
