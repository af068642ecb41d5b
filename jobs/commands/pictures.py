"""The commands that look at tokens: report, show, decode."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from tatok.jobs.job_file import TokenizerSettings, tokenizer_options
from tatok.jobs.text.query import printable

__all__ = ["decode", "report", "show"]

Dataset = Annotated[str, typer.Argument(metavar="OUTPUT", help="Folder or URL of a tokenized dataset.")]
KEY_HELP = "key of an image, or its sample_id (its first 8 digits do)."
CheckpointOption = Annotated[
    str | None,
    typer.Option(help="Checkpoint folder, or its URL, that made the tokens; default: the one that the dataset names."),
]
TokenizerOption = Annotated[
    str | None,
    typer.Option(
        help="The tokenizer of your own that made the tokens, such as my_tokenizer.py:load; default: as above."
    ),
]
Device = Annotated[str | None, typer.Option(help="torch device; default: cuda where there is one, else cpu.")]
Timeout = Annotated[float, typer.Option(help="Seconds to wait for the sources of the originals.")]


def report(
    output: Dataset,
    page: Annotated[Path, typer.Option("-o", "--output", help="The HTML file to write.")] = Path("report.html"),
    title: Annotated[str | None, typer.Option(help="Title of the page; default: the name of the folder.")] = None,
    pictures: Annotated[
        bool, typer.Option("--pictures/--no-pictures", help="Show images with their entropies and reconstructions.")
    ] = True,
    checkpoint: CheckpointOption = None,
    tokenizer: TokenizerOption = None,
    tokenizer_option: TokenizerSettings = None,
    device: Device = None,
    timeout: Timeout = 30.0,
) -> None:
    """Draw one self-contained HTML page of a dataset: distributions, entropy, positions, codes, images, rejects.

    Originals are read again from their sources, where these answer; addresses are shown without passwords and queries.
    """
    from datetime import UTC, datetime

    from tatok.dataset.parts import TokenizedData
    from tatok.jobs.pictures import Pictured, picture_examples, write_whole
    from tatok.report.correlations import token_correlations
    from tatok.report.page import Report, render_report
    from tatok.report.rows import look_at_rows, reject_examples
    from tatok.schemas.errors import SourceError
    from tatok.statistics.summary import summarize
    from tatok.statistics.units import noun_of

    data = TokenizedData.open(output)
    statistics = summarize(data)
    against, examples = look_at_rows(data)
    pictured = Pictured(images=[], why_none="left out by --no-pictures")
    if pictures:
        pictured = picture_examples(
            data,
            examples,
            checkpoint=checkpoint,
            device=device,
            tokenizer=tokenizer,
            options=tokenizer_options(tokenizer_option),
            max_seconds=timeout,
        )
    if pictured.why_not_rebuilt:
        typer.secho(f"warning: no reconstructions: {pictured.why_not_rebuilt}", fg="yellow", err=True)
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
            images=pictured.images,
            why_no_images=pictured.why_none,
            reject_examples=rejects,
            correlations=token_correlations(data),
        )
    )
    write_whole(page, text.encode("utf-8"))
    num_pictured = len(pictured.images)
    rows = f"{statistics.num_rows:,} {noun_of(statistics)}s"
    print(f"{page}: {page.stat().st_size:,} bytes, {rows}, {num_pictured} of them pictured")
    if pictured.why_none and pictures:
        print(f"no pictures: {pictured.why_none}")


def show(
    output: Dataset,
    keys: Annotated[list[str], typer.Argument(metavar="KEY...", help=f"One or more images, each the {KEY_HELP}")],
    picture: Annotated[
        Path | None,
        typer.Option("-o", "--output", help="The PNG file to write; default: KEY-tokens.png, of the first key, here."),
    ] = None,
    checkpoint: CheckpointOption = None,
    tokenizer: TokenizerOption = None,
    tokenizer_option: TokenizerSettings = None,
    device: Device = None,
    timeout: Timeout = 60.0,
    frames: Annotated[int, typer.Option(min=1, help="Of a clip: how many frames to draw, evenly spread over it.")] = 6,
    heat: Annotated[
        Literal["worth", "entropy"] | None,
        typer.Option(help="What the heat map shows; default: worth where the dataset stores it, else entropy."),
    ] = None,
) -> None:
    """Draw images: original (where its source answers), bits of each patch, kept patches, reconstruction.

    Several are drawn on one sheet, one below the other, with one scale for all heat maps. Of a clip a few frames are
    drawn, one below the other; all of them move in KEY-tokens-moving.webp beside it.
    """
    from tatok.dataset.parts import TokenizedData
    from tatok.jobs.pictures import draw_table, rows_to_draw, write_whole
    from tatok.report.rebuilt import tokenizer_of

    data = TokenizedData.open(output)
    table = rows_to_draw(data, keys, most_frames=frames)
    made_by = tokenizer_of(data, checkpoint, device, tokenizer=tokenizer, options=tokenizer_options(tokenizer_option))
    sheet = draw_table(data, table, made_by, most_frames=frames, heat=heat, max_seconds=timeout)
    several = len(sheet.rows) > 1
    for row in sheet.rows:
        if row.why_no_original:
            of_key = f" of {printable(row.key)}" if several else ""
            typer.secho(f"no original{of_key}: {row.why_no_original}", fg="yellow", err=True)
    path = picture or Path(f"{sheet.name}.png")
    write_whole(path, sheet.picture)
    if several:
        print(f"{path}: {sheet.count}")
    for row in sheet.rows:
        tokens = (
            f"{row.sequence.num_tokens} tokens, {row.sequence.num_global} global and {row.sequence.num_patches} patch"
        )
        print(f"  {printable(row.key)}: {tokens}" if several else f"{path}: {tokens}")
        moving = path.with_name(f"{row.name if several else path.stem}-moving.webp")
        if (content := row.moving) is not None:
            write_whole(moving, content)
            print(f"{moving}: {row.num_moving} frames: {row.panels}")


def decode(
    output: Dataset,
    keys: Annotated[list[str], typer.Argument(metavar="KEY...", help=f"One or more images, each the {KEY_HELP}")],
    folder: Annotated[Path, typer.Option("-o", "--output", help="Folder for the pictures.")],
    checkpoint: CheckpointOption = None,
    tokenizer: TokenizerOption = None,
    tokenizer_option: TokenizerSettings = None,
    device: Device = None,
) -> None:
    """Turn tokens back into PNG files, one KEY.png each; existing files are replaced.

    Of a clip, KEY.png holds the frames side by side, and KEY-moving.webp plays them.
    """
    import numpy as np
    from PIL import Image

    from tatok.dataset.lookup import find_rows, read_rows
    from tatok.dataset.parts import TokenizedData
    from tatok.dataset.rows import token_sequences
    from tatok.jobs.pictures import file_names, write_whole
    from tatok.report.animation import animated_webp
    from tatok.report.rebuilt import rebuilt_clips, tokenizer_of

    data = TokenizedData.open(output)
    table = read_rows(data, list(dict.fromkeys(find_rows(data, keys))))
    sequences = token_sequences(table)
    made_by = tokenizer_of(data, checkpoint, device, tokenizer=tokenizer, options=tokenizer_options(tokenizer_option))
    clips = rebuilt_clips(data, sequences, made_by)
    for row, name, sequence, pixels_T3HW in zip(table.to_pylist(), file_names(table), sequences, clips, strict=True):
        frames_HW3 = [pixels_3HW.transpose(1, 2, 0) for pixels_3HW in pixels_T3HW]
        path = folder / f"{name}.png"
        write_whole(path, Image.fromarray(np.hstack(frames_HW3)))
        if len(frames_HW3) > 1:
            write_whole(folder / f"{name}-moving.webp", animated_webp(frames_HW3, row.get("frame_pts_s")))
        print(f"{path}: {sequence.num_tokens} tokens")
