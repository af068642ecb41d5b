"""The commands that hand a dataset on: export to other formats, and compact."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from tatok.jobs.verbosity import Quiet
from tatok.schemas.errors import ConfigError
from tatok.schemas.records import count_text

if TYPE_CHECKING:
    from tatok.dataset.parts import TokenizedData
    from tatok.pipeline.export.base import ExportSummary

__all__ = ["compact", "exports", "parse_size"]

exports = typer.Typer(no_args_is_help=True, help="Write a dataset in another format, for other tools to read.")

Output = Annotated[str, typer.Argument(metavar="OUTPUT", help="The tokenized dataset: a folder or fsspec URL.")]
Destination = Annotated[str, typer.Argument(metavar="DEST", help="New or empty folder, or fsspec URL, to write to.")]
AllowIncomplete = Annotated[
    bool, typer.Option("--allow-incomplete", help="Take what is there, also where the job has not finished.")
]
_UNITS = {"": 1, "K": 1000, "M": 1000**2, "G": 1000**3, "KI": 1 << 10, "MI": 1 << 20, "GI": 1 << 30}


@exports.command()
def hub(
    output: Output,
    destination: Destination,
    license_id: Annotated[
        str | None, typer.Option("--license", help="License identifier of the Hub, such as cc-by-4.0.")
    ] = None,
    title: Annotated[str | None, typer.Option(help="Name on the card; default: that of OUTPUT's folder.")] = None,
    file_size: Annotated[str, typer.Option(help="About how large a Parquet file gets.")] = "500MB",
    without: Annotated[
        list[str] | None, typer.Option(metavar="COLUMN", help="Leave a column out, such as source_uri; repeatable.")
    ] = None,
    allow_incomplete: AllowIncomplete = False,
    quiet: Quiet = False,
) -> None:
    """Hugging Face Hub: Parquet files and a dataset card (README.md), for `load_dataset`."""
    from tatok.pipeline.export.base import open_export
    from tatok.pipeline.export.hub import export_hub

    file_bytes = parse_size(file_size)
    export = open_export(output, destination, allow_incomplete=allow_incomplete)
    with _progress(export.data, is_shown=not quiet) as on_rows:
        summary = export_hub(
            export,
            title=title,
            license_id=license_id,
            file_bytes=file_bytes,
            without=without or (),
            on_rows=on_rows,
        )
    _print_summary(export.data, summary)
    telling = [name for name in ("key", "source_uri", "caption", "metadata") if name not in (without or ())]
    if telling:
        print(f"{', '.join(telling)} are columns of it: look at them before you publish, or use --without")


@exports.command()
def webdataset(
    output: Output,
    destination: Destination,
    shard_size: Annotated[str, typer.Option(help="Size at which a tar is closed.")] = "256MB",
    shard_rows: Annotated[
        int | None, typer.Option(min=1, help="Close a tar at so many samples, too; default: at its size only.")
    ] = None,
    allow_incomplete: AllowIncomplete = False,
    quiet: Quiet = False,
) -> None:
    """WebDataset: tars of token and position arrays (.npy) and one JSON a row (image or clip)."""
    from tatok.pipeline.export.base import open_export
    from tatok.pipeline.export.webdataset import export_webdataset

    shard_bytes = parse_size(shard_size)
    export = open_export(output, destination, allow_incomplete=allow_incomplete)
    with _progress(export.data, is_shown=not quiet) as on_rows:
        summary = export_webdataset(export, shard_bytes=shard_bytes, shard_rows=shard_rows, on_rows=on_rows)
    _print_summary(export.data, summary)


@exports.command()
def megatron(
    output: Output,
    destination: Destination,
    layout: Annotated[
        Literal["interleaved", "codes"],
        typer.Option(help="Each patch as its position and its code, or as its code, positions in a second dataset."),
    ] = "interleaved",
    prefix: Annotated[str, typer.Option(help="Name of the files, without .bin and .idx.")] = "tokens",
    allow_incomplete: AllowIncomplete = False,
    quiet: Quiet = False,
) -> None:
    """Megatron-LM: an indexed dataset (.bin, .idx), one image or clip a document, ids in a JSON file."""
    from tatok.pipeline.export.base import open_export
    from tatok.pipeline.export.megatron import export_megatron

    if not re.fullmatch(r"[\w.-]+", prefix):
        raise ConfigError(f"--prefix is {prefix!r}; it is a file name of letters, digits, '.', '_' and '-'")
    export = open_export(output, destination, allow_incomplete=allow_incomplete)
    with _progress(export.data, is_shown=not quiet) as on_rows:
        summary = export_megatron(export, layout=layout, prefix=prefix, on_rows=on_rows)
    _print_summary(export.data, summary)


@exports.command()
def mds(
    output: Output,
    destination: Destination,
    shard_size: Annotated[str, typer.Option(help="Size at which a shard is closed, below 4 GiB.")] = "64MB",
    allow_incomplete: AllowIncomplete = False,
    quiet: Quiet = False,
) -> None:
    """MosaicML Streaming: MDS shards, for StreamingDataset; needs `pip install mosaicml-streaming`."""
    from tatok.pipeline.export.base import open_export
    from tatok.pipeline.export.mds import export_mds, require_streaming

    shard_bytes = parse_size(shard_size)
    require_streaming()
    export = open_export(output, destination, allow_incomplete=allow_incomplete)
    with _progress(export.data, is_shown=not quiet) as on_rows:
        summary = export_mds(export, shard_bytes=shard_bytes, on_rows=on_rows)
    _print_summary(export.data, summary)


def compact(
    output: Output,
    destination: Destination,
    target_size: Annotated[
        str, typer.Option(help="Size of the merged parts: each gets between half of it and twice it.")
    ] = "256MB",
    allow_incomplete: AllowIncomplete = False,
    quiet: Quiet = False,
) -> None:
    """Merge small parts into a new dataset of large ones; the same command again resumes where it stopped."""
    from tatok.dataset.parts import TokenizedData
    from tatok.pipeline.export.compact import compact as run
    from tatok.statistics.units import bytes_text, noun_of_parts

    target_bytes = parse_size(target_size)
    data = TokenizedData.open(output)
    with _progress(data, is_shown=not quiet) as on_rows:
        summary = run(data, destination, target_bytes=target_bytes, allow_incomplete=allow_incomplete, on_rows=on_rows)
    print(
        f"{summary.url}: {count_text(summary.num_source_parts, 'part')} merged to {summary.num_parts:,} "
        f"({bytes_text(summary.num_bytes)}), {summary.num_rows:,} {noun_of_parts(data)}s, {summary.num_tokens:,} tokens"
    )
    if summary.num_parts_kept == summary.num_parts:
        print("nothing to do: all parts were there")
    elif summary.num_parts_kept:
        print(f"{summary.num_parts_kept:,} of them were there already")


def parse_size(text: str) -> int:
    """Bytes in a size such as "256MB", "0.5 GiB" or "1000000": at least 1.

    Raises ConfigError where it is none.
    """
    found = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([KMG]?I?)B?\s*", text.upper())
    if found is None or found[2] not in _UNITS or not (num_bytes := int(float(found[1]) * _UNITS[found[2]])):
        raise ConfigError(f"{text!r} is not a size; write one such as 256MB, 1GB or 128MiB")
    return num_bytes


@contextmanager
def _progress(data: TokenizedData, *, is_shown: bool) -> Iterator[Callable[[int], None]]:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    from tatok.statistics.units import noun_of_parts

    console, what = Console(stderr=True), f"{noun_of_parts(data)}s"
    columns = (TextColumn(what), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(
        *columns, console=console, transient=True, disable=not (is_shown and console.is_terminal)
    ) as progress:
        task = progress.add_task(what, total=data.num_rows)
        yield lambda num_more: progress.advance(task, num_more)


def _print_summary(data: TokenizedData, summary: ExportSummary) -> None:
    from tatok.statistics.units import bytes_text, noun_of_parts

    print(
        f"{summary.url}: {summary.num_rows:,} {noun_of_parts(data)}s, {summary.num_tokens:,} tokens in "
        f"{count_text(summary.num_files, 'file')} ({bytes_text(summary.num_bytes)}); {summary.index} says what "
        "is in them"
    )
