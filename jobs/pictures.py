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
from tatok.report.heat import HeatScale, heat_scale
from tatok.report.page import ExampleImage, shown_text
from tatok.report.picture import PictureRow, draw_picture, side_by_side
from tatok.report.rebuilt import criterion_of, rebuilt_clips, tokenizer_of
from tatok.report.rows import Examples
from tatok.report.shown_frames import shown_frames
from tatok.schemas.errors import CommitError, ConfigError, SourceError
from tatok.schemas.records import Clip, TokenSequence

if TYPE_CHECKING:
    from tatok.tokenizer.protocol import AnyTokenizer

__all__ = [
    "MOST_PICTURE_ROWS",
    "DrawnRow",
    "DrawnSheet",
    "Heat",
    "Pictured",
    "draw_row",
    "draw_rows",
    "draw_table",
    "file_name",
    "file_names",
    "picture_examples",
    "rows_to_draw",
    "write_whole",
]

Heat = Literal["worth", "entropy"]
MOST_PICTURE_ROWS = 40
"""Of one sheet, frames of clips included: some 14,000 pixels high, which every viewer of pictures still opens."""

_KINDS: tuple[Literal["richest"], Literal["typical"], Literal["poorest"]] = ("richest", "typical", "poorest")
_REPORT_FRAMES = 4
_SUFFIX = "-tokens"


@dataclass(frozen=True, slots=True, kw_only=True)
class DrawnRow:
    """One row, ready to be drawn: `picture_rows` is what its picture shows, one line of it an image or frame.

    `name` is a plain file name for it; `why_no_original` says why the source's pixels are not in it, if they are not.
    `frames_HW3` are all frames of a clip side by side with its `panels`, none of an image; `pts_s` are their times.
    """

    name: str
    key: str
    sequence: TokenSequence
    picture_rows: tuple[PictureRow, ...]
    scale: HeatScale | None
    why_no_original: str | None
    frames_HW3: tuple[np.ndarray, ...] = ()
    pts_s: Sequence[float] | None = None
    panels: str = ""

    def __repr__(self) -> str:
        return f"DrawnRow({self.name}: {self.sequence.num_tokens:,} tokens)"

    @property
    def picture(self) -> Image.Image:
        """The row by itself; drawn when asked for."""
        return draw_picture(self.picture_rows, self.scale)

    @property
    def moving(self) -> bytes | None:
        """Of a clip, an animated WebP of `num_moving` frames; made when asked for."""
        return animated_webp(self.frames_HW3, self.pts_s) if self.frames_HW3 else None

    @property
    def num_moving(self) -> int:
        """How many frames move."""
        return len(self.frames_HW3)


@dataclass(frozen=True, slots=True, kw_only=True)
class DrawnSheet:
    """Several rows as one picture, in the order that they were asked for; all heat maps share one scale."""

    rows: tuple[DrawnRow, ...]
    picture: Image.Image

    def __repr__(self) -> str:
        width, height = self.picture.size
        return f"DrawnSheet({self.name}: {self.count}, {width} x {height} pixels)"

    @property
    def count(self) -> str:
        """How many rows there are, in words: images, clips, or rows where there are both."""
        num_clips = sum(_num_frames(row.sequence) > 1 for row in self.rows)
        noun = {0: "image", len(self.rows): "clip"}.get(num_clips, "row")
        return f"{len(self.rows):,} {noun}{'' if len(self.rows) == 1 else 's'}"

    @property
    def name(self) -> str:
        """A plain file name for the sheet."""
        first, more = self.rows[0].name, len(self.rows) - 1
        return f"{first.removesuffix(_SUFFIX)}-and-{more}-more{_SUFFIX}" if more else first


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
    """One row; see `draw_rows`."""
    return draw_rows(data, [key], tokenizer, most_frames=most_frames, heat=heat, max_seconds=max_seconds).rows[0]


def draw_rows(
    data: TokenizedData,
    keys: Sequence[str],
    tokenizer: AnyTokenizer,
    *,
    most_frames: int = 6,
    heat: Heat | None = None,
    max_seconds: float = 60.0,
) -> DrawnSheet:
    """Draw rows, one below the other: original, bits of each patch, kept patches, reconstruction; of a clip few frames.

    A key may be a sample id; one that comes twice is drawn once. The sources have `max_seconds` to give the originals.
    Raises ConfigError where any key fits no row, with all of these, and where the rows do not fit on one sheet.
    """
    table = rows_to_draw(data, keys, most_frames=most_frames)
    return draw_table(data, table, tokenizer, most_frames=most_frames, heat=heat, max_seconds=max_seconds)


def rows_to_draw(data: TokenizedData, keys: Sequence[str], *, most_frames: int = 6) -> pa.Table:
    """What `draw_rows` finds before it needs a tokenizer, which takes seconds to load: the rows, for `draw_table`."""
    if not keys:
        raise ConfigError("there is no key to draw", remedy="name one or more")
    table = read_rows(data, list(dict.fromkeys(find_rows(data, list(dict.fromkeys(keys))))))
    _check_fits(token_sequences(table), most_frames)
    return table


def draw_table(
    data: TokenizedData,
    table: pa.Table,
    tokenizer: AnyTokenizer,
    *,
    most_frames: int = 6,
    heat: Heat | None = None,
    max_seconds: float = 60.0,
) -> DrawnSheet:
    """Draw the rows that `rows_to_draw` found; see `draw_rows`."""
    sequences, places = token_sequences(table), source_places(table)
    originals = read_originals(places, Recipe.of_run(data.run), max_seconds=max_seconds)
    rebuilt: list[np.ndarray | str]
    try:
        rebuilt = list(rebuilt_clips(data, sequences, tokenizer))
    except ConfigError as error:  # it makes tokens alone
        rebuilt = [f"no reconstruction: {error}"] * len(sequences)
    scale = heat_scale(sequences, criterion=criterion_of(data), kind=heat)
    each = zip(table.to_pylist(), _drawn_names(table), sequences, places, rebuilt, strict=True)
    rows = tuple(
        _drawn_row(row, name, sequence, originals[place], pixels, scale, most_frames)
        for row, name, sequence, place, pixels in each
    )
    return DrawnSheet(rows=rows, picture=draw_picture([line for row in rows for line in row.picture_rows], scale))


def _drawn_row(
    row: Mapping[str, Any],
    name: str,
    sequence: TokenSequence,
    found: Clip | NotFound,
    rebuilt: np.ndarray | str,
    scale: HeatScale | None,
    most_frames: int,
) -> DrawnRow:
    lines = [
        *_bits_words(sequence),
        f"{shown_text(row['source_uri'])} [{row['source_index']}], sample {row['sample_id']}",
        *(f"{column}: {shown_text(row[column])}" for column in ("caption", "label") if row[column]),
    ]
    original = f"no original: {shown_text(found.why)}" if isinstance(found, NotFound) else found.pixels
    num_frames, pts_s = _num_frames(sequence), row.get("frame_pts_s")
    is_clip = num_frames > 1
    if is_clip:
        lines.insert(0, f"in all {sequence.num_tokens} tokens in {num_frames} frames")
    picture_rows = tuple(
        PictureRow(
            title=shown_text(row["key"])
            + (_frame_words(row.get("clip_index", 0), frame.number, pts_s) if is_clip else ""),
            original=frame.original,
            rebuilt=frame.rebuilt,
            sequence=frame.sequence,
            lines=tuple(lines) if frame.number == 0 else (),
        )
        for frame in shown_frames(sequence, original, rebuilt, most=most_frames)
    )
    frames_HW3: tuple[np.ndarray, ...] = ()
    panels = ""
    if is_clip and not isinstance(rebuilt, str):
        every = shown_frames(sequence, original, rebuilt, most=num_frames)
        frames_HW3 = tuple(
            side_by_side(frame.original, frame.sequence, pixels, scale)
            for frame, pixels in zip(every, rebuilt, strict=True)
        )
        panels = "" if isinstance(every[0].original, str) else "original, "
        panels += f"{'' if scale is None else f'{scale.kind}, '}kept patches, rebuilt"
    return DrawnRow(
        name=name,
        key=row["key"],
        sequence=sequence,
        picture_rows=picture_rows,
        scale=scale,
        why_no_original=found.why if isinstance(found, NotFound) else None,
        frames_HW3=frames_HW3,
        pts_s=pts_s,
        panels=panels,
    )


def _check_fits(sequences: Sequence[TokenSequence], most_frames: int) -> None:
    each = [min(_num_frames(sequence), most_frames) for sequence in sequences]
    if len(each) > 1 and sum(each) > MOST_PICTURE_ROWS:
        fitting = int(np.searchsorted(np.cumsum(each), MOST_PICTURE_ROWS, side="right"))
        raise ConfigError(
            f"{len(each)} keys make {sum(each)} rows of pictures, and one sheet holds {MOST_PICTURE_ROWS}",
            remedy=f"draw {'the first ' if fitting > 1 else ''}{max(fitting, 1)} at once"
            + (", or fewer frames of each" if max(each) > 1 else ""),
        )


def _num_frames(sequence: TokenSequence) -> int:
    return sequence.grid.frames if sequence.num_frames is None else sequence.num_frames


def _drawn_names(table: pa.Table) -> list[str]:
    """A name for each row's picture; clips of one video, which share its key, have their number in it."""
    clips = table.column("clip_index").to_pylist() if "clip_index" in table.column_names else [0] * len(table)
    keys = table.column("key").to_pylist()
    names = [f"{file_name(key)}{f'-{clip}' if clip else ''}" for key, clip in zip(keys, clips, strict=True)]
    return [f"{name}{_SUFFIX}" for name in _told_apart(names, table)]


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
    return _told_apart([file_name(key) for key in table.column("key").to_pylist()], table)


def _told_apart(names: Sequence[str], table: pa.Table) -> list[str]:
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
