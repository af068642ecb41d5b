"""Pixels that are missing are a reject, never made up; a missing end alone is none."""

from __future__ import annotations

import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from tatok.schemas.preprocessing import Preprocessing
from tests.support.photos import EXACT, photo, pixels_of, png_chunk, reason_of, saved

QUICK = Preprocessing(image_size=48, decoder="simplejpeg")
SIGNATURE = b"\x89PNG\r\n\x1a\n"


JPEGS: dict[str, dict[str, object]] = {
    "baseline": {},
    "whole chroma": {"subsampling": 0},
    "progressive": {"progressive": True},
    "restarts": {"restart_marker_rows": 1},
    "coarse": {"quality": 5},
    "fine": {"quality": 100},
    "own tables": {"optimize": True},
}


@pytest.mark.parametrize("kind", JPEGS)
def test_a_jpeg_without_its_end_has_all_its_pixels_or_is_a_reject(kind: str) -> None:
    whole = saved(photo(), "JPEG", **JPEGS[kind])
    assert whole.endswith(b"\xff\xd9")
    start = whole[:-2]
    for preprocessing in (EXACT, QUICK):
        assert np.array_equal(pixels_of(start, preprocessing), pixels_of(whole, preprocessing))
    for missing in (1, 2, 3, 5, 8, 13, 40, 200):
        assert {reason_of(start[:-missing], each) for each in (EXACT, QUICK)} == {"truncated"}, missing


@pytest.mark.parametrize("mode", ["L", "CMYK"])
def test_so_has_one_of_other_channels(mode: str) -> None:
    whole = saved(photo().convert(mode), "JPEG")
    assert np.array_equal(pixels_of(whole[:-2]), pixels_of(whole))
    for missing in (3, 4, 7, 60):
        assert reason_of(whole[:-missing]) == "truncated"


def test_a_progressive_jpeg_lacks_pixels_if_it_lacks_a_scan() -> None:
    whole = saved(photo(), "JPEG", progressive=True)
    scans = [at for at in range(len(whole)) if whole[at : at + 2] == b"\xff\xda"]
    tables = [at for at in range(scans[0], len(whole)) if whole[at : at + 2] == b"\xff\xc4"]
    assert len(scans) >= 6
    for at in (scans[-1], tables[-1], scans[2], scans[-1] + 5):
        assert reason_of(whole[:at]) == "truncated", "each scan that is there is whole"


@pytest.mark.parametrize("kind", [kind for kind in JPEGS if kind != "progressive"])
def test_an_end_that_comes_too_early_makes_no_grey_row(kind: str) -> None:
    whole = saved(photo(), "JPEG", **JPEGS[kind])
    for share in (0.5, 0.9):
        early = whole[: int(len(whole) * share)].rstrip(b"\xff") + b"\xff\xd9"
        assert {reason_of(early, each) for each in (EXACT, QUICK)} == {"truncated"}
    grey = saved(Image.new("RGB", (120, 90), (128, 128, 128)), "JPEG", **JPEGS[kind])
    assert np.all(pixels_of(grey) == 128), "a grey photo is one"
    assert np.all(pixels_of(grey[:-2]) == 128)


@pytest.mark.parametrize("interlaced", [False, True])
def test_a_png_whose_pixels_end_too_early_makes_no_black_row(interlaced: bool) -> None:
    def png_of(pixels: bytes, width: int, height: int) -> bytes:
        header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, interlaced)
        chunks = png_chunk(b"IHDR", header) + png_chunk(b"IDAT", zlib.compress(pixels)) + png_chunk(b"IEND", b"")
        return SIGNATURE + chunks

    rows_of_passes = [(3, 2), (2, 2), (5, 1), (5, 3), (10, 2), (10, 5), (20, 5)]  # of 20 x 10 pixels: columns, rows
    rows = rows_of_passes if interlaced else [(20, 10)]
    raw = b"".join((b"\0" + b"\x7f" * 3 * columns) * count for columns, count in rows)
    assert np.all(pixels_of(png_of(raw, 20, 10), min_side=1) == 127)
    for missing in (61, 61 * 4):
        assert reason_of(png_of(raw[:-missing], 20, 10), min_side=1) == "truncated"
    black = png_of(bytes(len(raw)), 20, 10)
    assert not pixels_of(black, min_side=1).any(), "a black photo is one"


def test_the_picture_itself_is_not_repaired() -> None:
    clean = saved(photo())
    header = clean[8:32] + bytes([clean[32] ^ 1])
    assert reason_of(clean[:8] + header + clean[33:]) == "not_an_image", "libpng refuses it, too"
    palette = saved(photo().quantize(8))
    at = palette.index(b"PLTE")
    assert reason_of(palette[: at + 6] + b"\x77" + palette[at + 7 :]) == "not_an_image"
    at = clean.index(b"IDAT") + 60
    assert reason_of(clean[:at] + bytes(40) + clean[at + 40 :]) == "corrupt"
    assert reason_of((clean[:33] + png_chunk(b"zTXt", b"a\0\7?") + clean[33:])[:-600]) in ("truncated", "not_an_image")
    webp = saved(photo(), "WEBP", xmp=b"<x/>")
    assert reason_of(webp[: webp.index(b"XMP ") - 8]) == "corrupt"
    stream = saved(photo(), "JPEG2000")
    for missing in (3, 4, 60):
        assert reason_of(stream[:-missing]) in ("corrupt", "truncated")
    assert reason_of(saved(photo(), "GIF")[:-6]) == "truncated"
