"""The commands that examine a job, or its tokenizer, before it runs: doctor, check-tokenizer."""

from __future__ import annotations

import json
import os
import sys
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

import typer

from tatok.jobs.exit_codes import EXIT_FINDINGS
from tatok.jobs.job_file import JobFile, SetOption, TokenizerName, TokenizerSettings, read_job, tokenizer_options
from tatok.jobs.text.folding import folded
from tatok.jobs.verbosity import Quiet
from tatok.schemas.errors import ConfigError
from tatok.schemas.records import count_text

if TYPE_CHECKING:
    from tatok.pipeline.doctor.dry_run import Forecast
    from tatok.pipeline.doctor.examine import Check
    from tatok.schemas.job import JobConfig

__all__ = ["check_tokenizer", "doctor"]

_MARKS = {"ok": ("ok", "green"), "warning": ("warning", "yellow"), "failed": ("FAILED", "red")}


def doctor(
    job: JobFile,
    assignments: SetOption = None,
    address: Annotated[
        str | None,
        typer.Option(help="Examine from within the cluster whose dashboard is here, such as http://head:8265."),
    ] = None,
    samples: Annotated[int, typer.Option(min=1, help="Samples to try.")] = 100,
    price: Annotated[
        float | None, typer.Option(min=0, help="What a GPU costs an hour; the forecast then says what the job costs.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of text.")] = False,
    quiet: Quiet = False,
) -> None:
    """Examine a job in under a minute: source, output, checkpoint, cluster, a dry run; then forecast what it takes.

    `tatok tokenize --dry-run` says what a job would do, and tries none of it; this writes to the output, and removes it
    again, and reads and tokenizes samples. Without --address the checks are made from here: on the Ray at RAY_ADDRESS,
    else on this machine. With it they are made by a job on the cluster, where credentials and networks may differ.

    Exit codes: 0 all is well; 3 a check failed, and its line says what to do. Nothing is tokenized for good.
    """
    from tatok.pipeline.doctor.examine import Check, Diagnosis, examine

    say = (lambda check: None) if as_json else _say_what_is_wrong if quiet else _say
    try:
        config = read_job(job, assignments)
    except ConfigError as error:
        check = Check(name="job file", verdict="failed", message=str(error), remedy="fix the lines that it names")
        say(check)
        diagnosis = Diagnosis(checks=(check,), forecast=None)
    else:
        if address is not None:
            _examine_there(config, address, name=job.stem, samples=samples, as_json=as_json, price=price, quiet=quiet)
            return
        diagnosis = examine(config, on_check=say, num_samples=samples)
    if as_json:
        print(json.dumps({"passed": diagnosis.passed} | asdict(diagnosis), indent=1))
    elif diagnosis.forecast is not None:
        print(folded(_text(diagnosis.forecast, price), sys.stdout))
    if diagnosis.is_stuck:
        # Threads of a pool that wait for a silent store would keep the interpreter from its end.
        sys.stdout.flush()
        os._exit(EXIT_FINDINGS)
    if not diagnosis.passed:
        raise typer.Exit(EXIT_FINDINGS)


def check_tokenizer(
    photos: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="PHOTOS...",
            help="Tars, Parquet files or folders of images; default: the demo photos.",
            show_default=False,
        ),
    ] = None,
    tokenizer: TokenizerName = None,
    tokenizer_option: TokenizerSettings = None,
    checkpoint: Annotated[
        str | None, typer.Option(help="A checkpoint instead, its folder or URL; default: the bundled one.")
    ] = None,
    device: Annotated[
        str | None, typer.Option(help="torch device; default: cuda where there is one, else cpu.")
    ] = None,
    image_size: Annotated[int, typer.Option(min=1, help="Side of the square that is tokenized, in pixels.")] = 256,
    num_images: Annotated[int, typer.Option("--images", min=2, help="Images to try, in one batch.")] = 8,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of text.")] = False,
) -> None:
    """Try a tokenizer by itself: grid, codes, repeated, in other batches, by threads, decoded; its speed and memory.

    Exit codes: 0 it keeps what the pipeline asks of a tokenizer; 3 a check failed, and its line says what to do.
    """
    import torch

    from tatok.examples import demo_photos
    from tatok.pipeline.doctor.tokenizer_checks import check_tokenizer as tried
    from tatok.pipeline.doctor.tokenizer_checks import read_images
    from tatok.pipeline.tokenization.loading import configured_loader
    from tatok.schemas.job import JobConfig
    from tatok.schemas.settings_file import SettingsFile

    settings = SettingsFile(origin="the command line")
    settings.override("source", photos or [demo_photos()], place="PHOTOS")
    settings.override("output", "nowhere", place="no output")
    settings.override("preprocessing.image_size", image_size, place="--image-size")
    for name, value in (("tokenizer", tokenizer), ("checkpoint", checkpoint)):
        if value is not None:
            settings.override(name, value, place=f"--{name}")
    for name, value in tokenizer_options(tokenizer_option).items():
        settings.override(f"tokenizer_options.{name}", value, place=f"--tokenizer-option {name}")
    config = settings.validated(JobConfig)
    chosen = device or ("cuda" if torch.cuda.is_available() else "cpu")
    images = read_images(config, num_images)
    found = tried(configured_loader(config), images, chosen, on_check=(lambda check: None) if as_json else _say)
    if as_json:
        print(json.dumps({"passed": found.passed} | asdict(found), indent=1))
    if not found.passed:
        raise typer.Exit(EXIT_FINDINGS)


def _examine_there(
    config: JobConfig, address: str, *, name: str, samples: int, as_json: bool, price: float | None, quiet: bool
) -> None:
    """Run `tatok doctor` as a job of the cluster, with what it has installed, and follow it."""
    from tatok.jobs.submission.following import exit_as, follow
    from tatok.jobs.submission.ray_jobs import Cluster

    cluster = Cluster(address)
    command = f"doctor --samples {samples}{' --json' if as_json else ''}{' --quiet' if quiet else ''}"
    command += "" if price is None else f" --price {price}"
    job_id = cluster.submit(config, name=f"doctor-{name}", image=None, dependencies="installed", command=command)
    job = follow(cluster, job_id, address)
    if job.exit_code == EXIT_FINDINGS:  # it has printed them, and what to do
        raise typer.Exit(EXIT_FINDINGS)
    exit_as(job, remedy="the examination did not come to its end; nothing was tokenized")


def _say(check: Check) -> None:
    word, colour = _MARKS[check.verdict]
    line = folded(f"{word:8} {check.name}: {check.message}", sys.stdout)
    typer.echo(f"{typer.style(line[:8], fg=colour)}{line[8:]}")
    if check.verdict != "ok" and check.remedy:
        typer.echo(folded(f"         -> {check.remedy}", sys.stdout))


def _say_what_is_wrong(check: Check) -> None:
    if check.verdict != "ok":
        _say(check)


def _text(forecast: Forecast, price: float | None) -> str:
    from tatok.statistics.units import bytes_text

    hours = forecast.seconds / 3600
    time = f"{hours:,.1f} hours" if hours >= 1 else f"{forecast.seconds:,.0f} s"
    gpus = f", {_gpu_hours(forecast.gpu_hours, price)}" if forecast.gpu_hours else ""
    bottleneck = (
        f"the bottleneck is {forecast.bottleneck}, the other stage is {forecast.slack:.1f} times as fast"
        if forecast.doubt is None
        else f"but {forecast.doubt} when the samples were tried: it is quicker than this, and which stage is the "
        "bottleneck is not known; ask again when the machine is idle"
    )
    lines = [
        f"forecast: {count_text(forecast.num_samples, 'sample')} at {forecast.samples_per_s:,.1f} a second: "
        f"{time}{gpus}, {bytes_text(forecast.output_bytes)} of tokens; {bottleneck}"
    ]
    if (recorded := forecast.recorded) is not None:
        lines.append(
            f"on a GPU (recorded figures of {recorded.card}, not measured here; docs/results/gpu.md): "
            f"{_gpu_hours(recorded.gpu_hours, price)} at {recorded.images_per_s:,.0f} images a second, if reading "
            f"keeps up: about {max(recorded.decoding_cores, 1):,.0f} cores like these decode as fast"
        )
    elif price is not None and not forecast.gpu_hours:
        lines.append(
            "on a GPU: there are no recorded figures for this checkpoint, precision or kind of source; run "
            "`tatok doctor` where there is a GPU"
        )
    return "\n".join(lines)


def _gpu_hours(gpu_hours: float, price: float | None) -> str:
    text = f"{gpu_hours:,.1f}" if gpu_hours >= 0.1 else f"{gpu_hours:.2g}"
    cost = "" if price is None else f", {gpu_hours * price:,.2f} at {price:,.2f} an hour"
    return f"{text} GPU-hours{cost}"
