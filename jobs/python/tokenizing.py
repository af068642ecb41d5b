"""The main job from Python: what it would read, and the run itself, with the settings of job files by their names."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from os import PathLike, fspath
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypedDict, Unpack

from tatok.schemas.errors import ConfigError, IncompleteError
from tatok.schemas.records import count_text
from tatok.schemas.settings import Section

if TYPE_CHECKING:
    from tatok.pipeline.monitoring.events import Event, OnEvent
    from tatok.pipeline.planning.survey import Survey
    from tatok.pipeline.run import RunSummary
    from tatok.schemas.job import DTFOverride, JobConfig, Limits, Output, Resources
    from tatok.schemas.preprocessing import Preprocessing, Video

__all__ = ["JobSettings", "plan", "tokenize"]

_MOST_NAMED = 3


class JobSettings(TypedDict, total=False):
    """The settings of a job file beside source and output (docs/reference/job-file.md); sections as mappings, too."""

    checkpoint: str | PathLike[str] | None
    tokenizer: str | None
    tokenizer_options: Mapping[str, Any]
    device: str | None
    precision: Literal["float32", "tf32", "bfloat16"]
    image_field: str | None
    label_from_folder: bool
    preprocessing: Preprocessing | Mapping[str, Any]
    video: Video | Mapping[str, Any]
    dedup: Literal["none", "exact"]
    filter: str | None
    dtf: DTFOverride | Mapping[str, Any]
    resources: Resources | Mapping[str, Any]
    limits: Limits | Mapping[str, Any]
    write: Output | Mapping[str, Any]
    storage: Mapping[str, Mapping[str, Any]]


Source = str | PathLike[str] | Sequence[str | PathLike[str]]


def tokenize(
    source: Source | None = None,
    output: str | PathLike[str] | None = None,
    *,
    config: str | PathLike[str] | None = None,
    progress: bool | None = None,
    on_event: OnEvent | None = None,
    **settings: Unpack[JobSettings],
) -> RunSummary:
    """Tokenize a source into a dataset, as `tatok tokenize` does; the same call resumes where the last one stopped.

    Settings are those of job files by their keys: a section is a mapping, of which what is given overrides the job
    file `config` and the environment's TATOK__...; dotted names do the same (`**{"limits.max_reject_fraction": 0.1}`).
    A Ray that this process uses, or that RAY_ADDRESS names, does the work; else a local one, gone at the end.
    `progress` None shows one line on a terminal or in a notebook. `on_event` is called with each event of the run
    (tatok.pipeline.monitoring.events).

    Raises IncompleteError, with the summary, where shards failed or too much was rejected; ConfigError, SourceError or
    CommitError where the job cannot be done. Ctrl-C stops what was started; committed parts stay.
    """
    from tatok.jobs.python.progress import shown_progress
    from tatok.pipeline.run import run_job

    job = _job(source, output, config, settings)
    with shown_progress(progress) as show:

        def tell(event: Event) -> None:
            show(event)
            if on_event is not None:
                on_event(event)

        summary = run_job(job, on_event=tell)
    if summary.status != "complete":
        raise _incomplete(summary)
    return summary


def plan(
    source: Source | None = None,
    output: str | PathLike[str] | None = None,
    *,
    config: str | PathLike[str] | None = None,
    **settings: Unpack[JobSettings],
) -> Survey:
    """What `tokenize` would read: shards, files, bytes, and what is left out; with an output, what is done of it.

    Names, sizes, Parquet footers and headers of large tars are read, no image is, and nothing is written. Settings as
    for `tokenize`. Raises ConfigError or SourceError where source or settings cannot be understood.
    """
    from tatok.pipeline.planning.survey import survey_source
    from tatok.pipeline.storage.options import storage_options

    job = _job(source, output, config, settings, needs_output=False)
    with storage_options(job.storage):
        return survey_source(job.source, image_field=job.image_field, output=job.output or None)


def _job(
    source: Source | None,
    output: str | PathLike[str] | None,
    config: str | PathLike[str] | None,
    settings: Mapping[str, Any],
    *,
    needs_output: bool = True,
) -> JobConfig:
    from tatok.jobs.job_file import read_job_settings
    from tatok.schemas.job import JobConfig
    from tatok.schemas.settings_file import SettingsFile

    called = "tatok.tokenize" if needs_output else "tatok.plan"
    read = SettingsFile(origin=called) if config is None else read_job_settings(Path(config))
    read.override_from(os.environ)
    for name, value in _leaves(settings, JobConfig):
        read.override(name, value, place=f"the argument {name}")
    if source is not None:
        several = [source] if isinstance(source, str | PathLike) else source
        read.override("source", [fspath(each) for each in several], place="source")
    if output is not None:
        read.override("output", fspath(output), place="output")
    missing = [name for name in ("source", "output") if name not in read.values]
    if not needs_output and "output" in missing:
        missing.remove("output")
        read.override("output", "", place="output")
    if missing:
        raise ConfigError(
            f"{called}: there is no {' and no '.join(missing)}",
            remedy=f"{called}(source, output), or name a job file as config",
        )
    return read.validated(JobConfig)


def _leaves(values: Mapping[str, Any], section: type[Section], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Dotted names and their values; a mapping for a section is taken apart, so that it only adds to a job file's."""
    for name, value in values.items():
        field = section.model_fields.get(name)
        kind = None if field is None else field.annotation
        if isinstance(kind, type) and issubclass(kind, Section) and isinstance(value, Mapping):
            yield from _leaves(value, kind, f"{prefix}{name}.")
        elif isinstance(value, Section):
            given = {key: getattr(value, key) for key in value.model_fields_set}
            yield from _leaves(given, type(value), f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", fspath(value) if isinstance(value, PathLike) else value


def _incomplete(summary: RunSummary) -> IncompleteError:
    reasons = ", ".join(f"{count:,} {reason}" for reason, count in summary.rejects.items())
    failed = [f"{shard.uri}: {failure.message}" for shard, failure in summary.failed.items()]
    named = "; ".join(failed[:_MOST_NAMED]) + ("; ..." if len(failed) > _MOST_NAMED else "")
    if summary.status == "too_many_rejects":
        said = f"too many rejects ({reasons}), more than limits.max_reject_fraction allows"
        remedy = "look at the table rejects, then fix the source or raise limits.max_reject_fraction"
    else:
        said = f"{len(failed)} of {count_text(summary.num_shards, 'shard')} failed: {named}"
        remedy = "the same call retries them"
    if summary.status == "too_many_failed_shards":
        remedy = "limits.max_failed_shards was reached, so the fault is hardly in single files: fix it, or raise that"
    return IncompleteError(f"{summary.output} is not complete: {said}", summary=summary, remedy=remedy)
