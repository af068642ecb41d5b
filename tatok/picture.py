"""The picture of tokenized images: original, entropy heat map, kept patches, reconstruction."""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from schemas.records import TokenSequence

__all__ = [
    "HEAT",
    "PictureRow",
    "draw_picture",
    "entropy_range",
    "heat_colours",
    "heat_map",
    "kept_patches",
    "side_by_side",
]

MARGIN, HEADER, TEXT, LINE = 12, 26, 15, 20
SMALLEST_SIDE = 256
BACKGROUND, BLANK, INK, FAINT = (250, 250, 250), (226, 226, 230), (20, 20, 20), (90, 90, 90)
DROPPED = np.array([38, 38, 46])
# Dark violet to yellow, readable in grey and to colour-blind eyes.
HEAT = np.array([(13, 8, 60), (94, 20, 130), (178, 48, 110), (232, 96, 64), (250, 170, 50), (245, 240, 140)], float)


@dataclass(frozen=True, slots=True, kw_only=True)
class PictureRow:
    """One image: `original` and `rebuilt` are uint8 [3, H, W]; a str stands for one that is missing, and says why.

    `lines` are printed below the title.
    """

    title: str
    original: np.ndarray | str
    rebuilt: np.ndarray | str
    sequence: TokenSequence
    lines: tuple[str, ...] = ()


def heat_colours(values: np.ndarray, low: float, high: float) -> np.ndarray:
    """Values [...] -> uint8 [..., 3] on the scale HEAT, on which `low` is dark; what is not finite is grey."""
    place = (values.astype(float) - low) / max(high - low, 1e-9)
    place = np.clip(np.nan_to_num(place), 0, 1) * (len(HEAT) - 1)
    left = np.minimum(place.astype(int), len(HEAT) - 2)
    share = (place - left)[..., None]
    colours = HEAT[left] * (1 - share) + HEAT[left + 1] * share
    colours[~np.isfinite(values)] = BLANK
    return colours.round().astype(np.uint8)


def entropy_range(sequences: Iterable[TokenSequence]) -> tuple[float, float] | None:
    """The least and the greatest entropy of a patch over `sequences`, in bits; None where none was stored."""
    values = [sequence.entropy.patch_entropy_bits_N for sequence in sequences]
    finite = [value[np.isfinite(value)] for value in values]
    joined = np.concatenate([*finite, np.empty(0, np.float32)])
    return (float(joined.min()), float(joined.max())) if len(joined) else None


def heat_map(sequence: TokenSequence, low: float, high: float) -> np.ndarray:
    """One colour a patch, uint8 [grid height, grid width, 3]: its conditional entropy, given the globals."""
    _, rows, columns = sequence.grid
    return heat_colours(sequence.entropy.patch_entropy_bits_N.reshape(rows, columns), low, high)


def kept_patches(original: np.ndarray | None, sequence: TokenSequence, side: int = SMALLEST_SIDE) -> np.ndarray:
    """The original, uint8 [3, H, W], with its dropped patches dimmed, as uint8 [H, W, 3].

    Without an original, kept patches are light, in a picture about `side` pixels wide.
    """
    _, rows, columns = sequence.grid
    kept = np.zeros(rows * columns, bool)
    kept[sequence.positions.astype(int)] = True
    if original is None:
        scale = max(side // columns, 1)
        original = np.full((3, rows * scale, columns * scale), 226, np.uint8)
    pixels = original.transpose(1, 2, 0).astype(float)
    kept_pixels = _enlarge(kept.reshape(rows, columns), *pixels.shape[:2])[..., None]
    return np.where(kept_pixels, pixels, 0.25 * pixels + 0.75 * DROPPED).round().astype(np.uint8)


def draw_picture(rows: Sequence[PictureRow]) -> Image.Image:
    """One line an image: original, heat map of each patch's conditional entropy, kept patches, reconstruction.

    All heat maps share one scale, which the heading tells.
    """
    scale = entropy_range(row.sequence for row in rows)
    panels = [_panels(row, scale) for row in rows]
    side = max(panel.width for line in panels for panel in line)
    tops, height = [], HEADER
    for row, line in zip(rows, panels, strict=True):
        tops.append(height)
        height += HEADER + LINE * len(row.lines) + max(panel.height for panel in line) + MARGIN
    canvas = Image.new("RGB", (side * 4 + MARGIN * 5, height), BACKGROUND)
    draw = ImageDraw.Draw(canvas)
    font = ImageFont.load_default(TEXT)
    bits = "" if scale is None else f", {scale[0]:.1f} to {scale[1]:.1f} bits a patch"
    for column, heading in enumerate(("original", f"entropy{bits}", "kept patches", "from the tokens")):
        draw.text((MARGIN + column * (side + MARGIN), 6), heading, fill=INK, font=font)
    for row, line, top in zip(rows, panels, tops, strict=True):
        sequence = row.sequence
        text = f"{row.title}: {sequence.num_tokens} tokens ({sequence.num_global} global, {sequence.num_patches} patch)"
        for number, words in enumerate((text, *row.lines)):
            place = (MARGIN, top + 4 + LINE * number)
            draw.text(place, _fitting(words, canvas.width - 2 * MARGIN, font), fill=FAINT, font=font)
        for column, panel in enumerate(line):
            canvas.paste(panel, (MARGIN + column * (side + MARGIN), top + HEADER + LINE * len(row.lines)))
    return canvas


def side_by_side(original: np.ndarray | str, sequence: TokenSequence, rebuilt: np.ndarray) -> np.ndarray:
    """Original, kept patches and reconstruction of one frame, uint8 [H, 3 * W, 3]; without an original [H, 2 * W, 3].

    Narrow frames are enlarged by a whole factor.
    """
    given = None if isinstance(original, str) else original
    kept = kept_patches(given, sequence, side=rebuilt.shape[2])
    factor = -(-SMALLEST_SIDE // rebuilt.shape[2])
    size = (rebuilt.shape[2] * factor, rebuilt.shape[1] * factor)
    pictures = [*([] if given is None else [given.transpose(1, 2, 0)]), kept, rebuilt.transpose(1, 2, 0)]
    return np.hstack(
        [np.asarray(Image.fromarray(picture).resize(size, Image.Resampling.NEAREST)) for picture in pictures]
    )


def _panels(row: PictureRow, scale: tuple[float, float] | None) -> list[Image.Image]:
    shown = [image for image in (row.original, row.rebuilt) if not isinstance(image, str)]
    _, grid_rows, grid_columns = row.sequence.grid
    height, width = shown[0].shape[1:] if shown else (grid_rows * 16, grid_columns * 16)
    factor = -(-SMALLEST_SIDE // max(width, 1))
    size = (width * factor, height * factor)
    original = None if isinstance(row.original, str) else row.original
    kept = Image.fromarray(kept_patches(original, row.sequence)).resize(size, Image.Resampling.NEAREST)
    if scale is None or not np.isfinite(row.sequence.entropy.patch_entropy_bits_N).any():
        heat = _words("no entropies of single patches stored (patch_entropy_bits)", size)
    else:
        heat = Image.fromarray(heat_map(row.sequence, *scale)).resize(size, Image.Resampling.NEAREST)
    return [_image_or_words(row.original, size), heat, kept, _image_or_words(row.rebuilt, size)]


def _image_or_words(image: np.ndarray | str, size: tuple[int, int]) -> Image.Image:
    if isinstance(image, str):
        return _words(image, size)
    return Image.fromarray(image.transpose(1, 2, 0)).resize(size, Image.Resampling.NEAREST)


def _words(text: str, size: tuple[int, int]) -> Image.Image:
    panel = Image.new("RGB", size, BLANK)
    lines = textwrap.wrap(text, max(size[0] // (TEXT // 2 + 1), 8))[: max(size[1] // LINE - 1, 1)]
    ImageDraw.Draw(panel).text((MARGIN, MARGIN), "\n".join(lines), fill=FAINT, font=ImageFont.load_default(TEXT))
    return panel


def _fitting(text: str, width: int, font: ImageFont.FreeTypeFont | ImageFont.ImageFont) -> str:
    text = " ".join(text.split())[:1000]
    while text and font.getlength(text) > width:
        text = text[: -max(len(text) // 20, 2)].rstrip(".…") + "…"
        if len(text) < 4:
            break
    return text


def _enlarge(grid_values: np.ndarray, height: int, width: int) -> np.ndarray:
    rows, columns = height // grid_values.shape[0], width // grid_values.shape[1]
    return grid_values.repeat(rows, axis=0).repeat(columns, axis=1)
