"""The commands on job files: config schema, config show."""

from __future__ import annotations

import json

import typer

from tatok.jobs.job_file import JobFile, SetOption, job_text, read_job

__all__ = ["config"]

config = typer.Typer(no_args_is_help=True, help="Job files: their schema, and what one comes to.")


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
