"""The commands that look at tokens: report, show, decode."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

if TYPE_CHECKING:
    import numpy as np
    import pyarrow as pa

    from schemas.records import TokenSequence
    from tatok.parts import TokenizedData
    from tatok.report import ExampleImage
    from tatok.report_rows import Examples
    from tatok.tokenizer import Tokenizer

__all__ = ["decode", "report", "show"]

DECODE_BATCH = 16
REPORT_FRAMES = 4

DataSet = Annotated[str, typer.Argument(metavar="OUTPUT", help="Folder or URL of a tokenized data set.")]
KEY_HELP = "key of an image, or its sample_id (its first 8 digits do)."
CheckpointOption = Annotated[
    str | None, typer.Option(help="Checkpoint folder that made the tokens; default: the one that run.json names.")
]
Device = Annotated[str | None, typer.Option(help="torch device; default: cuda where there is one, else cpu.")]
Timeout = Annotated[float, typer.Option(help="Seconds to wait for the sources of the originals.")]


def report(
    output: DataSet,
    page: Annotated[Path, typer.Option("-o", "--output", help="The HTML file to write.")] = Path("report.html"),
    title: Annotated[str | None, typer.Option(help="Title of the page; default: the name of the folder.")] = None,
    pictures: Annotated[
        bool, typer.Option("--pictures/--no-pictures", help="Show images with their entropies and reconstructions.")
    ] = True,
    checkpoint: CheckpointOption = None,
    device: Device = None,
    timeout: Timeout = 30.0,
) -> None:
    """Draw one self-contained HTML page of a data set: distributions, entropy, positions, codes, images, rejects.

    Originals are read again from their sources, where these answer; addresses are shown without passwords and queries.
    """
    from datetime import UTC, datetime

    from schemas.errors import SourceError
    from tatok.parts import TokenizedData
    from tatok.report import Report, render_report
    from tatok.report_rows import look_at_rows, reject_examples
    from tatok.statistics import summarize

    data = TokenizedData.open(output)
    statistics = summarize(data)
    against, examples = look_at_rows(data)
    images: list[ExampleImage] = []
    why_no_images: str | None = None
    if not pictures:
        why_no_images = "left out by --no-pictures"
    else:
        images, why_no_images = _example_images(data, examples, checkpoint, device, timeout)
    try:
        rejects = reject_examples(data)
    except SourceError as error:  # the counts, which matter, come from the manifest
        typer.secho(f"warning: no examples of rejects: {error}", fg="yellow", err=True)
        rejects = {}
    text = render_report(
        Report(
            title=title or data.url.rstrip("/").rpartition("/")[2] or data.url,
            drawn_at=datetime.now(UTC),
            statistics=statistics,
            run=data.run,
            against=against,
            images=images,
            why_no_images=why_no_images,
            reject_examples=rejects,
        )
    )
    _write(page, text.encode("utf-8"))
    print(f"{page}: {page.stat().st_size:,} bytes, {statistics.num_rows:,} images, {len(images)} of them pictured")
    if why_no_images and pictures:
        print(f"no pictures: {why_no_images}")


def show(
    output: DataSet,
    key: Annotated[str, typer.Argument(help=f"The {KEY_HELP}")],
    picture: Annotated[
        Path | None, typer.Option("-o", "--output", help="The PNG file to write; default: KEY-tokens.png here.")
    ] = None,
    checkpoint: CheckpointOption = None,
    device: Device = None,
    timeout: Timeout = 60.0,
    frames: Annotated[int, typer.Option(min=1, help="Of a clip: how many frames to draw, evenly spread over it.")] = 6,
    heat: Annotated[
        Literal["worth", "entropy"] | None,
        typer.Option(help="What the heat map shows; default: worth where the data set stores it, else entropy."),
    ] = None,
) -> None:
    """Draw one image: original (where its source answers), bits of each patch, kept patches, reconstruction.

    Of a clip a few frames are drawn, one below the other; all of them move in KEY-tokens-moving.webp beside it.
    """
    import io

    from pipeline.originals import NotFound, Recipe, read_originals, source_places
    from tatok.animation import animated_webp
    from tatok.heat import heat_scale
    from tatok.lookup import find_rows, read_rows
    from tatok.parts import TokenizedData
    from tatok.picture import PictureRow, draw_picture, side_by_side
    from tatok.report import shown_text
    from tatok.rows import token_sequences
    from tatok.shown_frames import shown_frames

    data = TokenizedData.open(output)
    table = read_rows(data, find_rows(data, [key]))
    tokenizer = _tokenizer_of(data, checkpoint, device)
    [place] = source_places(table)
    found = read_originals([place], Recipe.of_run(data.run), max_seconds=timeout)[place]
    [row], [sequence] = table.to_pylist(), token_sequences(table)
    [rebuilt_T3HW] = _decode(tokenizer, [sequence], data)
    entropy = sequence.entropy
    lines = [
        f"{entropy.entropy_bits:,.0f} bits: {entropy.kept_entropy_bits:,.0f} in kept patches, "
        f"{entropy.residual_bits:,.0f} dropped",
        f"{shown_text(place.uri)} [{place.index}], sample {row['sample_id']}",
        *(f"{name}: {shown_text(row[name])}" for name in ("caption", "label") if row[name]),
    ]
    if isinstance(found, NotFound):
        typer.secho(f"no original: {found.why}", fg="yellow", err=True)
    original = f"no original: {shown_text(found.why)}" if isinstance(found, NotFound) else found.pixels
    is_clip, pts_s = sequence.grid.frames > 1, row.get("frame_pts_s")
    if is_clip:
        lines.insert(0, f"in all {sequence.num_tokens} tokens in {sequence.grid.frames} frames")
    scale = heat_scale([sequence], criterion=_criterion(data), kind=heat)
    image = draw_picture(
        [
            PictureRow(
                title=shown_text(row["key"]) + (_frame_words(place.clip_index, frame.number, pts_s) if is_clip else ""),
                original=frame.original,
                rebuilt=frame.rebuilt,
                sequence=frame.sequence,
                lines=tuple(lines) if frame.number == 0 else (),
            )
            for frame in shown_frames(sequence, original, rebuilt_T3HW, most=frames)
        ],
        scale,
    )
    number = f"-{place.clip_index}" if place.clip_index else ""  # the rows of one sample share its key
    path = picture or Path(f"{_file_name(row['key'])}{number}-tokens.png")
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    _write(path, buffer.getvalue())
    print(f"{path}: {sequence.num_tokens} tokens, {sequence.num_global} global and {sequence.num_patches} patch")
    if is_clip:
        every = shown_frames(sequence, original, rebuilt_T3HW, most=sequence.grid.frames)
        moving = path.with_name(f"{path.stem}-moving.webp")
        pictures = [
            side_by_side(frame.original, frame.sequence, pixels, scale)
            for frame, pixels in zip(every, rebuilt_T3HW, strict=True)
        ]
        _write(moving, animated_webp(pictures, pts_s))
        panels = "" if isinstance(every[0].original, str) else "original, "
        panels += f"{'' if scale is None else f'{scale.kind}, '}kept patches, rebuilt"
        print(f"{moving}: {len(every)} frames: {panels}")


def decode(
    output: DataSet,
    keys: Annotated[list[str], typer.Argument(metavar="KEY...", help=f"One or more images, each the {KEY_HELP}")],
    folder: Annotated[Path, typer.Option("-o", "--output", help="Folder for the pictures.")],
    checkpoint: CheckpointOption = None,
    device: Device = None,
) -> None:
    """Turn tokens back into PNG files, one KEY.png each; existing files are replaced.

    Of a clip, KEY.png holds the frames side by side, and KEY-moving.webp plays them.
    """
    import io

    import numpy as np
    from PIL import Image

    from tatok.animation import animated_webp
    from tatok.lookup import find_rows, read_rows
    from tatok.parts import TokenizedData
    from tatok.rows import token_sequences

    data = TokenizedData.open(output)
    table = read_rows(data, list(dict.fromkeys(find_rows(data, keys))))
    tokenizer = _tokenizer_of(data, checkpoint, device)
    sequences = token_sequences(table)
    clips = _decode(tokenizer, sequences, data)
    for row, name, sequence, pixels_T3HW in zip(table.to_pylist(), _file_names(table), sequences, clips, strict=True):
        frames_HW3 = [pixels_3HW.transpose(1, 2, 0) for pixels_3HW in pixels_T3HW]
        buffer = io.BytesIO()
        Image.fromarray(np.hstack(frames_HW3)).save(buffer, "PNG")
        path = folder / f"{name}.png"
        _write(path, buffer.getvalue())
        if len(frames_HW3) > 1:
            _write(folder / f"{name}-moving.webp", animated_webp(frames_HW3, row.get("frame_pts_s")))
        print(f"{path}: {sequence.num_tokens} tokens")


def _example_images(
    data: TokenizedData, examples: Examples, checkpoint: str | None, device: str | None, timeout: float
) -> tuple[list[ExampleImage], str | None]:
    """The images to show, and why there are none."""
    from pipeline.originals import NotFound, Recipe, read_originals, source_places
    from schemas.errors import ConfigError, SourceError
    from tatok.lookup import read_rows
    from tatok.report import ExampleImage
    from tatok.rows import token_sequences
    from tatok.shown_frames import shown_frames

    places = [*examples.richest, *examples.typical, *examples.poorest]
    kinds = ["richest"] * len(examples.richest) + ["typical"] * len(examples.typical)
    kinds += ["poorest"] * len(examples.poorest)
    if not places:
        return [], "there are no images yet"
    table = read_rows(data, places)
    sequences = token_sequences(table)
    no_tokenizer = ""
    rebuilt: Sequence[np.ndarray | str]
    try:
        rebuilt = list(_decode(_tokenizer_of(data, checkpoint, device), sequences, data))
    except ConfigError as error:
        if checkpoint is not None:
            raise
        no_tokenizer = str(error)
        rebuilt = [f"no reconstruction: {no_tokenizer}"] * len(places)
    sources = source_places(table)
    originals = read_originals(sources, Recipe.of_run(data.run), max_seconds=timeout)
    if no_tokenizer and all(isinstance(original, NotFound) for original in originals.values()):
        why = next(original.why for original in originals.values() if isinstance(original, NotFound))
        return [], f"{no_tokenizer}; and no original was found ({why})"
    if no_tokenizer:
        typer.secho(f"warning: no reconstructions: {no_tokenizer}", fg="yellow", err=True)
    images = []
    for kind, row, sequence, source, clip in zip(kinds, table.to_pylist(), sequences, sources, rebuilt, strict=True):
        found = originals[source]
        original = f"no original: {found.why}" if isinstance(found, NotFound) else found.pixels
        try:
            frames = shown_frames(sequence, original, clip, most=REPORT_FRAMES)
        except ValueError as error:
            raise SourceError(f"{data.url}, {row['key']!r}: {error}; is a part damaged?") from error
        images.append(
            ExampleImage(
                kind=kind,  # type: ignore[arg-type]
                key=row["key"],
                caption=row["caption"],
                label=row["label"],
                sequence=sequence,
                frames=frames,
            )
        )
    return images, None


def _tokenizer_of(data: TokenizedData, checkpoint: str | None, device: str | None) -> Tokenizer:
    """The tokenizer that made the data set; any other would turn its codes into noise."""
    from schemas.errors import ConfigError
    from tatok.tokenizer import Tokenizer

    recorded = data.run.config.get("checkpoint")
    chosen = checkpoint or (None if recorded is None else str(recorded))
    remedy = "name the checkpoint that made it with --checkpoint"
    try:
        tokenizer = Tokenizer.load(chosen, device)
    except ConfigError as error:
        raise ConfigError(f"{error}; if {data.url} was made with another one, {remedy}") from error
    made_with = data.run.fingerprint.get("tokenizer.weights_sha256", "(unknown)")
    loaded = tokenizer.identity["weights_sha256"]
    if made_with != loaded:
        raise ConfigError(
            f"{data.url} was made with the weights {made_with[:16]}, but {chosen or 'the checkpoint of tatok'} holds "
            f"{loaded[:16]}; {remedy}"
        )
    return tokenizer


def _criterion(data: TokenizedData) -> str | None:
    """DTF's criterion, where run.json tells."""
    import json

    try:
        dtf = json.loads(data.run.fingerprint.get("tokenizer.dtf", "null"))
    except ValueError:
        return None
    return dtf.get("criterion") if isinstance(dtf, dict) else None


def _decode(tokenizer: Tokenizer, sequences: Sequence[TokenSequence], data: TokenizedData) -> Iterator[np.ndarray]:
    """Pixels, uint8 [T, 3, H, W], of each sequence in order; alike ones decode together."""
    from itertools import groupby

    from schemas.errors import SourceError

    for _, alike in groupby(sequences, key=lambda sequence: sequence.grid):
        group = list(alike)
        for first in range(0, len(group), DECODE_BATCH):
            try:
                clips_BT3HW = tokenizer.decode_clips(group[first : first + DECODE_BATCH])
            except ValueError as error:
                raise SourceError(
                    f"{data.url} holds tokens that cannot be decoded: {error}; is a part damaged?"
                ) from error
            yield from clips_BT3HW.cpu().numpy()


def _frame_words(clip_index: int, number: int, pts_s: Sequence[float] | None) -> str:
    at = "" if pts_s is None or number >= len(pts_s) else f" at {pts_s[number]:.3f} s"
    return f", clip {clip_index}, frame {number + 1}{at}"


def _file_names(table: pa.Table) -> list[str]:
    """A name for each row, from its key; rows whose names would be the same get their sample id too."""
    names = [_file_name(key) for key in table.column("key").to_pylist()]
    folded = [name.casefold() for name in names]
    ids = table.column("sample_id").to_pylist()
    return [
        f"{name}-{sample_id[:16]}" if folded.count(fold) > 1 else name
        for name, fold, sample_id in zip(names, folded, ids, strict=True)
    ]


def _file_name(key: str) -> str:
    """A key as a plain file name: keys come from archives and may hold folders, dots or anything else."""
    plain = re.sub(r"[^\w.\-]+", "_", key).encode("utf-8")[:120].decode("utf-8", errors="ignore")
    return plain.strip("._") or "image"


def _write(path: Path, content: bytes) -> None:
    """Write a file that appears whole or not at all."""
    from schemas.errors import CommitError

    scratch = path.with_name(f".tatok-{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            scratch.write_bytes(content)
            os.replace(scratch, path)
        finally:
            scratch.unlink(missing_ok=True)
    except OSError as error:
        raise CommitError(f"cannot write {path}: {error}; choose another place with -o") from error
