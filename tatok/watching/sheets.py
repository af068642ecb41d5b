"""Pictures in labelled rows, as one PNG."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from tatok.model.pixels import to_pixels

__all__ = ["PictureLine", "sheet"]

MARGIN, LABEL, TEXT = 6, 22, 14
BACKGROUND, INK = (250, 250, 250), (20, 20, 20)


@dataclass(frozen=True, slots=True, kw_only=True)
class PictureLine:
    """Images of one kind, float [n, 3, H, W] in [-1, 1], and what they are."""

    label: str
    images: Tensor


def sheet(lines: Sequence[PictureLine]) -> bytes:
    """A PNG with a row a line, its label above it; the same photo is in the same column of each."""
    rows = [to_pixels(line.images.float()).permute(0, 2, 3, 1).cpu().numpy() for line in lines]
    number, height, width = rows[0].shape[:3]
    font = ImageFont.load_default(TEXT)
    widest = max(int(font.getlength(line.label)) for line in lines)
    size = max(number * (width + MARGIN), widest + MARGIN) + MARGIN, len(rows) * (LABEL + height + MARGIN)
    canvas = Image.new("RGB", size, BACKGROUND)
    draw = ImageDraw.Draw(canvas)
    for at, (line, images) in enumerate(zip(lines, rows, strict=True)):
        top = at * (LABEL + height + MARGIN)
        draw.text((MARGIN, top + 2), line.label, fill=INK, font=font)
        for column, pixels in enumerate(images):
            picture = Image.fromarray(np.ascontiguousarray(pixels))
            canvas.paste(picture, (MARGIN + column * (width + MARGIN), top + LABEL))
    buffer = io.BytesIO()
    canvas.save(buffer, "PNG")
    return buffer.getvalue()
