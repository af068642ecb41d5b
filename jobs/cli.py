"""The command line put together: each command loads its configuration, calls one function and prints what came of it.

Everything heavy is imported inside the command that needs it, so that `tatok --help` answers at once.
"""

from __future__ import annotations

import atexit
import io
import sys
from typing import Annotated, Any

import typer

from tatok.jobs.commands.bench import bench
from tatok.jobs.commands.config import config as config_commands
from tatok.jobs.commands.doctor import check_tokenizer, doctor
from tatok.jobs.commands.export import compact, exports
from tatok.jobs.commands.generator import generator
from tatok.jobs.commands.model import adapt, calibrate, distance, evaluate, train
from tatok.jobs.commands.pictures import decode, report, show
from tatok.jobs.commands.plan import plan
from tatok.jobs.commands.statistics import query, stats
from tatok.jobs.commands.submit import jobs as jobs_commands
from tatok.jobs.commands.submit import submit
from tatok.jobs.commands.tokenize import demo, tokenize
from tatok.jobs.commands.verify import verify
from tatok.jobs.exit_codes import EXIT_ERROR, TOKENIZE_EPILOG, TRAIN_EPILOG, exit_code_of
from tatok.jobs.help import HelpedGroup, group_commands
from tatok.jobs.text.folding import folded
from tatok.jobs.verbosity import Verbosity
from tatok.schemas.errors import TatokError
from tatok.stopping import ignore_signals, leave_on_signals, terminable

__all__ = ["app", "run"]


class _Group(HelpedGroup):
    """Turns the errors that tatok raises on purpose into one message and an exit code."""

    def main(self, *arguments: Any, **options: Any) -> Any:
        for stream in (sys.stdout, sys.stderr):
            if isinstance(stream, io.TextIOWrapper):
                stream.reconfigure(errors="replace")  # a terminal that lacks a character shows a question mark
        return super().main(*arguments, **options)

    def invoke(self, ctx: Any) -> Any:
        try:
            with terminable():
                return super().invoke(ctx)
        except TatokError as error:
            if ctx.params.get("debug"):
                raise
            typer.secho(folded(f"error: {error}", sys.stderr), fg="red", err=True)
            if error.remedy is not None:
                typer.echo(folded(f"  remedy: {error.remedy}", sys.stderr), err=True)
            raise typer.Exit(EXIT_ERROR) from None
        except KeyboardInterrupt as interrupt:
            raise typer.Exit(exit_code_of(interrupt)) from None


app = typer.Typer(
    cls=_Group,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _print_version(wanted: bool) -> None:
    if wanted:
        import tatok

        print(f"tatok {tatok.__version__}")
        raise typer.Exit


@app.callback()
def main(
    context: typer.Context,
    version: Annotated[
        bool,
        typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version of tatok."),
    ] = False,
    debug: Annotated[
        bool, typer.Option("--debug", envvar="TATOK_DEBUG", help="Show the traceback of an error.")
    ] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="As the command's own --quiet, if it has one.")] = False,
    verbose: Annotated[
        int,
        typer.Option("--verbose", "-v", count=True, show_default=False, help="As the command's own -v, if it has one."),
    ] = 0,
) -> None:
    """Images in, variable-length token sequences out."""
    from tatok.pipeline.storage.options import storage_options

    Verbosity.of(quiet, verbose)
    # Whatever store a command opens, it does not wait for it without end.
    context.with_resource(storage_options({}))


app.command(epilog=TOKENIZE_EPILOG)(tokenize)
app.command()(demo)
app.command()(plan)
app.command(epilog=TRAIN_EPILOG)(train)
app.command(epilog=TRAIN_EPILOG)(adapt)
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
app.command("check-tokenizer")(check_tokenizer)
app.command()(bench)
app.command()(submit)
app.add_typer(jobs_commands, name="jobs")
app.add_typer(config_commands, name="config")

group_commands(
    app,
    {
        "Tokenize": ("tokenize", "demo", "plan", "doctor", "check-tokenizer", "bench", "config"),
        "On a cluster": ("submit", "jobs"),
        "Look at a dataset": ("stats", "query", "report", "show", "decode"),
        "Check it and hand it on": ("verify", "compact", "export"),
        "Models": ("train", "adapt", "calibrate", "eval", "distance", "generator"),
    },
)


def run() -> None:
    """What `tatok` starts. Once a command has an exit code, a signal ends the process with it, without a traceback."""
    atexit.register(ignore_signals)  # the first that is registered is the last that runs
    try:
        app(prog_name="tatok")
    except SystemExit as end:
        leave_on_signals(end.code if isinstance(end.code, int) else int(end.code is not None))
        raise


if __name__ == "__main__":
    run()
