"""The quick way from a JPEG to its pixels: simplejpeg decodes, torch resizes (antialiased, on bytes).

On regular JPEGs simplejpeg gives Pillow's own pixels, and torch's filters are Pillow's but for rounding.
"""

from __future__ import annotations

import numpy as np
import simplejpeg
import torch

__all__ = ["decode_jpeg", "identity", "resized"]


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
