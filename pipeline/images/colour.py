"""Decoded pixels of any kind -> sRGB on an opaque ground: palettes, grey, 16 bits, CMYK, Lab, alpha, ICC profiles."""

from __future__ import annotations

import io
from functools import lru_cache

import numpy as np
from PIL import Image, ImageChops, ImageCms

from tatok.schemas.errors import DecodeError

__all__ = ["to_srgb"]

_SRGB = "sRGB IEC61966"  # how the profiles of almost all photos call themselves: there is nothing to convert
_MODE_OF_SPACE = {"RGB": "RGB", "GRAY": "L", "CMYK": "CMYK", "Lab": "LAB"}


def to_srgb(image: Image.Image, icc_profile: bytes | None, background: tuple[int, int, int]) -> Image.Image:
    """The image in mode RGB; `image` is decoded already.

    A profile that is damaged, or is of other channels than the image, is ignored: the photo is not spoilt.
    Raises DecodeError, "unsupported_mode", for floating-point pixels.
    """
    if image.mode.startswith("I"):  # "I;16*", and "I" which Pillow fills with 0 .. 65535
        grey = np.clip(np.asarray(image).astype(np.int64), 0, 65535)
        image = Image.fromarray(((grey * 255 + 32767) // 65535).astype(np.uint8))
    elif image.mode == "F":
        raise DecodeError("unsupported_mode", "floating-point pixels have no defined white")
    elif image.mode == "CMYK" and image.format in ("JPEG", "MPO") and "adobe" not in image.info:
        # Pillow takes every CMYK JPEG for one of Adobe's, which are stored inverted; without their marker it is not.
        image = ImageChops.invert(image)
    if image.has_transparency_data:
        rgba = image.convert("RGBA")
        if icc_profile:
            alpha = rgba.getchannel("A")
            rgba = _converted(image.convert("L" if image.mode == "LA" else "RGB"), icc_profile).convert("RGBA")
            rgba.putalpha(alpha)
        canvas = Image.new("RGBA", rgba.size, (*background, 255))
        canvas.alpha_composite(rgba)
        return canvas.convert("RGB")
    if image.mode == "LAB":
        return _transform_of_lab().apply(image)
    if icc_profile:
        image = _converted(image.convert("RGB") if image.mode in ("P", "YCbCr", "RGBX") else image, icc_profile)
    return image if image.mode == "RGB" else image.convert("RGB")


def _converted(image: Image.Image, icc_profile: bytes) -> Image.Image:
    """In sRGB, mode RGB, or the image as it is where the profile says nothing of it."""
    transform = _transform(icc_profile, image.mode)
    return image if transform is None else transform.apply(image)


@lru_cache(maxsize=64)
def _transform(icc_profile: bytes, mode: str) -> ImageCms.ImageCmsTransform | None:
    try:
        profile = ImageCms.ImageCmsProfile(io.BytesIO(icc_profile))
        if _MODE_OF_SPACE.get(profile.profile.xcolor_space.strip()) != mode:
            return None
        if (profile.profile.profile_description or "").startswith(_SRGB):
            return None
        intent = ImageCms.Intent.RELATIVE_COLORIMETRIC
        flags = ImageCms.Flags.BLACKPOINTCOMPENSATION
        return ImageCms.ImageCmsTransform(profile, _srgb(), mode, "RGB", intent, flags=flags)
    except (ImageCms.PyCMSError, OSError, ValueError, TypeError, AttributeError):
        return None


@lru_cache(maxsize=1)
def _transform_of_lab() -> ImageCms.ImageCmsTransform:
    lab = ImageCms.ImageCmsProfile(ImageCms.createProfile("LAB"))
    return ImageCms.ImageCmsTransform(lab, _srgb(), "LAB", "RGB")


def _srgb() -> ImageCms.ImageCmsProfile:
    return ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB"))
