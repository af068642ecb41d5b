"""The picture of tokenized images: original, entropy heat map with the kept patches, reconstruction."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from schemas.records import TokenSequence

__all__ = ["PictureRow", "draw_picture"]

MARGIN, HEADER, TEXT = 12, 26, 15
# Dark violet to yellow, readable in grey and to colour-blind eyes.
HEAT = np.array([(13, 8, 60), (94, 20, 130), (178, 48, 110), (232, 96, 64), (250, 170, 50), (245, 240, 140)], float)


@dataclass(frozen=True, slots=True, kw_only=True)
class PictureRow:
    """One image: `original` and `rebuilt` are uint8 [3, H, W]."""

    title: str
    original: np.ndarray
    rebuilt: np.ndarray
    sequence: TokenSequence


def _heat(values: np.ndarray, low: float, high: float) -> np.ndarray:
    place = np.clip((values - low) / max(high - low, 1e-9), 0, 1) * (len(HEAT) - 1)
    left = np.minimum(place.astype(int), len(HEAT) - 2)
    share = (place - left)[..., None]
    return HEAT[left] * (1 - share) + HEAT[left + 1] * share


def _enlarge(grid_values: np.ndarray, height: int, width: int) -> np.ndarray:
    rows, columns = height // grid_values.shape[0], width // grid_values.shape[1]
    return grid_values.repeat(rows, axis=0).repeat(columns, axis=1)


def _panels(row: PictureRow, low: float, high: float) -> list[np.ndarray]:
    original = row.original.transpose(1, 2, 0).astype(float)
    height, width = original.shape[:2]
    _, rows, columns = row.sequence.grid
    kept = np.zeros(rows * columns, bool)
    kept[row.sequence.positions.astype(int)] = True
    kept_pixels = _enlarge(kept.reshape(rows, columns), height, width)[..., None]
    entropy = row.sequence.entropy.patch_entropy_bits_N.reshape(rows, columns)
    heat = _enlarge(_heat(entropy, low, high), height, width)
    dimmed = 0.25 * original + 0.75 * np.array([38, 38, 46])
    return [original, heat, np.where(kept_pixels, original, dimmed), row.rebuilt.transpose(1, 2, 0).astype(float)]


def draw_picture(rows: Sequence[PictureRow]) -> Image.Image:
    """One line an image: original, heat map of each patch's conditional entropy, kept patches, reconstruction.

    All heat maps share one scale, which the heading tells.
    """
    entropies = np.concatenate([row.sequence.entropy.patch_entropy_bits_N for row in rows])
    low, high = float(entropies.min()), float(entropies.max())
    panels = [_panels(row, low, high) for row in rows]
    widths = [max(line[0].shape[1] for line in panels)] * 4
    heights = [line[0].shape[0] for line in panels]
    size = (sum(widths) + MARGIN * 5, HEADER + sum(heights) + (MARGIN + HEADER) * len(rows) + MARGIN)
    canvas = Image.new("RGB", size, (250, 250, 250))
    draw = ImageDraw.Draw(canvas)
    font = ImageFont.load_default(TEXT)
    headings = ("original", f"entropy, {low:.1f} to {high:.1f} bits a patch", "kept patches", "from the tokens")
    for column, heading in enumerate(headings):
        draw.text((MARGIN + column * (widths[0] + MARGIN), 6), heading, fill=(20, 20, 20), font=font)
    top = HEADER
    for row, line in zip(rows, panels, strict=True):
        sequence = row.sequence
        text = f"{row.title}: {sequence.num_tokens} tokens ({sequence.num_global} global, {sequence.num_patches} patch)"
        draw.text((MARGIN, top + 4), text, fill=(90, 90, 90), font=font)
        for column, panel in enumerate(line):
            image = Image.fromarray(panel.round().clip(0, 255).astype(np.uint8))
            canvas.paste(image, (MARGIN + column * (widths[0] + MARGIN), top + HEADER))
        top += HEADER + line[0].shape[0] + MARGIN
    return canvas
