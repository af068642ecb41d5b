"""The first pass of a job with dedup on Ray: every shard that is not hashed yet, as a task each."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any

# This module first: it sets Ray's environment.
from tatok.pipeline.cluster.driver import start_ray

import ray  # isort: skip
from ray.exceptions import RayError, RayTaskError  # isort: skip

from tatok.pipeline.cluster.leases import MAX_DEATHS_IN_A_ROW, Attempt, DeathsInARow, Failure, ShardLedger
from tatok.pipeline.cluster.workers.deaths import death_text, first_line, is_blameless
from tatok.pipeline.monitoring.events import Notice, OnEvent
from tatok.pipeline.storage.options import use_storage
from tatok.pipeline.storage.store import OutputStore
from tatok.pipeline.tokenization.dedup import hash_shard
from tatok.schemas.errors import ConfigError, SourceError, TatokError
from tatok.schemas.job import JobConfig
from tatok.schemas.records import Shard, count_text

__all__ = ["hash_shards"]

_POLL_S = 1.0
_SLOWEST_BYTES_A_S = 1 << 20  # a task that is slower, after its lease's time, hangs


@ray.remote(max_retries=0)
def _hash(config: JobConfig, store: OutputStore, shard: Shard) -> int:
    use_storage(config.storage)
    return hash_shard(config, store, shard)


def hash_shards(
    config: JobConfig, store: OutputStore, shards: Sequence[Shard], *, on_event: OnEvent
) -> Mapping[Shard, Failure]:
    """Hash the shards, on the Ray that `run_shards` would use; those that could not be, and why.

    A shard is tried as often as one that is tokenized. Nothing that this call started is left behind.
    """
    started_ray = not ray.is_initialized()
    if started_ray:
        start_ray(config, len(shards))
    ledger, deaths = ShardLedger(shards), DeathsInARow()
    running: dict[Any, tuple[Attempt, float]] = {}
    try:
        at_a_time = max(int(ray.cluster_resources().get("CPU", 1.0)), 1)
        on_event(Notice(message=f"dedup: hashing the samples of {count_text(len(shards), 'shard')}"))
        while not ledger.is_finished:
            while ledger.has_waiting and len(running) < at_a_time:
                attempt = ledger.lease()
                running[_hash.remote(config, store, attempt.shard)] = (attempt, time.monotonic())
            if not running:
                time.sleep(_POLL_S)
                continue
            settled, _ = ray.wait([*running], num_returns=1, timeout=_POLL_S)
            for reference in settled:
                attempt, _ = running.pop(reference)
                _settle(ledger, deaths, attempt, _failure(reference))
            for reference, (attempt, since) in list(running.items()):
                patience_s = config.resources.lease_timeout_s + attempt.shard.num_bytes / _SLOWEST_BYTES_A_S
                if time.monotonic() - since > patience_s:
                    del running[reference]
                    ray.cancel(reference, force=True)
                    hangs = Failure(kind="source", message=f"was not read and hashed within {patience_s:.0f} s")
                    _settle(ledger, deaths, attempt, hangs)
    finally:
        for reference in running:
            ray.cancel(reference, force=True)
        if started_ray:
            ray.shutdown()
    return ledger.failed


def _settle(ledger: ShardLedger, deaths: DeathsInARow, attempt: Attempt, failure: Failure | None) -> None:
    """Note what became of an attempt; raises TatokError where processes die one after the other."""
    if failure is None:
        ledger.settle(attempt)
        deaths.clear()
        return
    if failure.is_blameless and deaths.add():
        raise TatokError(
            f"processes died {MAX_DEATHS_IN_A_ROW} times without a shard in between, the last one so: {failure.message}"
        )
    ledger.fail(attempt, failure)


def _failure(reference: Any) -> Failure | None:
    try:
        ray.get(reference)
    except RayTaskError as error:
        if isinstance(error.cause, ConfigError):
            raise error.cause from None
        if isinstance(error.cause, SourceError):
            return Failure(kind="source", message=str(error.cause), is_permanent=error.cause.is_permanent)
        return Failure(kind="error", message=first_line(error.cause))
    except RayError as error:
        message = f"the process that hashes died: {death_text(error)}"
        return Failure(kind="decoder_died", message=message, is_blameless=is_blameless(error))
    return None
