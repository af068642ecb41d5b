"""A job file, the environment and --set -> the job, and a job -> a job file's text."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tatok.schemas.errors import ConfigError

if TYPE_CHECKING:
    from tatok.schemas.job import JobConfig
    from tatok.schemas.settings_file import SettingsFile

__all__ = [
    "JobFile",
    "SetOption",
    "TokenizerName",
    "TokenizerSettings",
    "job_file_among",
    "job_text",
    "read_job",
    "read_job_settings",
    "tokenizer_options",
    "yaml_value",
]

JobFile = Annotated[Path, typer.Argument(metavar="JOB.yaml", help="The job file.", show_default=False)]
SetOption = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="NAME=VALUE",
        help="Override a setting of the job file, such as resources.batch_size=64. May be repeated.",
    ),
]

TokenizerName = Annotated[
    str | None,
    typer.Option("--tokenizer", help="A tokenizer of your own: my_tokenizer.py:load; see docs/guides/tokenizers.md."),
]
TokenizerSettings = Annotated[
    list[str] | None,
    typer.Option(
        "--tokenizer-option",
        metavar="NAME=VALUE",
        help="What its function is given beside the device. May be repeated.",
    ),
]


def read_job(path: Path, assignments: list[str] | None = None) -> JobConfig:
    """The job of a file; --set goes before the environment's TATOK__SECTION__NAME, which goes before the file.

    Raises ConfigError.
    """
    import os

    from tatok.schemas.job import JobConfig

    settings = read_job_settings(path)
    settings.override_from(os.environ)
    settings.override_with(assignments or [])
    return settings.validated(JobConfig)


def job_file_among(paths: list[str] | None, config: Path | None) -> tuple[list[str] | None, Path | None]:
    """The sources and the job file; a single path that ends in .yaml or .yml is a job file, without --config, too.

    Raises ConfigError where one is named twice.
    """
    if not paths or len(paths) > 1 or not paths[0].endswith((".yaml", ".yml")):
        return paths, config
    if config is not None:
        raise ConfigError(f"--config {config} and {paths[0]} are both job files; name one of them")
    return None, Path(paths[0])


def tokenizer_options(assignments: list[str] | None) -> dict[str, Any]:
    """The values of `--tokenizer-option`; raises ConfigError."""
    from tatok.schemas.settings_file import parse_assignment

    return dict(parse_assignment(assignment, "--tokenizer-option") for assignment in assignments or [])


def read_job_settings(path: Path) -> SettingsFile:
    """The settings of a job file, not validated yet; raises ConfigError as `read_settings` does.

    The file of a tokenizer that is not in the current folder is the one beside the job file, where there is one.
    """
    from tatok.schemas.settings_file import read_settings
    from tatok.user_code import names_a_file

    settings = read_settings(path)
    name = settings.values.get("tokenizer")
    if isinstance(name, str) and names_a_file(name):
        file = Path(name.rpartition(":")[0]).expanduser()
        if not file.exists() and (path.parent / file).is_file():
            settings.values["tokenizer"] = f"{path.parent / name}"
    return settings


def job_text(job: JobConfig, *, one_line: bool = False) -> str:
    """A job file that `read_job` reads as this very job, whatever the environment there is.

    Its variables have been put in already, so a `${` that is left is plain text and is written `$${`. `one_line` is for
    command lines, and ends without a new line.
    """
    import yaml

    document = _escaped(job.model_dump(mode="json"))
    text = yaml.safe_dump(document, sort_keys=False, allow_unicode=True, width=sys.maxsize, default_flow_style=one_line)
    return str(text).rstrip("\n") if one_line else str(text)


def yaml_value(value: Any) -> str:
    """One value as a job file has it behind its key, on one line."""
    import yaml

    text = yaml.safe_dump([_escaped(value)], allow_unicode=True, width=sys.maxsize, default_flow_style=True)
    return str(text).strip()[1:-1]


def _escaped(value: Any) -> Any:
    """Keys stay as they are: no variables are put into them."""
    if isinstance(value, dict):
        return {key: _escaped(below) for key, below in value.items()}
    if isinstance(value, list):
        return [_escaped(below) for below in value]
    return value.replace("${", "$${") if isinstance(value, str) else value
