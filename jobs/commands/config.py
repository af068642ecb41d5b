"""The commands on job files: config init, config schema, config show."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from tatok.jobs.job_file import JobFile, SetOption, job_text, read_job
from tatok.schemas.errors import ConfigError

__all__ = ["config"]

config = typer.Typer(no_args_is_help=True, help="Job files: one for a source, their schema, and what one comes to.")


@config.command("init")
def init_file(
    source: Annotated[
        str,
        typer.Argument(
            metavar="SOURCE",
            help="Tars, Parquet files, a folder of images and videos, or a list: a path, a pattern or an fsspec URL.",
        ),
    ],
    output: Annotated[str, typer.Argument(metavar="OUTPUT", help="Folder or fsspec URL of the dataset.")] = "tokens",
    assignments: SetOption = None,
    file: Annotated[
        Path | None, typer.Option("--file", "-o", help="Write to this new file; default: standard output.")
    ] = None,
) -> None:
    """Write a commented job file for a source: what it needs is set, all else is there with its default.

    The source is looked over as by `tatok plan`, and what was found is said in the file. `tatok tokenize FILE` runs it.
    """
    from tatok.jobs.init_file import commented_job
    from tatok.jobs.text.plan import source_lines
    from tatok.pipeline.planning.survey import survey_source
    from tatok.pipeline.run import refuse_output_in_source
    from tatok.pipeline.storage.options import storage_options
    from tatok.schemas.job import JobConfig
    from tatok.schemas.settings_file import SettingsFile

    settings = SettingsFile(origin="the command line")
    settings.override("source", source, place="SOURCE")
    settings.override("output", output, place="OUTPUT")
    settings.override_with(assignments or [])
    job = settings.validated(JobConfig)
    refuse_output_in_source(job)
    with storage_options(job.storage):
        found = survey_source(job.source, image_field=job.image_field)
    sources = job.source[0] if len(job.source) == 1 else list(job.source)
    lines = ["A job for tatok.", "", *source_lines(found)]
    text = commented_job(settings.values | {"source": sources}, lines, name=str(file or "JOB.yaml"))
    if file is None:
        print(text, end="")
        return
    try:
        with file.open("x", encoding="utf-8") as stream:
            stream.write(text)
    except FileExistsError:
        raise ConfigError(f"{file} is there already", remedy="name another file, or delete it first") from None
    except OSError as error:
        raise ConfigError(f"cannot write {file}: {error.strerror or error}", remedy="name another file") from error
    print(f"{file}: look at it, then run `tatok tokenize {file} --dry-run`")


@config.command()
def schema() -> None:
    """Print the JSON Schema of job files, for editors: save it and begin a job with

    # yaml-language-server: $schema=FILE
    """
    from tatok.schemas.job import JobConfig

    document = JobConfig.model_json_schema() | {"$schema": "https://json-schema.org/draft/2020-12/schema"}
    print(json.dumps(document, indent=2))


@config.command()
def show(job: JobFile, assignments: SetOption = None) -> None:
    """Print the job that a file comes to: defaults, environment variables and --set put in."""
    print(job_text(read_job(job, assignments)), end="")
