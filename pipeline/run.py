"""A job from its configuration to a complete data set: plan, tokenize what is missing, publish the manifest."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from typing import Literal

from pipeline.commit import committed_shards, restore_rejects, shards_of_parts
from pipeline.events import Notice, OnEvent, ShardFailed, ShardsPlanned
from pipeline.filters import load_filter
from pipeline.fingerprint import TokenizerSpec, run_fingerprint
from pipeline.leases import Failure
from pipeline.loading import LoadTokenizer, configured_loader, load_spec
from pipeline.manifest import claim_output, mark_incomplete, mark_success, record_run, update_manifest
from pipeline.pending import compare_with_committed
from pipeline.plan import plan_shards
from pipeline.storage import storage_options
from pipeline.store import OutputStore
from schemas.errors import ConfigError
from schemas.job import JobConfig
from schemas.manifest import RunRecord
from schemas.records import Shard, ShardReport

__all__ = ["RunSummary", "check_image_size", "run_job"]

Status = Literal["complete", "shards_failed", "too_many_rejects", "too_many_failed_shards"]


@dataclass(frozen=True, slots=True, kw_only=True)
class RunSummary:
    """What a run did (`reports`, `failed`) and what its output holds now (the counts)."""

    status: Status
    output: str
    num_shards: int
    reports: tuple[ShardReport, ...]
    failed: Mapping[Shard, Failure]
    num_parts: int
    num_rows: int
    num_tokens: int
    rejects: Mapping[str, int]
    seconds: float

    @property
    def num_rejects(self) -> int:
        """Rejects of every reason."""
        return sum(self.rejects.values())


def run_job(
    config: JobConfig,
    *,
    load_tokenizer: LoadTokenizer | None = None,
    on_event: OnEvent = lambda event: None,
) -> RunSummary:
    """Tokenize every planned shard that is not committed yet, then write manifest.json and _SUCCESS.

    Where nothing is pending, neither Ray nor a decoder starts; the fingerprint is checked all the same.
    `load_tokenizer` runs in other processes and must pickle; default: the checkpoint that the configuration names.
    It is given the device: this process asks for "cpu" and for no other.
    _SUCCESS is written only with the status "complete". On KeyboardInterrupt everything that this run started is
    stopped before it propagates; committed parts stay, and the same call goes on from them.

    Raises ConfigError, SourceError and CommitError where the job cannot be done at all; a shard that fails for good
    is named in the summary, and the others go on.
    """
    with storage_options(config.storage):
        return _run_job(config, load_tokenizer, on_event)


def _run_job(config: JobConfig, load_tokenizer: LoadTokenizer | None, on_event: OnEvent) -> RunSummary:
    started, started_at = time.monotonic(), datetime.now(UTC)
    load_tokenizer = load_tokenizer or configured_loader(config)
    if config.filter is not None:
        load_filter(config.filter)  # what is wrong with it is told before anything starts
    planned = plan_shards(config.source, image_field=config.image_field)
    store = OutputStore.open(config.output)
    progress = compare_with_committed(planned, committed_shards(store), partial(shards_of_parts, store))
    pending = progress.pending
    told = ShardsPlanned(
        num_shards=progress.num_shards,
        num_committed=len(progress.committed),
        pending_bytes=sum(shard.num_bytes for shard in pending),
        run=store.run_id,
    )
    on_event(told)
    if progress.strangers:
        on_event(
            Notice(
                message=f"{len(progress.strangers)} parts in {store.url}/data come from shards that the source "
                "no longer has, or has in another version; they stay in the data set"
            )
        )

    def claim(spec: TokenizerSpec) -> dict[str, str]:
        check_image_size(config, spec)
        fingerprint = run_fingerprint(config, spec)
        claim_output(store, config, fingerprint)
        if pending:
            mark_incomplete(store)
        return fingerprint

    reports: tuple[ShardReport, ...] = ()
    failed: Mapping[Shard, Failure] = {}
    stopped_by: Status | None = None
    if pending:
        store = store.probe()
        if not store.create_only:
            on_event(
                Notice(
                    message=f"warning: {store.url} does not honour create-only writes; "
                    "two runs into it at the same time may replace each other's (equal) parts"
                )
            )
        from pipeline.cluster import run_shards  # Ray takes seconds to import and a run may not need it

        unread: Mapping[Shard, Failure] = {}
        try:
            if config.dedup == "exact":
                unread = _find_duplicates(config, store, pending, on_event)
            to_do = [shard for shard in pending if shard not in unread]
            if to_do:
                outcome = run_shards(
                    config,
                    store,
                    to_do,
                    load_tokenizer=load_tokenizer,
                    claim=claim,
                    on_event=on_event,
                    planned=told,
                )
                reports, failed, stopped_by = outcome.reports, outcome.failed, outcome.stopped_by
        finally:
            store.sweep_scratch()
        failed = {**unread, **failed}
    else:
        claim(load_spec(config, load_tokenizer))

    restore_rejects(store)
    manifest = update_manifest(store, reports)
    status: Status = "complete"
    if failed:
        status = "shards_failed"
    if stopped_by is not None:
        status = stopped_by
    elif manifest.reject_fraction > config.limits.max_reject_fraction:
        status = "too_many_rejects"
    if status == "complete":
        mark_success(store)
    else:
        mark_incomplete(store)
    if pending:
        record_run(
            store,
            RunRecord(
                started_at=started_at.isoformat(timespec="seconds"),
                seconds=round(time.monotonic() - started, 3),
                status=status,
                num_shards=len(reports),
                num_rows=sum(report.num_rows for report in reports),
                num_tokens=sum(report.num_tokens for report in reports),
                num_rejects=sum(report.num_rejects for report in reports),
                num_failed_shards=len(failed),
            ),
        )
    store.sweep_scratch()
    return RunSummary(
        status=status,
        output=store.url,
        num_shards=progress.num_shards,
        reports=reports,
        failed=failed,
        num_parts=len(manifest.parts),
        num_rows=manifest.num_rows,
        num_tokens=manifest.num_tokens,
        rejects=manifest.rejects,
        seconds=time.monotonic() - started,
    )


def _find_duplicates(
    config: JobConfig, store: OutputStore, pending: Sequence[Shard], on_event: OnEvent
) -> Mapping[Shard, Failure]:
    """Hash what is not hashed yet and list the duplicates of every pending shard; the shards that cannot be read."""
    from pipeline.dedup import hashed_shards, list_duplicates
    from pipeline.dedup_cluster import hash_shards

    hashed = hashed_shards(store)
    to_hash = [shard for shard in pending if shard.shard_id not in hashed]
    unread = hash_shards(config, store, to_hash, on_event=on_event) if to_hash else {}
    for shard, failure in unread.items():
        on_event(ShardFailed(shard=shard, reason=failure.message))
    readable = [shard for shard in pending if shard not in unread]
    count = list_duplicates(store, readable, committed_shards(store))
    on_event(Notice(message=f"dedup: {count:,} duplicates in {len(readable):,} shards"))
    return unread


def check_image_size(config: JobConfig, spec: TokenizerSpec) -> None:
    """Raise ConfigError where images of the job's size do not fall into whole patches."""
    preprocessing, patch = config.preprocessing, spec.patch_size
    named = "side_multiple" if preprocessing.mode in ("resize", "buckets") else "image_size"
    size = preprocessing.sides_divide_by
    if size % patch:
        raise ConfigError(
            f"preprocessing.{named} is {size}; it must be a multiple of the checkpoint's patch of "
            f"{patch} pixels, such as {max(size // patch, 1) * patch}"
        )
