"""The quick way from a JPEG to its pixels: simplejpeg decodes, torch resizes (antialiased, on bytes).

On regular JPEGs simplejpeg gives Pillow's own pixels, and torch's filters are Pillow's but for rounding.
"""

from __future__ import annotations

import numpy as np
import simplejpeg
import torch

__all__ = ["decode_jpeg", "identity", "plain_size", "resized"]

_START, _APP0, _COMMENT, _TABLES, _SCAN = b"\xff\xd8", 0xE0, 0xFE, (0xC4, 0xDB, 0xDD), 0xDA
_FRAMES = (0xC0, 0xC1, 0xC2)  # baseline, extended, progressive
_MOST_SEGMENTS = 64


def plain_size(payload: bytes) -> tuple[int, int] | None:
    """(width, height) of a JPEG of three 8-bit channels whose header asks for nothing but decoding; else None.

    No EXIF block, colour profile, Adobe marker or second picture is in it, and Pillow need not look at it.
    """
    if not payload.startswith(_START):
        return None
    size, at = None, len(_START)
    for _ in range(_MOST_SEGMENTS):
        head = payload[at : at + 10]
        if len(head) < 10 or head[0] != 0xFF:
            return None
        marker = head[1]
        if marker == _SCAN:
            return size if size and all(size) else None
        if marker in _FRAMES:
            if size is not None or head[4] != 8 or head[9] != 3:
                return None
            size = (head[7] << 8 | head[8], head[5] << 8 | head[6])
        elif marker not in _TABLES and marker not in (_APP0, _COMMENT):
            return None
        at += 2 + (head[2] << 8 | head[3])
    return None


def decode_jpeg(payload: bytes, size: tuple[int, int]) -> np.ndarray | None:
    """A JPEG of three channels and `size` (width, height) as uint8 [H, W, 3]; None where anything is irregular.

    Whether it is depends on the bytes alone, and Pillow then says what is wrong, if it finds it wrong.
    """
    try:
        pixels_HWC = simplejpeg.decode_jpeg(payload, "RGB", fastdct=False, fastupsample=False, strict=True)
    except (ValueError, RuntimeError):
        return None
    return pixels_HWC if pixels_HWC.shape == (size[1], size[0], 3) else None


def resized(pixels_HWC: np.ndarray, size: tuple[int, int], resample: str) -> np.ndarray:
    """uint8 [H, W, 3] brought to `size` (width, height) by "bicubic" or "bilinear"; as it is where it has it."""
    if pixels_HWC.shape[:2] == size[::-1]:
        return pixels_HWC  # which is what torch would give
    # Pillow's memory is read-only, which torch does not like. Permuted, pixels have the layout of its quickest kernel.
    pixels_1CHW = torch.from_numpy(np.require(pixels_HWC, requirements="W")).permute(2, 0, 1)[None]
    small = torch.nn.functional.interpolate(pixels_1CHW, (size[1], size[0]), mode=resample, antialias=True)
    return small[0].permute(1, 2, 0).numpy()


def identity() -> dict[str, str]:
    """What the pixels depend on besides the bytes; torch rounds otherwise on processors without AVX2."""
    capability = torch.backends.cpu.get_cpu_capability()
    return {
        "simplejpeg": simplejpeg.__version__,
        "torch_resize": f"{torch.__version__.partition('+')[0]} {'scalar' if capability == 'DEFAULT' else 'simd'}",
    }
