"""Rows of a dataset as pictures: originals from their sources beside what the tokens rebuild."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pyarrow as pa
from PIL import Image

from tatok.dataset.lookup import find_rows, read_rows
from tatok.dataset.parts import TokenizedData
from tatok.dataset.rows import token_sequences
from tatok.pipeline.decode.originals import NotFound, Recipe, read_originals, source_places
from tatok.report.animation import animated_webp
from tatok.report.heat import heat_scale
from tatok.report.page import ExampleImage, shown_text
from tatok.report.picture import PictureRow, draw_picture, side_by_side
from tatok.report.rebuilt import criterion_of, rebuilt_clips, tokenizer_of
from tatok.report.rows import Examples
from tatok.report.shown_frames import shown_frames
from tatok.schemas.errors import CommitError, ConfigError, SourceError
from tatok.schemas.records import TokenSequence

if TYPE_CHECKING:
    from tatok.tokenizer.protocol import AnyTokenizer

__all__ = ["DrawnRow", "Heat", "Pictured", "draw_row", "file_name", "file_names", "picture_examples", "write_whole"]

Heat = Literal["worth", "entropy"]
_KINDS: tuple[Literal["richest"], Literal["typical"], Literal["poorest"]] = ("richest", "typical", "poorest")
_REPORT_FRAMES = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class DrawnRow:
    """One row as a picture. Of a clip, `moving` is an animated WebP of `num_moving` frames with these `panels`.

    `name` is a plain file name for it; `why_no_original` says why the source's pixels are not in it, if they are not.
    """

    name: str
    sequence: TokenSequence
    picture: Image.Image
    why_no_original: str | None
    moving: bytes | None = None
    num_moving: int = 0
    panels: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Pictured:
    """A report's images; `why_none` there are, or `why_not_rebuilt` they are."""

    images: list[ExampleImage]
    why_none: str | None = None
    why_not_rebuilt: str | None = None


def draw_row(
    data: TokenizedData,
    key: str,
    tokenizer: AnyTokenizer,
    *,
    most_frames: int = 6,
    heat: Heat | None = None,
    max_seconds: float = 60.0,
) -> DrawnRow:
    """Draw one row: original, bits of each patch, kept patches, reconstruction; of a clip a few frames.

    `key` may be a sample id; the source has `max_seconds` to give the original. Raises ConfigError where there is no
    such row.
    """
    table = read_rows(data, find_rows(data, [key]))
    [place] = source_places(table)
    found = read_originals([place], Recipe.of_run(data.run), max_seconds=max_seconds)[place]
    [row], [sequence] = table.to_pylist(), token_sequences(table)
    rebuilt: np.ndarray | str
    try:
        [rebuilt] = rebuilt_clips(data, [sequence], tokenizer)
    except ConfigError as error:  # it makes tokens alone
        rebuilt = f"no reconstruction: {error}"
    lines = [
        *_bits_words(sequence),
        f"{shown_text(place.uri)} [{place.index}], sample {row['sample_id']}",
        *(f"{name}: {shown_text(row[name])}" for name in ("caption", "label") if row[name]),
    ]
    original = f"no original: {shown_text(found.why)}" if isinstance(found, NotFound) else found.pixels
    num_frames = sequence.grid.frames if sequence.num_frames is None else sequence.num_frames
    is_clip, pts_s = num_frames > 1, row.get("frame_pts_s")
    if is_clip:
        lines.insert(0, f"in all {sequence.num_tokens} tokens in {num_frames} frames")
    scale = heat_scale([sequence], criterion=criterion_of(data), kind=heat)
    rows = [
        PictureRow(
            title=shown_text(row["key"]) + (_frame_words(place.clip_index, frame.number, pts_s) if is_clip else ""),
            original=frame.original,
            rebuilt=frame.rebuilt,
            sequence=frame.sequence,
            lines=tuple(lines) if frame.number == 0 else (),
        )
        for frame in shown_frames(sequence, original, rebuilt, most=most_frames)
    ]
    number = f"-{place.clip_index}" if place.clip_index else ""  # the rows of one sample share its key
    moving, panels = None, ""
    if is_clip and not isinstance(rebuilt, str):
        every = shown_frames(sequence, original, rebuilt, most=num_frames)
        pictures = [
            side_by_side(frame.original, frame.sequence, pixels, scale)
            for frame, pixels in zip(every, rebuilt, strict=True)
        ]
        moving = animated_webp(pictures, pts_s)
        panels = "" if isinstance(every[0].original, str) else "original, "
        panels += f"{'' if scale is None else f'{scale.kind}, '}kept patches, rebuilt"
    return DrawnRow(
        name=f"{file_name(row['key'])}{number}-tokens",
        sequence=sequence,
        picture=draw_picture(rows, scale),
        why_no_original=found.why if isinstance(found, NotFound) else None,
        moving=moving,
        num_moving=num_frames if is_clip else 0,
        panels=panels,
    )


def picture_examples(
    data: TokenizedData,
    examples: Examples,
    *,
    checkpoint: str | None = None,
    device: str | None = None,
    tokenizer: str | None = None,
    options: Mapping[str, Any] | None = None,
    max_seconds: float = 30.0,
) -> Pictured:
    """The rows that a report shows, with originals and reconstructions as far as they can be had.

    Raises ConfigError where a `checkpoint` or `tokenizer` that was named did not make the tokens, SourceError for a
    damaged part.
    """
    kinds = [kind for kind in _KINDS for _ in getattr(examples, kind)]
    if not kinds:
        return Pictured(images=[], why_none="there are no images yet")
    table = read_rows(data, [place for kind in _KINDS for place in getattr(examples, kind)])
    sequences = token_sequences(table)
    why_not_rebuilt = None
    rebuilt: Sequence[np.ndarray | str]
    try:
        made_by = tokenizer_of(data, checkpoint, device, tokenizer=tokenizer, options=options)
        rebuilt = list(rebuilt_clips(data, sequences, made_by))
    except ConfigError as error:
        if checkpoint is not None or tokenizer is not None:
            raise
        why_not_rebuilt = str(error)
        rebuilt = [f"no reconstruction: {why_not_rebuilt}"] * len(kinds)
    sources = source_places(table)
    originals = read_originals(sources, Recipe.of_run(data.run), max_seconds=max_seconds)
    missing = [original.why for original in originals.values() if isinstance(original, NotFound)]
    if why_not_rebuilt and len(missing) == len(originals):
        return Pictured(images=[], why_none=f"{why_not_rebuilt}; and no original was found ({missing[0]})")
    images = []
    for kind, row, sequence, source, clip in zip(kinds, table.to_pylist(), sequences, sources, rebuilt, strict=True):
        found = originals[source]
        original = f"no original: {found.why}" if isinstance(found, NotFound) else found.pixels
        try:
            frames = shown_frames(sequence, original, clip, most=_REPORT_FRAMES)
        except ValueError as error:
            raise SourceError(f"{data.url}, {row['key']!r}: {error}; is a part damaged?") from error
        images.append(
            ExampleImage(
                kind=kind,
                key=row["key"],
                caption=row["caption"],
                label=row["label"],
                sequence=sequence,
                frames=frames,
            )
        )
    return Pictured(images=images, why_not_rebuilt=why_not_rebuilt)


def file_names(table: pa.Table) -> list[str]:
    """A name for each row, from its key; rows whose names would be the same get their sample id too."""
    names = [file_name(key) for key in table.column("key").to_pylist()]
    folded = [name.casefold() for name in names]
    ids = table.column("sample_id").to_pylist()
    return [
        f"{name}-{sample_id[:16]}" if folded.count(fold) > 1 else name
        for name, fold, sample_id in zip(names, folded, ids, strict=True)
    ]


def file_name(key: str) -> str:
    """A key as a plain file name: keys come from archives and may hold folders, dots or anything else."""
    plain = re.sub(r"[^\w.\-]+", "_", key).encode("utf-8")[:120].decode("utf-8", errors="ignore")
    return plain.strip("._") or "image"


def write_whole(path: Path, content: bytes | Image.Image) -> None:
    """Write a file that appears whole or not at all, an image as a PNG. Raises CommitError."""
    scratch = path.with_name(f".tatok-{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            if isinstance(content, bytes):
                scratch.write_bytes(content)
            else:
                content.save(scratch, "PNG")
            os.replace(scratch, path)
        finally:
            scratch.unlink(missing_ok=True)
    except OSError as error:
        raise CommitError(f"cannot write {path}: {error}; choose another place with -o") from error


def _bits_words(sequence: TokenSequence) -> list[str]:
    entropy = sequence.entropy
    if entropy is None:
        return []
    return [
        f"{entropy.entropy_bits:,.0f} bits: {entropy.kept_entropy_bits:,.0f} in kept patches, "
        f"{entropy.residual_bits:,.0f} dropped"
    ]


def _frame_words(clip_index: int, number: int, pts_s: Sequence[float] | None) -> str:
    at = "" if pts_s is None or number >= len(pts_s) else f" at {pts_s[number]:.3f} s"
    return f", clip {clip_index}, frame {number + 1}{at}"
