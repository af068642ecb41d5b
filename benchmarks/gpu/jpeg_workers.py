"""Decoding JPEGs on a core; imports no torch, so that a process a core starts quickly."""

from __future__ import annotations

import io
import time

__all__ = ["DECODERS", "decode_seconds", "hold", "warm_up"]

DECODERS = ("pillow", "simplejpeg")
_FILES: list[bytes] = []


def _decode(decoder: str, file: bytes) -> None:
    if decoder == "pillow":
        from PIL import Image

        Image.open(io.BytesIO(file)).convert("RGB").load()
    else:
        import simplejpeg

        simplejpeg.decode_jpeg(file)


def warm_up(decoder: str) -> None:
    """Import what the decoder needs; long enough that every process gets one."""
    __import__("PIL.Image" if decoder == "pillow" else decoder)
    time.sleep(0.2)


def hold(files: list[bytes]) -> None:
    """Keep files for `decode_seconds`, so that handing them over is not part of its time."""
    _FILES[:] = files


def decode_seconds(decoder: str) -> float:
    """Seconds that a decoder takes for the files held."""
    started = time.perf_counter()
    for file in _FILES:
        _decode(decoder, file)
    return time.perf_counter() - started
