"""The commands that do the main job: tokenize, and demo, on a few photos."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from tatok.jobs.exit_codes import EXIT_INCOMPLETE, EXIT_REJECTS
from tatok.jobs.interruption import resumable
from tatok.jobs.job_file import (
    SetOption,
    TokenizerName,
    TokenizerSettings,
    job_file_among,
    read_job_settings,
    tokenizer_options,
)
from tatok.jobs.verbosity import Quiet, Verbose, Verbosity
from tatok.schemas.errors import ConfigError

if TYPE_CHECKING:
    import pyarrow as pa
    from PIL import Image
    from rich.table import Table

    from tatok.pipeline.monitoring.events import Event, OnEvent
    from tatok.schemas.job import JobConfig

__all__ = ["demo", "tokenize"]

MOST_PICTURED = 9


def tokenize(
    paths: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="SOURCE... OUTPUT",
            help="WebDataset tars, Parquet files, folders of images and videos, lists of URIs (paths, globs, brace "
            "patterns, fsspec URLs), then the dataset's folder; or a job file alone.",
            show_default=False,
        ),
    ] = None,
    config: Annotated[
        Path | None, typer.Option(help="Job file (YAML); the other options and arguments override it.")
    ] = None,
    assignments: SetOption = None,
    checkpoint: Annotated[str | None, typer.Option(help="Checkpoint folder; default: the bundled one.")] = None,
    tokenizer: TokenizerName = None,
    tokenizer_option: TokenizerSettings = None,
    device: Annotated[str | None, typer.Option(help="torch device; default: cuda where there is one.")] = None,
    image_field: Annotated[str | None, typer.Option(help="Tar member (jpg) or table column to tokenize.")] = None,
    label_from_folder: Annotated[
        bool | None, typer.Option("--label-from-folder/--no-label-from-folder", help="First folder of a file = label.")
    ] = None,
    image_size: Annotated[int | None, typer.Option(help="Side of the square that is tokenized, in pixels.")] = None,
    threshold: Annotated[float | None, typer.Option(help="DTF threshold; see `tatok calibrate`.")] = None,
    texture_bits: Annotated[
        float | None, typer.Option(help="Keep patches of more texture than so many bits a pixel value, too; 0: off.")
    ] = None,
    min_tokens: Annotated[int | None, typer.Option(help="Fewest tokens of an image, globals included.")] = None,
    max_tokens: Annotated[int | None, typer.Option(help="Most tokens of an image, globals included.")] = None,
    batch_size: Annotated[
        int | None, typer.Option(help="Images a tokenizer call; default: 256 on a GPU, else 16.")
    ] = None,
    num_tokenizers: Annotated[
        int | None, typer.Option(help="Tokenizer actors; default: one a GPU, else one a CPU.")
    ] = None,
    num_decoders: Annotated[
        int | None, typer.Option(help="Decoder processes; default: the CPUs left; without GPUs 0.")
    ] = None,
    shards_in_flight: Annotated[int | None, typer.Option(help="Shards that one tokenizer works on at a time.")] = None,
    decode_timeout: Annotated[float | None, typer.Option(help="Seconds after which a batch is given up.")] = None,
    max_reject_fraction: Annotated[float | None, typer.Option(help="Share of rejects above which to stop.")] = None,
    max_failed_shards: Annotated[int | None, typer.Option(help="Failed shards after which to stop.")] = None,
    patch_entropy: Annotated[
        bool | None, typer.Option("--patch-entropy/--no-patch-entropy", help="Store every position's entropy.")
    ] = None,
    patch_worth: Annotated[
        bool | None, typer.Option("--patch-worth/--no-patch-worth", help="Store what each position was worth to DTF.")
    ] = None,
    log: Annotated[
        str | None, typer.Option(help="Also write the run's events as JSON lines to this file; -: to standard output.")
    ] = None,
    fail_on_reject: Annotated[bool, typer.Option("--fail-on-reject", help="Exit with 4 on any reject.")] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Say what would be done; start nothing, write nothing.")
    ] = False,
    quiet: Quiet = False,
    verbose: Verbose = 0,
) -> None:
    """Tokenize images into a Parquet dataset; the same command again resumes where the last run stopped.

    With --dry-run: the source, what of it is committed, the tokenizer, the settings that differ from the defaults, and
    the workers; or the error that the job would end with. `tatok plan` looks at the source alone; `tatok doctor` also
    tries the stores, the cluster and some samples, and says how long the job will take.
    """
    from tatok.jobs.text.run import print_summary
    from tatok.pipeline.monitoring.progress import ProgressDisplay
    from tatok.pipeline.run import run_job
    from tatok.schemas.job import JobConfig
    from tatok.schemas.settings_file import SettingsFile

    verbosity = Verbosity.of(quiet, verbose)
    paths, config = job_file_among(paths, config)
    settings = read_job_settings(config) if config is not None else SettingsFile(origin="the command line")
    if paths:
        if len(paths) < 2:
            raise ConfigError(f"name at least one SOURCE and then the OUTPUT; there is only {paths[0]!r}")
        settings.override("source", paths[:-1], place="SOURCE")
        settings.override("output", paths[-1], place="OUTPUT")
    elif config is None:
        raise ConfigError("name SOURCE and OUTPUT, or a job file (--config); see `tatok tokenize --help`")
    settings.override_from(os.environ)
    settings.override_with(assignments or [])
    overrides = {
        "checkpoint": checkpoint,
        "tokenizer": tokenizer,
        "device": device,
        "image_field": image_field,
        "label_from_folder": label_from_folder,
        "preprocessing.image_size": image_size,
        "dtf.threshold": threshold,
        "dtf.texture_bits": texture_bits,
        "dtf.min_tokens": min_tokens,
        "dtf.max_tokens": max_tokens,
        "resources.batch_size": batch_size,
        "resources.num_tokenizers": num_tokenizers,
        "resources.num_decoders": num_decoders,
        "resources.shards_in_flight": shards_in_flight,
        "resources.decode_timeout_s": decode_timeout,
        "limits.max_reject_fraction": max_reject_fraction,
        "limits.max_failed_shards": max_failed_shards,
        "write.patch_entropy": patch_entropy,
        "write.patch_worth": patch_worth,
    }
    for name, value in overrides.items():
        if value is not None:
            settings.override(name, value, place=f"the option for {name}")
    for name, value in tokenizer_options(tokenizer_option).items():
        settings.override(f"tokenizer_options.{name}", value, place=f"--tokenizer-option {name}")
    job = settings.validated(JobConfig)
    if dry_run:
        _preview(job)
        return
    with resumable(), ProgressDisplay(level=verbosity) as display, _logging(log) as write:

        def tell(event: Event) -> None:
            write(event)
            display(event)

        summary = run_job(job, on_event=tell)
    print_summary(summary, quiet=verbosity == Verbosity.QUIET)
    if summary.status != "complete":
        raise typer.Exit(EXIT_INCOMPLETE)
    if fail_on_reject and summary.num_rejects:
        raise typer.Exit(EXIT_REJECTS)


def _preview(job: JobConfig) -> None:
    from tatok.jobs.text.folding import folded
    from tatok.jobs.text.plan import preview_text
    from tatok.pipeline.preview import preview_job

    print(folded(preview_text(preview_job(job), job), sys.stdout))


@contextmanager
def _logging(path: str | None) -> Iterator[OnEvent]:
    from tatok.pipeline.monitoring.run_log import RunLog

    if path is None:
        yield lambda event: None
    elif path == "-":
        log = RunLog(sys.stdout)
        yield log
        log.close()
    else:
        try:
            file = open(path, "a", encoding="utf-8")  # noqa: SIM115  the block below may raise OSErrors of its own
        except OSError as error:
            raise ConfigError(
                f"--log {path} cannot be written: {error.strerror}; name a path of this machine"
            ) from error
        with file:
            log = RunLog(file)
            yield log
            log.close()


def demo(
    output: Annotated[Path, typer.Option(help="Folder of the dataset.")] = Path("demo-output"),
    photos: Annotated[str | None, typer.Option(help="Tars to use instead of the demo photos.")] = None,
    quiet: Quiet = False,
    verbose: Verbose = 0,
) -> None:
    """Tokenize a few photos on a local Ray; print what was written, its statistics and the path of a picture."""
    from tatok.examples import demo_photos
    from tatok.jobs.text.run import print_summary
    from tatok.pipeline.monitoring.progress import ProgressDisplay
    from tatok.pipeline.run import run_job
    from tatok.schemas.job import JobConfig, Output

    verbosity = Verbosity.of(quiet, verbose)
    source = photos or demo_photos()
    config = JobConfig(source=(source,), output=str(output), write=Output(patch_worth=True))
    with ProgressDisplay(level=verbosity) as display:
        summary = run_job(config, on_event=display)
    if not summary.num_rows:
        raise ConfigError(f"no photo of {source} could be tokenized; see {output}/{summary.layout.rejects}")
    _show(config, output)
    if summary.status != "complete":
        print_summary(summary)
        raise typer.Exit(EXIT_INCOMPLETE)


def _show(config: JobConfig, output: Path) -> None:
    """Print files, statistics and the picture's path."""
    import pyarrow as pa
    import pyarrow.parquet as pq
    from rich.console import Console

    parts = [pq.read_table(part) for part in sorted((output / "data").glob("*.parquet"))]
    table = pa.concat_tables(parts).sort_by("num_tokens")
    console = Console()
    console.print(f"\n[bold]Written to {output}[/bold]")
    for path in sorted(p for p in output.rglob("*") if p.is_file() and not p.is_relative_to(output / ".tmp")):
        console.print(f"  {path.relative_to(output)}  {path.stat().st_size:,} bytes", highlight=False)
    console.print(_statistics(table))
    picture = output.with_name(f"{output.name}.png")  # beside the dataset: a folder of Parquet is read as one table
    _draw(config, table.slice(0, MOST_PICTURED)).save(picture)
    console.print(f"\nPicture (original, worth of each patch, kept patches, reconstruction): [bold]{picture}[/bold]")


def _statistics(table: pa.Table) -> Table:
    import numpy as np
    from rich.table import Table

    view = Table(title="Tokens of each photo, and the conditional entropy of its patches in bits", title_justify="left")
    for heading in ("key", "tokens", "global", "patch", "bits", "kept", "dropped"):
        view.add_column(heading, justify="left" if heading == "key" else "right", no_wrap=True)
    columns = ("key", "num_tokens", "num_global_tokens", "num_patch_tokens")
    bits = ("entropy_bits", "kept_entropy_bits", "residual_bits")
    for row in table.select([*columns, *bits]).to_pylist():
        view.add_row(*(str(row[name]) for name in columns), *(f"{row[name]:,.0f}" for name in bits))
    mean = float(np.mean(table.column("num_tokens").to_numpy()))
    view.add_section()
    view.add_row("mean", f"{mean:.1f}")
    return view


def _draw(config: JobConfig, table: pa.Table) -> Image.Image:
    from tatok.dataset.rows import token_sequences
    from tatok.pipeline.decode.originals import NotFound, Recipe, read_originals, source_places
    from tatok.report.heat import heat_scale
    from tatok.report.picture import PictureRow, draw_picture
    from tatok.tokenizer.tokenizer import Tokenizer

    places = source_places(table)
    originals = read_originals(places, Recipe.of_job(config))
    sequences = token_sequences(table)
    tokenizer = Tokenizer.load()
    rebuilt = tokenizer.decode(sequences).cpu().numpy()
    rows = []
    for place, key, image, sequence in zip(places, table.column("key").to_pylist(), rebuilt, sequences, strict=True):
        found = originals[place]
        original = found.why if isinstance(found, NotFound) else found.pixels[0]
        rows.append(PictureRow(title=key, original=original, rebuilt=image, sequence=sequence))
    return draw_picture(rows, heat_scale(sequences, criterion=tokenizer.dtf.criterion))
