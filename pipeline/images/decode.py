"""Bytes of an image -> upright sRGB pixels of the parts that are tokenized."""

from __future__ import annotations

import io
import struct
import warnings
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
from PIL import Image, UnidentifiedImageError

from tatok.pipeline.images import beside
from tatok.pipeline.images.colour import to_srgb
from tatok.pipeline.images.containers import jpeg_segments, png_chunks
from tatok.pipeline.images.containers.jxl_header import jxl_size
from tatok.pipeline.images.crops import ViewPlan, planned_views
from tatok.pipeline.images.extras import HEAD_BYTES, extra_of, registered
from tatok.schemas.errors import DecodeError
from tatok.schemas.job import Limits
from tatok.schemas.preprocessing import Preprocessing
from tatok.schemas.records import Crop

__all__ = ["BY_NAME", "FORMATS", "View", "decode_image", "view_pixels", "views_of_picture"]

FORMATS = (
    "JPEG", "PNG", "WEBP", "AVIF", "GIF", "TIFF", "BMP", "DIB", "PPM", "JPEG2000", "ICO", "PCX", "SGI", "QOI",
    "DDS", "PSD",
)  # fmt: skip
"""What is decoded, beside HEIF and JPEG XL (extras.py); "JPEG" stands for MPO too. Left out of what Pillow opens:
formats that run other programs (EPS, WMF), that need a library of their own (GRIB, HDF5, BUFR), and those of no photos
(PIXAR, XBM, FLI, ...): every plug-in less is a way less to attack."""
BY_NAME = dict.fromkeys(("tga", "icb", "vda", "vst"), "TGA")
"""Formats without a signature, by the extensions that they are known by: to Pillow many bytes could be theirs."""

_RESAMPLE = {
    "bicubic": Image.Resampling.BICUBIC,
    "bilinear": Image.Resampling.BILINEAR,
    "lanczos": Image.Resampling.LANCZOS,
}
_PERHAPS_BESIDE = ("not_an_image", "truncated", "corrupt", "decoder_error")
_ANIMATED = ("GIF", "PNG", "WEBP", "AVIF")
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
_GREY = {127, 128}  # what libjpeg makes of blocks that did not come; Pillow inverts CMYK
_CUT_SHORT = ("truncated", "unexpected end of file")
# What Pillow's plug-ins raise on bytes that are not what they say.
_DAMAGE = (
    OSError,
    SyntaxError,
    ValueError,
    TypeError,
    LookupError,
    ArithmeticError,
    EOFError,
    RuntimeError,
    struct.error,
    zlib.error,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class View:
    """One part of an image as it is tokenized; `pixels` is uint8 [T, 3, H, W], sizes are the image's, upright.

    `frame_pts_s` is the time of each frame of an animation, None for an image, which has T = 1.
    """

    pixels: np.ndarray
    width: int
    height: int
    crop: Crop
    flipped: bool
    frame_pts_s: tuple[float, ...] | None = None


def decode_image(
    payload: bytes, preprocessing: Preprocessing, limits: Limits, *, sample_id: str, extension: str = ""
) -> Iterator[View]:
    """Decode, turn upright, convert to sRGB, and make the views that `preprocessing` asks for.

    Each view is cropped, then resampled once, antialiased, from full-resolution pixels. Transparent pixels lie on
    `preprocessing.background`; 16-bit grey is scaled to 8. What stands beside the pixels never decides over them: an
    image that is refused is tried again with less and less of it (beside.py). Bytes say what they are; only where
    they cannot, `extension`, that of the file's name, does (BY_NAME).

    Raises DecodeError and nothing else because of the bytes; its reasons: "empty", "not_an_image", "needs_extra",
    "truncated", "corrupt", "too_many_pixels", "too_small", "too_elongated", "unsupported_mode", "out_of_memory",
    "decoder_error".
    """
    if not payload:
        raise DecodeError("empty", "the member has no bytes")
    rgb: Image.Image | np.ndarray | None
    rgb = _plain_rgb(payload, limits) if preprocessing.decoder == "simplejpeg" else None
    if rgb is None:
        decoded = _decoded(payload, preprocessing, limits, sample_id, extension)
        if isinstance(decoded, list):
            yield from decoded
            return
        rgb = decoded
    yield from _views(rgb, payload, preprocessing, limits, sample_id)


def views_of_picture(
    picture: Image.Image, preprocessing: Preprocessing, limits: Limits, *, sample_id: str
) -> Iterator[View]:
    """The views of a picture that Pillow has opened or made, equal to those that `decode_image` makes of its file.

    It is turned upright where its EXIF block says so; of an animation it is the frame that the picture is at. Without
    the file, pixels that are missing at its end are not always seen, and `decoder` is about resizing alone. Raises
    DecodeError as `decode_image` does.
    """
    with _damage_named(b"", limits), _unwarned():
        rgb = _upright_rgb(picture, None, preprocessing, limits)
    yield from _views(rgb, b"", preprocessing, limits, sample_id)


def _views(
    rgb: Image.Image | np.ndarray, payload: bytes, preprocessing: Preprocessing, limits: Limits, sample_id: str
) -> Iterator[View]:
    height, width = rgb.shape[:2] if isinstance(rgb, np.ndarray) else (rgb.height, rgb.width)
    for view in planned_views(width, height, preprocessing, sample_id):
        with _damage_named(payload, limits):
            pixels = view_pixels(rgb, view, preprocessing)
        yield View(pixels=pixels, width=width, height=height, crop=view.crop, flipped=view.flipped)


def _decoded(
    payload: bytes, preprocessing: Preprocessing, limits: Limits, sample_id: str, extension: str
) -> Image.Image | np.ndarray | list[View]:
    """The upright pixels, or the views of an animation; of what is told without what stands beside it, if need be.

    Where nothing helps, the error is that of the file as it is.
    """
    try:
        return _opened(payload, preprocessing, limits, sample_id, extension)
    except DecodeError as error:
        if error.reason not in _PERHAPS_BESIDE:
            raise
        first_error = error
    extra = extra_of(payload[:HEAD_BYTES])
    if first_error.reason == "not_an_image" and extra is not None and not registered(extra.name):
        raise DecodeError(
            "needs_extra", f"{extra.image_format} is read by an extra: pip install 'tatok[{extra.name}]'"
        ) from None
    retold = beside.pixels_alone(payload, animated=preprocessing.animation == "clip")
    while True:
        with _damage_named(payload, limits), _unwarned():
            alone = next(retold, None)
        if alone is None:
            raise first_error
        try:
            return _opened(alone, preprocessing, limits, sample_id, extension)
        except DecodeError as error:
            if error.reason not in _PERHAPS_BESIDE:
                raise


def _opened(
    payload: bytes, preprocessing: Preprocessing, limits: Limits, sample_id: str, extension: str
) -> Image.Image | np.ndarray | list[View]:
    with _damage_named(payload, limits), _unwarned():
        formats = _formats(payload, limits, extension)
        with Image.open(io.BytesIO(payload), formats=formats) as image:
            if preprocessing.animation == "clip" and image.format in _ANIMATED:
                return _animation(image, payload, preprocessing, limits, sample_id)
            return _upright_rgb(image, payload, preprocessing, limits)


def _formats(payload: bytes, limits: Limits, extension: str) -> tuple[str, ...]:
    """What Pillow may take the file for, in this order: an extra's plug-in leaves to Pillow what Pillow reads itself.

    Raises DecodeError for the size of a JPEG XL picture: its plug-in would decode it before it says one.
    """
    by_name = BY_NAME.get(extension.rpartition(".")[2].lower())
    formats = FORMATS if by_name is None else (*FORMATS, by_name)
    extra = extra_of(payload[:HEAD_BYTES])
    if extra is None or not registered(extra.name):
        return formats
    if extra.image_format == "JXL":
        size = jxl_size(payload)
        if size is None:
            return formats
        _check_size(size, limits)
    return (*formats, extra.image_format)


def _animation(
    image: Image.Image, payload: bytes, preprocessing: Preprocessing, limits: Limits, sample_id: str
) -> list[View]:
    """Views of the first `max_frames` frames, all cut alike; of an image, where there is only one."""
    plans: list[ViewPlan] = []
    frames: list[list[np.ndarray]] = []  # for each plan
    times_s = [0.0]
    for number in range(preprocessing.max_frames):
        try:
            image.seek(number)
        except EOFError:
            break
        rgb = _upright_rgb(image, payload, preprocessing, limits)
        assert isinstance(rgb, Image.Image), "no animation is a JPEG"
        if not number:
            plans = planned_views(rgb.width, rgb.height, preprocessing, sample_id)
            frames = [[] for _ in plans]
            size = rgb.size
        for plan, pixels in zip(plans, frames, strict=True):
            pixels.append(view_pixels(rgb, plan, preprocessing))
        times_s.append(times_s[-1] + float(image.info.get("duration") or 0) / 1000)
    return [
        View(
            pixels=np.concatenate(pixels),
            width=size[0],
            height=size[1],
            crop=plan.crop,
            flipped=plan.flipped,
            frame_pts_s=tuple(times_s[:-1]) if len(pixels) > 1 else None,
        )
        for plan, pixels in zip(plans, frames, strict=True)
    ]


@contextmanager
def _unwarned() -> Iterator[None]:
    """Files are opened and read without warnings, but that of too many pixels, which is an error."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        yield


@contextmanager
def _damage_named(payload: bytes, limits: Limits) -> Iterator[None]:
    """Whatever Pillow raises within becomes a DecodeError."""
    # Pillow knows the size once it has read the header, and some plug-ins ask for the limit before they allocate.
    previous_limit, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, limits.max_pixels
    try:
        yield
    except DecodeError:
        raise
    except UnidentifiedImageError:
        raise DecodeError("not_an_image", f"no image format is recognised in {len(payload)} bytes") from None
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise DecodeError("too_many_pixels", f"{error} (limits.max_pixels is {limits.max_pixels})") from None
    except MemoryError:
        raise DecodeError("out_of_memory", f"no memory to decode {len(payload)} bytes") from None
    except _DAMAGE as error:
        cut = isinstance(error, EOFError) or any(words in str(error).lower() for words in _CUT_SHORT)
        raise DecodeError("truncated" if cut else "corrupt", f"{type(error).__name__}: {error}") from error
    except Exception as error:  # the boundary to hostile input: whatever a plug-in raises is this sample's fault
        raise DecodeError("decoder_error", f"{type(error).__name__}: {error}") from error
    finally:
        Image.MAX_IMAGE_PIXELS = previous_limit


def _plain_rgb(payload: bytes, limits: Limits) -> np.ndarray | None:
    """The pixels of a JPEG that needs no more than decoding; None where Pillow is to look, and to say what is wrong.

    Opening such a JPEG by Pillow takes as long as decoding a small one.
    """
    from tatok.pipeline.images.simplejpeg import decode_jpeg, plain_size

    size = plain_size(payload)
    if size is None or size[0] * size[1] > limits.max_pixels:
        return None
    _check_size(size, limits)
    try:
        return decode_jpeg(payload, size)
    except MemoryError:
        return None  # Pillow will want as much, and what it then raises has a name


def _upright_rgb(
    image: Image.Image, payload: bytes | None, preprocessing: Preprocessing, limits: Limits
) -> Image.Image | np.ndarray:
    """In mode RGB, or as uint8 [H, W, 3] where no more than decoding was needed; `payload` is its file, if known."""
    _check_size(image.size, limits)
    profile = image.info.get("icc_profile") if preprocessing.icc_profiles == "apply" else None
    pixels_HWC = None
    if payload and preprocessing.decoder == "simplejpeg" and (image.format, image.mode) == ("JPEG", "RGB"):
        from tatok.pipeline.images.simplejpeg import decode_jpeg

        pixels_HWC = decode_jpeg(payload, image.size)
    if pixels_HWC is None:
        image.load()
        _check_size(image.size, limits)  # pictures in boxes may come out of another size than their header says
        if payload is not None:
            _check_corner(image, payload)
    # Not before: a PNG's EXIF block may come after its pixels, and asking for it would load them.
    upright_by = _UPRIGHT_BY.get(_orientation(image))
    if pixels_HWC is not None and profile is None and upright_by is None:
        return pixels_HWC
    decoded = image if pixels_HWC is None else Image.fromarray(pixels_HWC)
    rgb = to_srgb(decoded, profile, preprocessing.background)
    return rgb if upright_by is None else rgb.transpose(upright_by)


def _check_size(size: tuple[int, int], limits: Limits) -> None:
    width, height = size
    if width * height > limits.max_pixels:
        raise DecodeError(
            "too_many_pixels", f"{width} x {height} pixels; at most {limits.max_pixels} (limits.max_pixels)"
        )
    if min(size) < limits.min_side:
        raise DecodeError(
            "too_small", f"{width} x {height} pixels; a side has at least {limits.min_side} (limits.min_side)"
        )
    most = limits.max_aspect_ratio
    if most is not None and max(size) > most * min(size):
        raise DecodeError(
            "too_elongated", f"{width} x {height} pixels; sides differ at most {most:g} times (limits.max_aspect_ratio)"
        )


def _check_corner(image: Image.Image, payload: bytes) -> None:
    """Raise DecodeError, "truncated", for a PNG or JPEG whose pixels end too early, which Pillow does not say.

    It leaves the rest of a PNG blank, that of a JPEG grey: only where the last pixels are, a closer look is taken.
    """
    if image.format not in ("PNG", "JPEG", "MPO"):
        return
    width, height = image.size
    last = image.getpixel((width - 1, height - 1))
    values = set(last if isinstance(last, tuple) else (last,))
    if image.format == "PNG":
        is_short = (values == {0} or "interlace" in image.info) and png_chunks.lacks_rows(payload)
    else:  # the whole last row of a block is grey: to be certain takes eight times as long as to decode
        corner = image.crop((width - ((width - 1) % 8 + 1), height - 1, width, height)) if values <= _GREY else None
        is_grey = corner is not None and set(np.asarray(corner).ravel().tolist()) <= _GREY
        is_short = is_grey and jpeg_segments.lacks_pixels(payload)
    if is_short:
        raise DecodeError("truncated", "its compressed pixels end before its last row")


def _orientation(image: Image.Image) -> int:
    if image.format == "JXL" and not getattr(image, "jpeg", False):
        return 1  # it is upright: the codestream says how to turn it, and EXIF only repeats that
    try:
        return int(image.getexif().get(_EXIF_ORIENTATION, 1))
    except _DAMAGE:
        return 1  # a broken EXIF block does not spoil the photo


def view_pixels(rgb: Image.Image | np.ndarray, view: ViewPlan, preprocessing: Preprocessing) -> np.ndarray:
    """One view of an upright RGB image, uint8 [H, W, 3] where it is an array: uint8 [1, 3, H, W]."""
    crop, size = view.crop, (view.width, view.height)
    right, bottom = crop.left + crop.width, crop.top + crop.height
    # Cropped first: `resize(box=...)` would let pixels outside the crop bleed into its edges.
    part: Image.Image | np.ndarray
    if isinstance(rgb, np.ndarray):
        part = rgb[crop.top : bottom, crop.left : right]
    else:
        part = rgb.crop((crop.left, crop.top, right, bottom))
    if preprocessing.decoder == "simplejpeg":
        from tatok.pipeline.images.simplejpeg import resized

        pixels_HWC = resized(np.asarray(part), size, preprocessing.resample)
    else:
        image = part if isinstance(part, Image.Image) else Image.fromarray(part)
        pixels_HWC = np.asarray(image.resize(size, _RESAMPLE[preprocessing.resample]), dtype=np.uint8)
    if view.flipped:
        pixels_HWC = pixels_HWC[:, ::-1]
    return np.ascontiguousarray(pixels_HWC.transpose(2, 0, 1))[None]
