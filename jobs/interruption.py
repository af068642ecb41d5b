"""What Ctrl-C and SIGTERM do to a command that resumes: it cleans up, and says how to resume it."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import typer

from tatok.jobs.exit_codes import exit_code_of
from tatok.stopping import terminable

__all__ = ["resumable"]


@contextmanager
def resumable() -> Iterator[None]:
    """End the command, where a signal interrupts the block, by a line with the command that resumes; no traceback.

    Also as a decorator, `@resumable()`, which covers what a command imports.
    """
    try:
        with terminable():
            yield
    except KeyboardInterrupt as interrupt:
        said = getattr(interrupt, "said", "") or "interrupted; resume with the same command"
        typer.secho(f"{said}:", fg="yellow", err=True)
        typer.echo(f"  {shlex.join(['tatok', *sys.argv[1:]])}", err=True)
        raise typer.Exit(exit_code_of(interrupt)) from None
