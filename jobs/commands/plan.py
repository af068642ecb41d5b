"""The command that looks a source over: plan."""

from __future__ import annotations

import json
import os
import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tatok.jobs.job_file import job_file_among
from tatok.schemas.errors import ConfigError
from tatok.schemas.records import count_text

if TYPE_CHECKING:
    from tatok.pipeline.planning.survey import Survey
    from tatok.schemas.job import JobConfig
    from tatok.schemas.records import Shard

__all__ = ["plan"]


def plan(
    source: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="SOURCE...",
            help="WebDataset tars, Parquet files, folders of images and videos, lists of URIs: paths, globs, brace "
            "patterns, fsspec URLs; or a job file alone.",
            show_default=False,
        ),
    ] = None,
    config: Annotated[Path | None, typer.Option(help="Job file (YAML) that names source, output, image_field.")] = None,
    output: Annotated[str | None, typer.Option(help="Also say what this dataset has of the source already.")] = None,
    image_field: Annotated[str | None, typer.Option(help="Tar member (jpg) or table column to tokenize.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON: the totals, and every shard.")] = False,
) -> None:
    """Look a source over: shards, samples where known, bytes, kinds; with --output what of it is left to do.

    Names, sizes, Parquet footers and the headers of large tars are read; no image is, and nothing is written. Samples
    of tars are known only when they have been read. `tatok tokenize --dry-run` also loads the tokenizer and compares
    all settings with the output; `tatok doctor` also tries the stores, the cluster and some samples.

    Exit codes: 0 the plan was printed; 1 the source or the output cannot be understood; 2 wrong usage.
    """
    from tatok.jobs.text.folding import folded
    from tatok.pipeline.planning.survey import survey_source
    from tatok.pipeline.storage.options import storage_options

    source, config = job_file_among(source, config)
    named, storage = tuple(source or ()), {}
    if config is not None:
        job = _job(config, {"source": source, "output": output, "image_field": image_field})
        named, output, image_field, storage = job.source, job.output, job.image_field, job.storage
    if not named:
        raise ConfigError("name a SOURCE, or a job file (--config); see `tatok plan --help`")
    with storage_options(storage):
        found = survey_source(named, image_field=image_field, output=output)
    print(_json(found) if as_json else folded(_text(found), sys.stdout))


def _job(config: Path, overrides: dict[str, Any]) -> JobConfig:
    from tatok.schemas.job import JobConfig
    from tatok.schemas.settings_file import read_settings

    settings = read_settings(config)
    settings.override_from(os.environ)
    for name, value in overrides.items():
        if value:
            settings.override(name, value, place=f"the option for {name}")
    return settings.validated(JobConfig)


def _text(found: Survey) -> str:
    from tatok.jobs.text.plan import source_lines
    from tatok.statistics.units import bytes_text

    lines = source_lines(found)
    progress = found.progress
    if progress is not None:
        pending = bytes_text(sum(shard.num_bytes for shard in progress.pending))
        lines.append(
            f"done: {len(progress.committed):,} of {count_text(progress.num_shards, 'shard')}; left: {pending}"
        )
        if progress.unplanned:
            lines.append(f"{len(progress.unplanned):,} parts of the output are of no shard of this source")
    return "\n".join(lines)


def _json(found: Survey) -> str:
    from tatok.schemas.manifest import left_out_to_json

    document: dict[str, Any] = {
        "kinds": {kind: asdict(counts) for kind, counts in found.kinds.items()},
        "left_out": left_out_to_json(found.left_out),
    }
    progress = found.progress
    if progress is not None:
        document |= {
            "num_shards_done": len(progress.committed),
            "num_shards_left": len(progress.pending),
            "num_bytes_left": sum(shard.num_bytes for shard in progress.pending),
            "num_unplanned": len(progress.unplanned),
        }
    # What is left may be less than what was planned: a group that has grown is left with its new files alone.
    left = None if progress is None else [_shard(shard) for shard in progress.pending]
    document |= {"shards": [_shard(shard) for shard in found.shards], "left": left}
    return json.dumps(document, indent=1)


def _shard(shard: Shard) -> dict[str, Any]:
    return {
        "shard_id": shard.shard_id,
        "kind": shard.kind,
        "uri": shard.uri,
        "start": shard.start,
        "stop": shard.stop,
        "num_samples": shard.num_samples,
        "num_bytes": shard.num_bytes,
    }
