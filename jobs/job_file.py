"""A job file, the environment and --set -> the job: what the commands that take a JOB.yaml share."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from schemas.job import JobConfig

__all__ = ["JobFile", "SetOption", "read_job"]

JobFile = Annotated[Path, typer.Argument(metavar="JOB.yaml", help="The job file.", show_default=False)]
SetOption = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="NAME=VALUE",
        help="Override a setting of the job file, such as resources.batch_size=64. May be repeated.",
    ),
]


def read_job(path: Path, assignments: list[str] | None = None) -> JobConfig:
    """The job of a file; --set goes before the environment's TATOK__SECTION__NAME, which goes before the file.

    Raises ConfigError.
    """
    import os

    from schemas.job import JobConfig
    from schemas.settings_file import read_settings

    settings = read_settings(path)
    settings.override_from(os.environ)
    settings.override_with(assignments or [])
    return settings.validated(JobConfig)
