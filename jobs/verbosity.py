"""How much a command says: `--quiet` and `-v`, before the command's name or behind it."""

from __future__ import annotations

from enum import IntEnum
from typing import Annotated, Any

import typer

__all__ = ["Quiet", "Verbose", "Verbosity"]


class Verbosity(IntEnum):
    """From results and errors alone to all that the log holds."""

    QUIET = -1
    NORMAL = 0
    VERBOSE = 1
    EVERYTHING = 2

    @staticmethod
    def of(quiet: bool, verbose: int) -> Verbosity:
        """What the two options ask for together; raises typer.BadParameter where they contradict each other."""
        if quiet and verbose:
            raise typer.BadParameter("--quiet and --verbose contradict each other; give one of them")
        return Verbosity.QUIET if quiet else Verbosity(min(verbose, Verbosity.EVERYTHING))


def _quiet_anywhere(context: typer.Context, value: bool) -> bool:
    return value or bool(_before_the_command(context, "quiet"))


def _verbose_anywhere(context: typer.Context, value: int) -> int:
    return value + int(_before_the_command(context, "verbose") or 0)


def _before_the_command(context: typer.Context, name: str) -> Any:
    root = context.find_root()
    return None if root is context else root.params.get(name)


Quiet = Annotated[
    bool,
    typer.Option("--quiet", "-q", callback=_quiet_anywhere, help="Print errors and the result alone, no progress."),
]
Verbose = Annotated[
    int,
    typer.Option(
        "--verbose",
        "-v",
        count=True,
        callback=_verbose_anywhere,
        help="Say what is done, and where time goes; -vv: also the queues.",
        show_default=False,
    ),
]
