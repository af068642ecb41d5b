"""The command that measures a job on this machine: bench."""

from __future__ import annotations

import json
import os
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tatok.jobs.job_file import SetOption, job_file_among, read_job_settings
from tatok.jobs.text.folding import folded
from tatok.jobs.verbosity import Quiet, Verbosity

if TYPE_CHECKING:
    from tatok.pipeline.bench.speed import Speed
    from tatok.pipeline.monitoring.events import Event

__all__ = ["bench", "speed_document"]


def bench(
    source: Annotated[
        list[str] | None,
        typer.Argument(metavar="SOURCE...", help="As for `tatok tokenize`; or a job file alone.", show_default=False),
    ] = None,
    config: Annotated[Path | None, typer.Option(help="Job file (YAML) with the job's settings.")] = None,
    assignments: SetOption = None,
    output: Annotated[
        str | None,
        typer.Option(
            help="Where to write, such as the bucket of the job; default: a temporary folder. All is deleted."
        ),
    ] = None,
    seconds: Annotated[float, typer.Option(min=0.1, help="For each stage, before the run and after it.")] = 5.0,
    run_seconds: Annotated[float, typer.Option(min=1, help="At most, for the run; it may end earlier.")] = 60.0,
    profile: Annotated[
        Path | None, typer.Option(help="Write a trace of some batches and of the shards here, for ui.perfetto.dev.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of text.")] = False,
    quiet: Quiet = False,
) -> None:
    """Measure each stage of a job by itself, the bound that follows, and how near the whole pipeline comes to it.

    The bound is the speed of light: all stages overlap, and nothing is lost between them. On a machine without a GPU
    all stages share the cores; with one, the slower of the GPUs and the cores bounds. Rates are images (or clips) a
    second. Nothing that is written stays.
    """
    from tatok.pipeline.bench.speed import measure_speed
    from tatok.pipeline.storage.options import storage_options
    from tatok.pipeline.tokenization.loading import check_job_tokenizer
    from tatok.schemas.errors import ConfigError
    from tatok.schemas.job import JobConfig
    from tatok.schemas.settings_file import SettingsFile

    verbosity = Verbosity.of(quiet, verbose=0)
    source, config = job_file_among(source, config)
    if not source and config is None:
        raise ConfigError("name a SOURCE, or a job file (--config); see `tatok bench --help`")
    with tempfile.TemporaryDirectory(prefix="tatok-bench-") as folder:
        settings = read_job_settings(config) if config else SettingsFile(origin="the command line")
        if source:
            settings.override("source", source, place="SOURCE")
        settings.override("output", output or folder, place="--output")
        settings.override_from(os.environ)
        settings.override_with(assignments or [])
        job = settings.validated(JobConfig)
        with storage_options(job.storage):
            check_job_tokenizer(job)  # the stages before it take a while
        tell = _tell if verbosity > Verbosity.QUIET else lambda event: None
        speed = measure_speed(job, seconds=seconds, most_run_s=run_seconds, trace=profile, on_event=tell)
    print(json.dumps(speed_document(speed), indent=1) if as_json else folded(_text(speed), sys.stdout))
    if profile is not None and verbosity > Verbosity.QUIET:
        typer.echo(f"trace: {profile}; open it at ui.perfetto.dev", err=True)


def speed_document(speed: Speed) -> dict[str, Any]:
    """For `--json`: rates are items a second, `on` "core" is one core while all are busy."""
    pipeline = speed.pipeline
    share = speed.filtering_share_of_encoding
    return {
        "num_cores": speed.num_cores,
        "device": speed.device,
        "num_tokenizers": speed.num_tokenizers,
        "stages": [
            {"name": stage.name, "items_per_s": round(stage.items_per_s, 3), "on": stage.on} for stage in speed.stages
        ],
        "speed_of_light": {
            "items_per_s": round(speed.bound.items_per_s, 3),
            "resource": speed.bound.resource,
            "bottleneck": speed.bound.bottleneck,
            "share_of_bottleneck": round(speed.bound.share_of_bottleneck, 3),
            "remedy": speed.bound.remedy,
        },
        "pipeline": {
            "items_per_s": round(pipeline.items_per_s, 3),
            "num_items": pipeline.num_items,
            "seconds": round(pipeline.seconds, 2),
            "startup_s": round(pipeline.startup_s, 2),
            "is_whole": pipeline.is_whole,
        },
        "share_of_speed_of_light": round(speed.share_of_speed_of_light, 3),
        "doubt": speed.doubt,
        "filtering_share_of_encoding": None if share is None else round(share, 3),
    }


def _tell(event: Event | str) -> None:
    if isinstance(event, str):
        typer.echo(f"measuring: {event}", err=True)


def _text(speed: Speed) -> str:
    lines = [f"{speed.num_cores} cores, {speed.device}, {speed.num_tokenizers} tokenizer(s); items a second:", ""]
    for stage in speed.stages:
        where = "one core, all being busy" if stage.on == "core" else "one tokenizer's device"
        lines.append(f"  {stage.name:<14} {stage.items_per_s:>12,.1f}  {where}")
    bound, pipeline = speed.bound, speed.pipeline
    until = "the whole source" if pipeline.is_whole else "until stopped"
    lines += [
        "",
        f"speed of light {bound.items_per_s:>13,.1f}  set by the {bound.resource}",
        f"pipeline       {pipeline.items_per_s:>13,.1f}  {pipeline.num_items:,} items, {until}; "
        f"first shard committed after {pipeline.startup_s:.1f} s",
    ]
    if speed.doubt is not None:
        why = f"There is no share, and no bottleneck to name: {speed.doubt}. Measure again when nothing else runs."
        return "\n".join([*lines, "", why])
    lines += [
        f"share          {speed.share_of_speed_of_light:>13.0%}",
        "",
        f"bottleneck: {bound.bottleneck}, {bound.share_of_bottleneck:.0%} of the bound's time. To go faster: "
        f"{bound.remedy}.",
    ]
    if speed.filtering_share_of_encoding is not None:
        lines.append(f"The prior and DTF take {speed.filtering_share_of_encoding:.0%} of the time of encoding.")
    return "\n".join(lines)
