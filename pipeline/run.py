"""A job from its configuration to a complete dataset: plan, tokenize what is missing, publish the manifest."""

from __future__ import annotations

import os
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import partial
from typing import Literal

from tatok.pipeline.cluster.leases import Failure
from tatok.pipeline.decode.filters import load_filter
from tatok.pipeline.monitoring.events import Notice, OnEvent, ShardFailed, ShardsPlanned
from tatok.pipeline.output.commit import committed_shards, restore_rejects, shards_of_parts
from tatok.pipeline.output.manifest import claim_output, mark_incomplete, mark_success, record_run, update_manifest
from tatok.pipeline.planning.patterns import would_match
from tatok.pipeline.planning.pending import Progress, compare_with_committed
from tatok.pipeline.planning.plan import plan_shards
from tatok.pipeline.storage.options import storage_options
from tatok.pipeline.storage.store import OutputStore
from tatok.pipeline.tokenization.fingerprint import run_fingerprint
from tatok.pipeline.tokenization.loading import LoadTokenizer, check_job_tokenizer, configured_loader, load_spec
from tatok.pipeline.tokenization.spec import TokenizerSpec
from tatok.schemas.errors import ConfigError
from tatok.schemas.job import JobConfig
from tatok.schemas.manifest import LAYOUT, LAYOUT_0_2, Layout, Manifest, RunRecord
from tatok.schemas.records import LeftOut, Shard, ShardReport, count_text

__all__ = ["RunSummary", "check_image_size", "refuse_output_in_source", "run_job"]

_WRITTEN = (
    "data/part-0.parquet",
    *(
        name
        for layout in (LAYOUT, LAYOUT_0_2)
        for name in (layout.run, layout.manifest, layout.rejects_of("part-0.parquet"), f"{layout.runs}/0.json")
    ),
)
"""Names like those that a run writes below its output."""

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
    num_clips: int
    num_frames: int
    num_tokens: int
    rejects: Mapping[str, int]
    left_out: Mapping[LeftOut, int]
    seconds: float
    layout: Layout = LAYOUT

    def __repr__(self) -> str:
        done = f"{count_text(len(self.reports), 'shard')} in {self.seconds:.1f} s" if self.reports else "nothing to do"
        failed = f", {len(self.failed):,} failed" if self.failed else ""
        return (
            f"RunSummary({self.output} {self.status}: {count_text(self.num_parts, 'part')}, "
            f"{count_text(self.num_rows, 'row')}, "
            f"{self.num_tokens:,} tokens, {count_text(self.num_rejects, 'reject')}; this run: {done}{failed})"
        )

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
    """Tokenize every planned shard that is not committed yet, then write the manifest and _SUCCESS.

    If nothing is pending, neither Ray nor a decoder starts; the fingerprint is checked all the same.
    `load_tokenizer` runs in other processes and must pickle; default: the checkpoint that the configuration names.
    It is given the device: this process asks for "cpu" and for no other.
    _SUCCESS is written only with the status "complete". On KeyboardInterrupt everything that this run started is
    stopped before it propagates; committed parts stay, and the same call resumes from them.

    Raises ConfigError, SourceError and CommitError if the job cannot be done at all; a shard that fails for good
    is named in the summary, and the others continue.
    """
    with storage_options(config.storage):
        return _run_job(config, load_tokenizer, on_event)


def _run_job(config: JobConfig, load_tokenizer: LoadTokenizer | None, on_event: OnEvent) -> RunSummary:
    started, started_at = time.monotonic(), datetime.now(UTC)
    refuse_output_in_source(config)
    if load_tokenizer is None:
        check_job_tokenizer(config)
        load_tokenizer = configured_loader(config)
    if config.filter is not None:
        load_filter(config.filter)  # what is wrong with it is said before anything starts
    left_out = Counter[LeftOut]()
    shards = plan_shards(config.source, image_field=config.image_field, left_out=left_out)
    store = OutputStore.of_dataset(config.output)
    progress = compare_with_committed(shards, committed_shards(store), partial(shards_of_parts, store))
    planned = _announced(progress, store, on_event)
    if progress.pending:
        store = _probed(store, on_event)
        outcome = _tokenize(config, store, progress.pending, load_tokenizer, on_event, planned)
    else:
        _claim(config, store, load_spec(config, load_tokenizer), writes=False)
        outcome = _Outcome()

    restore_rejects(store)
    manifest = update_manifest(store, outcome.reports, left_out)
    status = _status(config, outcome, manifest)
    if status == "complete":
        mark_success(store)
    else:
        mark_incomplete(store)
    if progress.pending:
        record_run(store, _record(outcome, status, started_at, time.monotonic() - started))
    store.sweep_scratch()
    return RunSummary(
        status=status,
        output=store.url,
        num_shards=progress.num_shards,
        reports=outcome.reports,
        failed=outcome.failed,
        num_parts=len(manifest.parts),
        num_rows=manifest.num_rows,
        num_clips=manifest.num_clips,
        num_frames=manifest.num_frames,
        num_tokens=manifest.num_tokens,
        rejects=manifest.rejects,
        left_out=manifest.left_out,
        seconds=time.monotonic() - started,
        layout=store.layout,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Outcome:
    """What became of the pending shards."""

    reports: tuple[ShardReport, ...] = ()
    failed: Mapping[Shard, Failure] = field(default_factory=dict)
    stopped_by: Status | None = None


def _announced(progress: Progress, store: OutputStore, on_event: OnEvent) -> ShardsPlanned:
    """The event that says what is committed and what is not yet, which `on_event` has seen then."""
    planned = ShardsPlanned(
        num_shards=progress.num_shards,
        num_committed=len(progress.committed),
        pending_bytes=sum(shard.num_bytes for shard in progress.pending),
        run=store.run_id,
    )
    on_event(planned)
    if progress.unplanned:
        found = count_text(len(progress.unplanned), "part")
        on_event(
            Notice(
                message=f"{found} in {store.url}/data of shards that the source no longer has, or has in another "
                "version: they stay in the dataset"
            )
        )
    return planned


def _probed(store: OutputStore, on_event: OnEvent) -> OutputStore:
    """The output, once it has shown that it can be written."""
    store = store.probe()
    if not store.create_only:
        on_event(
            Notice(
                message=f"warning: {store.url} does not honour create-only writes; "
                "two runs into it at the same time may replace each other's (equal) parts"
            )
        )
    return store


def _claim(config: JobConfig, store: OutputStore, spec: TokenizerSpec, *, writes: bool) -> dict[str, str]:
    """Make sure that the output holds this recipe's tokens and no others; returns the recipe's fingerprint."""
    check_image_size(config, spec)
    fingerprint = run_fingerprint(config, spec)
    claim_output(store, config, fingerprint)
    if writes:
        mark_incomplete(store)
    return fingerprint


def _tokenize(
    config: JobConfig,
    store: OutputStore,
    pending: Sequence[Shard],
    load_tokenizer: LoadTokenizer,
    on_event: OnEvent,
    planned: ShardsPlanned,
) -> _Outcome:
    """Tokenize and commit the shards, without their duplicates where the job says so."""
    from tatok.pipeline.cluster.driver import run_shards  # Ray takes seconds to import and a run may not need it

    claim = partial(_claim, config, store, writes=True)
    unread: Mapping[Shard, Failure] = {}
    try:
        if config.dedup == "exact":
            unread = _find_duplicates(config, store, pending, on_event)
        to_do = [shard for shard in pending if shard not in unread]
        if not to_do:
            return _Outcome(failed=unread)
        done = run_shards(
            config, store, to_do, load_tokenizer=load_tokenizer, claim=claim, on_event=on_event, planned=planned
        )
    finally:
        store.sweep_scratch()
    return _Outcome(reports=done.reports, failed={**unread, **done.failed}, stopped_by=done.stopped_by)


def _status(config: JobConfig, outcome: _Outcome, manifest: Manifest) -> Status:
    if outcome.stopped_by is not None:
        return outcome.stopped_by
    if manifest.reject_fraction > config.limits.max_reject_fraction:
        return "too_many_rejects"
    return "shards_failed" if outcome.failed else "complete"


def _record(outcome: _Outcome, status: Status, started_at: datetime, seconds: float) -> RunRecord:
    return RunRecord(
        started_at=started_at.isoformat(timespec="seconds"),
        seconds=round(seconds, 3),
        status=status,
        num_shards=len(outcome.reports),
        num_rows=sum(report.num_rows for report in outcome.reports),
        num_tokens=sum(report.num_tokens for report in outcome.reports),
        num_rejects=sum(report.num_rejects for report in outcome.reports),
        num_failed_shards=len(outcome.failed),
    )


def _find_duplicates(
    config: JobConfig, store: OutputStore, pending: Sequence[Shard], on_event: OnEvent
) -> Mapping[Shard, Failure]:
    """Hash what is not hashed yet and list the duplicates of every pending shard; the shards that cannot be read."""
    from tatok.pipeline.cluster.hashing import hash_shards
    from tatok.pipeline.tokenization.dedup import hashed_shards, list_duplicates

    hashed = hashed_shards(store)
    to_hash = [shard for shard in pending if shard.shard_id not in hashed]
    unread = hash_shards(config, store, to_hash, on_event=on_event) if to_hash else {}
    for shard, failure in unread.items():
        on_event(ShardFailed(shard=shard, reason=failure.message))
    readable = [shard for shard in pending if shard not in unread]
    count = list_duplicates(store, readable, committed_shards(store))
    on_event(Notice(message=f"dedup: {count_text(count, 'duplicate')} in {count_text(len(readable), 'shard')}"))
    return unread


def refuse_output_in_source(config: JobConfig) -> None:
    """Raise ConfigError if a source holds the output: a later run would take for input what this one has written."""
    output = _address(config.output)
    written = [f"{output}/{name}" for name in _WRITTEN]
    for source in config.source:
        if f"{output}/".startswith(f"{_address(source)}/") or would_match(source, written):
            raise ConfigError(
                f"the output {config.output} lies inside of the source {source}, and would become a part of it",
                remedy="name an output outside of every source",
            )


def _address(url: str) -> str:
    return url.rstrip("/") if "://" in url else os.path.abspath(os.path.expanduser(url))


def check_image_size(config: JobConfig, spec: TokenizerSpec) -> None:
    """Raise ConfigError if images of the job's size do not fall into whole patches."""
    preprocessing, patch = config.preprocessing, spec.patch_size
    named = "side_multiple" if preprocessing.mode in ("resize", "buckets") else "image_size"
    size = preprocessing.sides_divide_by
    if size % patch:
        what = "checkpoint" if config.tokenizer is None else "tokenizer"
        raise ConfigError(
            f"preprocessing.{named} is {size}; it must be a multiple of the {what}'s patch of "
            f"{patch} pixels, such as {max(size // patch, 1) * patch}",
            remedy=f"set preprocessing.{named} to a multiple of the patch",
        )
