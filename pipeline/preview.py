"""What a job would do, found out without Ray and without writing anything: `run_job` up to where it would begin."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass

from tatok.pipeline.cluster.sizes import Sizes, count_pieces, plan_sizes
from tatok.pipeline.decode.filters import load_filter
from tatok.pipeline.output.commit import part_name
from tatok.pipeline.output.manifest import require_same_run
from tatok.pipeline.planning.pending import Progress
from tatok.pipeline.planning.survey import Survey, survey_source
from tatok.pipeline.run import check_image_size, refuse_output_in_source
from tatok.pipeline.storage.options import storage_options
from tatok.pipeline.storage.store import OutputStore
from tatok.pipeline.tokenization.fingerprint import run_fingerprint
from tatok.pipeline.tokenization.loading import LoadTokenizer, check_job_tokenizer, configured_loader, load_spec
from tatok.pipeline.tokenization.spec import TokenizerSpec
from tatok.schemas.job import JobConfig

__all__ = ["Preview", "preview_job"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Preview:
    """What there is, what of it is done, by which tokenizer and where the rest would be done.

    `resumes`: the output is a dataset of this fingerprint already. `sizes` is None where nothing is left to do, and
    where `cluster`, the address in RAY_ADDRESS, says who would know. `output_bytes`: of what is left, where committed
    parts show how large parts become.
    """

    output: str
    survey: Survey
    progress: Progress
    tokenizer: TokenizerSpec
    fingerprint: Mapping[str, str]
    resumes: bool
    cluster: str | None
    sizes: Sizes | None
    output_bytes: int | None

    @property
    def pending_bytes(self) -> int:
        """Of the source, as far as sizes are known."""
        return sum(shard.num_bytes for shard in self.progress.pending)


def preview_job(config: JobConfig, *, load_tokenizer: LoadTokenizer | None = None) -> Preview:
    """Plan the source, load the tokenizer on the CPU, and compare both with the output.

    Raises what `run_job` raises before it starts Ray, for the same reasons: another fingerprint in the output, a source
    without samples, settings that do not fit. That the output can be written, and what a cluster has, is not tried.
    """
    with storage_options(config.storage):
        refuse_output_in_source(config)
        if load_tokenizer is None:
            check_job_tokenizer(config)
            load_tokenizer = configured_loader(config)
        if config.filter is not None:
            load_filter(config.filter)
        survey = survey_source(config.source, image_field=config.image_field, output=config.output)
        assert survey.progress is not None, "an output was named"
        spec = load_spec(config, load_tokenizer)
        check_image_size(config, spec)
        fingerprint = run_fingerprint(config, spec)
        store = OutputStore.of_dataset(config.output)
        resumes = require_same_run(store, fingerprint)
        address = os.environ.get("RAY_ADDRESS")
        cluster = None if address == "local" else address or None
        return Preview(
            output=store.url,
            survey=survey,
            progress=survey.progress,
            tokenizer=spec,
            fingerprint=fingerprint,
            resumes=resumes,
            cluster=cluster,
            sizes=_sizes_here(config, survey.progress) if cluster is None and survey.progress.pending else None,
            output_bytes=_output_bytes(survey, survey.progress, store),
        )


def _sizes_here(config: JobConfig, progress: Progress) -> Sizes:
    import torch

    return plan_sizes(
        config,
        num_shards=len(progress.pending),
        num_pieces=count_pieces(progress.pending),
        num_cpus=float(os.cpu_count() or 1),
        num_gpus=float(torch.cuda.device_count()),
    )


def _output_bytes(survey: Survey, progress: Progress, store: OutputStore) -> int | None:
    done = [shard for shard in survey.shards if shard.shard_id in progress.committed]
    source_bytes = sum(shard.num_bytes for shard in done)
    if not source_bytes:
        return None
    sizes = store.list_files("data")
    part_bytes = sum(sizes.get(part_name(shard.shard_id), 0) for shard in done)
    return round(part_bytes / source_bytes * sum(shard.num_bytes for shard in progress.pending))
