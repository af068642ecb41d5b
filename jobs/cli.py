"""The command line: each command loads its configuration, calls one function and prints what came of it.

Everything heavy is imported inside the command that needs it, so that `tatok --help` answers at once.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperGroup

from jobs.bench_command import bench
from jobs.config_commands import config as config_commands
from jobs.doctor_command import doctor
from jobs.export_commands import compact, exports
from jobs.generator_commands import generator
from jobs.job_file import SetOption
from jobs.model_commands import calibrate, distance, evaluate, train
from jobs.picture_commands import decode, report, show
from jobs.plan_command import plan
from jobs.statistics_commands import query, stats
from jobs.submit_commands import jobs as jobs_commands
from jobs.submit_commands import submit
from jobs.verify_command import verify
from schemas.errors import ConfigError, TatokError

if TYPE_CHECKING:
    from pipeline.events import Event, OnEvent
    from pipeline.run import RunSummary

__all__ = ["app"]

EXIT_ERROR = 1
EXIT_INCOMPLETE = 3
EXIT_REJECTS = 4
EXIT_INTERRUPTED = 130

_EXIT_CODES = (
    "Exit codes: 0 every shard is committed (rejects within limits.max_reject_fraction are listed, not fatal); "
    "1 the command cannot be done; 2 wrong usage; 3 shards failed or there were too many rejects; "
    "4 there were rejects and --fail-on-reject was given; 130 interrupted."
)


class _Group(TyperGroup):
    """Turns the errors that tatok raises on purpose into one message and an exit code."""

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except TatokError as error:
            if ctx.params.get("debug"):
                raise
            typer.secho(f"error: {error}", fg="red", err=True)
            raise typer.Exit(EXIT_ERROR) from None
        except KeyboardInterrupt:
            raise typer.Exit(EXIT_INTERRUPTED) from None


app = typer.Typer(
    cls=_Group,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


@app.callback()
def main(
    context: typer.Context,
    debug: Annotated[
        bool, typer.Option("--debug", envvar="TATOK_DEBUG", help="Show the traceback of an error.")
    ] = False,
) -> None:
    """Images in, variable-length token sequences out."""
    from pipeline.storage import storage_options

    # Whatever store a command opens, it does not wait for it without end.
    context.with_resource(storage_options({}))


app.command()(plan)
app.command()(train)
app.command()(calibrate)
app.command("eval")(evaluate)
app.command()(distance)
app.command()(stats)
app.command()(query)
app.command()(report)
app.command()(show)
app.command()(decode)
app.command()(verify)
app.command()(compact)
app.add_typer(exports, name="export")
app.add_typer(generator, name="generator")
app.command()(doctor)
app.command()(bench)
app.command()(submit)
app.add_typer(jobs_commands, name="jobs")
app.add_typer(config_commands, name="config")


@app.command(epilog=_EXIT_CODES)
def tokenize(
    paths: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="SOURCE... OUTPUT",
            help="WebDataset tars, Parquet files, folders of images and videos, lists of URIs (paths, globs, brace "
            "patterns, fsspec URLs), then the data set's folder.",
            show_default=False,
        ),
    ] = None,
    config: Annotated[
        Path | None, typer.Option(help="Job file (YAML); the other options and arguments override it.")
    ] = None,
    assignments: SetOption = None,
    checkpoint: Annotated[str | None, typer.Option(help="Checkpoint folder; default: the one of tatok.")] = None,
    device: Annotated[str | None, typer.Option(help="torch device; default: cuda where there is one.")] = None,
    image_field: Annotated[str | None, typer.Option(help="Tar member (jpg) or table column to tokenize.")] = None,
    label_from_folder: Annotated[
        bool | None, typer.Option("--label-from-folder/--no-label-from-folder", help="First folder of a file = label.")
    ] = None,
    image_size: Annotated[int | None, typer.Option(help="Side of the square that is tokenized, in pixels.")] = None,
    threshold: Annotated[float | None, typer.Option(help="DTF threshold; see `tatok calibrate`.")] = None,
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
) -> None:
    """Tokenize images into a Parquet data set; the same command again goes on where the last run stopped."""
    from pipeline.progress import ProgressDisplay
    from pipeline.run import run_job
    from schemas.job import JobConfig
    from schemas.settings_file import SettingsFile, read_settings

    settings = read_settings(config) if config is not None else SettingsFile(origin="the command line")
    if paths:
        if len(paths) < 2:
            raise ConfigError(f"name at least one SOURCE and then the OUTPUT; there is only {paths[0]!r}")
        settings.override("source", paths[:-1], place="SOURCE")
        settings.override("output", paths[-1], place="OUTPUT")
    elif config is None:
        raise ConfigError("name SOURCE and OUTPUT, or a job file with --config; see `tatok tokenize --help`")
    settings.override_from(os.environ)
    settings.override_with(assignments or [])
    overrides = {
        "checkpoint": checkpoint,
        "device": device,
        "image_field": image_field,
        "label_from_folder": label_from_folder,
        "preprocessing.image_size": image_size,
        "dtf.threshold": threshold,
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
    job = settings.validated(JobConfig)
    try:
        with ProgressDisplay() as display, _logging(log) as write:

            def tell(event: Event) -> None:
                write(event)
                display(event)

            summary = run_job(job, on_event=tell)
    except KeyboardInterrupt:
        typer.secho("interrupted; resume with the same command", fg="yellow", err=True)
        raise typer.Exit(EXIT_INTERRUPTED) from None
    _print_summary(summary)
    if summary.status != "complete":
        raise typer.Exit(EXIT_INCOMPLETE)
    if fail_on_reject and summary.num_rejects:
        raise typer.Exit(EXIT_REJECTS)


@app.command()
def demo(
    output: Annotated[Path, typer.Option(help="Folder of the data set.")] = Path("demo-output"),
    photos: Annotated[str | None, typer.Option(help="Tars to use instead of the demo photos.")] = None,
) -> None:
    """Tokenize a few photos on a local Ray; print what was written, its statistics and the path of a picture."""
    from jobs.demo import demo_photos, run_demo
    from pipeline.progress import ProgressDisplay

    summary = run_demo(photos or demo_photos(), output, ProgressDisplay())
    if summary.status != "complete":
        _print_summary(summary)
        raise typer.Exit(EXIT_INCOMPLETE)


@contextmanager
def _logging(path: str | None) -> Iterator[OnEvent]:
    from pipeline.run_log import RunLog

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


def _print_summary(summary: RunSummary) -> None:
    images = sum(report.num_rows for report in summary.reports)
    print(
        f"{summary.output}: {summary.num_parts} parts, {summary.num_rows:,} images, {summary.num_tokens:,} tokens "
        f"({summary.num_tokens / max(summary.num_rows, 1):.1f} an image)"
    )
    if summary.reports:
        print(f"this run: {len(summary.reports)} shards, {images:,} images in {summary.seconds:.1f} s")
    elif summary.status == "complete":
        print(f"nothing to do: all {summary.num_shards} shards are committed ({summary.seconds:.1f} s)")
    if summary.num_rejects:
        reasons = ", ".join(f"{count:,} {reason}" for reason, count in summary.rejects.items())
        print(f"{summary.num_rejects:,} rejects: {reasons}; see {summary.output}/rejects")
    for shard, failure in summary.failed.items():
        print(f"failed: {shard.uri}: {failure.message}", file=sys.stderr)
    if summary.failed:
        print(f"{len(summary.failed)} shards failed; run the same command again to retry them", file=sys.stderr)
    if summary.status == "too_many_failed_shards":
        print(
            "stopped: limits.max_failed_shards was reached, so the fault is hardly in single files; mend it, or raise "
            "--max-failed-shards",
            file=sys.stderr,
        )
    if summary.status == "too_many_rejects":
        print(
            "stopped: more rejects than limits.max_reject_fraction allows; look at the reasons in rejects/, "
            "then fix the source or raise --max-reject-fraction",
            file=sys.stderr,
        )


if __name__ == "__main__":
    app()
