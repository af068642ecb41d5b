"""The picture of tokenized images: original, heat map of what patches are worth, kept patches, reconstruction."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from tatok.report.heat import HeatScale, heat_map, heat_scale, heat_values
from tatok.schemas.records import TokenSequence

__all__ = ["PictureRow", "draw_picture", "kept_patches", "side_by_side"]

MARGIN, HEADER, TEXT, LINE = 12, 26, 15, 20
SMALLEST_SIDE = 256
BACKGROUND, BLANK, INK, FAINT = (250, 250, 250), (226, 226, 230), (20, 20, 20), (90, 90, 90)
DROPPED = np.array([38, 38, 46])


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


def kept_patches(original: np.ndarray | None, sequence: TokenSequence, side: int = SMALLEST_SIDE) -> np.ndarray:
    """The original, uint8 [3, H, W], with its dropped patches dimmed, as uint8 [H, W, 3].

    Without an original, kept patches are light, in a picture about `side` pixels wide. Codes that form a list have no
    place in the picture: of these all are kept.
    """
    _, rows, columns = sequence.grid
    kept = np.zeros(rows * columns, bool)
    kept[sequence.positions.astype(int)] = True
    if original is not None and kept.all():
        return np.ascontiguousarray(original.transpose(1, 2, 0))
    if original is None:
        scale = max(side // columns, 1)
        original = np.full((3, rows * scale, columns * scale), 226, np.uint8)
    pixels = original.transpose(1, 2, 0).astype(float)
    kept_pixels = _enlarge(kept.reshape(rows, columns), *pixels.shape[:2])[..., None]
    return np.where(kept_pixels, pixels, 0.25 * pixels + 0.75 * DROPPED).round().astype(np.uint8)


def draw_picture(rows: Sequence[PictureRow], scale: HeatScale | None = None) -> Image.Image:
    """One line an image: original, heat map of each patch's worth or entropy, kept patches, reconstruction.

    All heat maps share one scale, which the headings name, with a sentence that says what it means; the kept patches
    are outlined in them. Without `scale` it is `heat_scale`'s of the rows.
    """
    scale = scale or heat_scale(row.sequence for row in rows)
    panels = [_panels(row, scale) for row in rows]
    side = max(panel.width for line in panels for panel in line)
    tops, height = [], HEADER + LINE
    for row, line in zip(rows, panels, strict=True):
        tops.append(height)
        height += HEADER + LINE * len(row.lines) + max(panel.height for panel in line) + MARGIN
    canvas = Image.new("RGB", (side * 4 + MARGIN * 5, height), BACKGROUND)
    draw = ImageDraw.Draw(canvas)
    font = ImageFont.load_default(TEXT)
    what = "entropy" if scale is None else f"{scale.kind}, {scale.low:.1f} to {scale.high:.1f} bits a patch"
    for column, heading in enumerate(("original", what, "kept patches", "from the tokens")):
        draw.text((MARGIN + column * (side + MARGIN), 6), heading, fill=INK, font=font)
    if scale is not None:
        _write(draw, scale.explanation, HEADER, canvas.width, font)
    for row, line, top in zip(rows, panels, tops, strict=True):
        sequence = row.sequence
        text = f"{row.title}: {sequence.num_tokens} tokens ({sequence.num_global} global, {sequence.num_patches} patch)"
        for number, words in enumerate((text, *row.lines)):
            _write(draw, words, top + 4 + LINE * number, canvas.width, font)
        for column, panel in enumerate(line):
            canvas.paste(panel, (MARGIN + column * (side + MARGIN), top + HEADER + LINE * len(row.lines)))
    return canvas


def side_by_side(
    original: np.ndarray | str, sequence: TokenSequence, rebuilt: np.ndarray, scale: HeatScale | None = None
) -> np.ndarray:
    """Original, heat map, kept patches and reconstruction of one frame, uint8 [H, 4 * W, 3].

    Without an original, and without a `scale` for the heat map, there is one panel less. Narrow frames are enlarged by
    a whole factor.
    """
    given = None if isinstance(original, str) else original
    kept = kept_patches(given, sequence, side=rebuilt.shape[2])
    factor = -(-SMALLEST_SIDE // rebuilt.shape[2])
    size = (rebuilt.shape[2] * factor, rebuilt.shape[1] * factor)
    pictures = [*([] if given is None else [given.transpose(1, 2, 0)]), kept, rebuilt.transpose(1, 2, 0)]
    panels = [np.asarray(Image.fromarray(picture).resize(size, Image.Resampling.NEAREST)) for picture in pictures]
    if scale is not None:
        panels.insert(len(panels) - 2, np.asarray(_heat_panel(sequence, scale, size)))
    return np.hstack(panels)


def _panels(row: PictureRow, scale: HeatScale | None) -> list[Image.Image]:
    shown = [image for image in (row.original, row.rebuilt) if not isinstance(image, str)]
    _, grid_rows, grid_columns = row.sequence.grid
    height, width = shown[0].shape[1:] if shown else (grid_rows * 16, grid_columns * 16)
    factor = -(-SMALLEST_SIDE // max(width, 1))
    size = (width * factor, height * factor)
    original = None if isinstance(row.original, str) else row.original
    kept = Image.fromarray(kept_patches(original, row.sequence)).resize(size, Image.Resampling.NEAREST)
    heat = _heat_panel(row.sequence, scale, size)
    return [_image_or_words(row.original, size), heat, kept, _image_or_words(row.rebuilt, size)]


def _heat_panel(sequence: TokenSequence, scale: HeatScale | None, size: tuple[int, int]) -> Image.Image:
    if sequence.entropy is None:
        return _words("no entropies: the tokenizer does not say how surprising its codes are", size)
    if scale is None:
        return _words("no bits of single patches stored (patch_worth_bits, patch_entropy_bits)", size)
    if not np.isfinite(heat_values(sequence, scale.kind)).any():
        return _words(f"not stored (patch_{scale.kind}_bits)", size)
    cell = max(size[0] // sequence.grid.width, 1)
    return Image.fromarray(heat_map(sequence, scale, cell)).resize(size, Image.Resampling.NEAREST)


def _image_or_words(image: np.ndarray | str, size: tuple[int, int]) -> Image.Image:
    if isinstance(image, str):
        return _words(image, size)
    return Image.fromarray(image.transpose(1, 2, 0)).resize(size, Image.Resampling.NEAREST)


def _words(text: str, size: tuple[int, int]) -> Image.Image:
    panel = Image.new("RGB", size, BLANK)
    lines = textwrap.wrap(text, max(size[0] // (TEXT // 2 + 1), 8))[: max(size[1] // LINE - 1, 1)]
    ImageDraw.Draw(panel).text((MARGIN, MARGIN), "\n".join(lines), fill=FAINT, font=ImageFont.load_default(TEXT))
    return panel


def _write(
    draw: ImageDraw.ImageDraw, words: str, top: int, width: int, font: ImageFont.FreeTypeFont | ImageFont.ImageFont
) -> None:
    draw.text((MARGIN, top), _fitting(words, width - 2 * MARGIN, font), fill=FAINT, font=font)


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
