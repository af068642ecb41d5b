"""The first pass of a job with dedup on Ray: every shard that is not hashed yet, as a task each."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Mapping, Sequence
from typing import Any

# This module first: it sets Ray's environment.
from tatok.pipeline.cluster.driver import start_ray

import ray  # isort: skip
from ray.exceptions import RayError, RayTaskError  # isort: skip

from tatok.pipeline.cluster.actors import first_line
from tatok.pipeline.cluster.leases import MAX_ATTEMPTS, Failure
from tatok.pipeline.monitoring.events import Notice, OnEvent
from tatok.pipeline.storage.options import use_storage
from tatok.pipeline.storage.store import OutputStore
from tatok.pipeline.tokenization.dedup import hash_shard
from tatok.schemas.errors import ConfigError, SourceError
from tatok.schemas.job import JobConfig
from tatok.schemas.records import Shard

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

    A shard is tried up to three times; a permanent failure once. Nothing that this call started is left behind.
    """
    started_ray = not ray.is_initialized()
    if started_ray:
        start_ray(config, len(shards))
    waiting = deque((shard, 1) for shard in shards)
    running: dict[Any, tuple[Shard, int, float]] = {}
    failed: dict[Shard, Failure] = {}
    try:
        at_a_time = max(int(ray.cluster_resources().get("CPU", 1.0)), 1)
        on_event(Notice(message=f"dedup: hashing the samples of {len(shards):,} shards"))
        while waiting or running:
            while waiting and len(running) < at_a_time:
                shard, attempt = waiting.popleft()
                running[_hash.remote(config, store, shard)] = (shard, attempt, time.monotonic())
            settled, _ = ray.wait([*running], num_returns=1, timeout=_POLL_S)
            for reference in settled:
                shard, attempt, _ = running.pop(reference)
                _settle(_failure(reference), shard, attempt, waiting, failed)
            for reference, (shard, attempt, since) in list(running.items()):
                patience_s = config.resources.lease_timeout_s + shard.num_bytes / _SLOWEST_BYTES_A_S
                if time.monotonic() - since > patience_s:
                    del running[reference]
                    ray.cancel(reference, force=True)
                    hangs = Failure(kind="source", message=f"was not read and hashed within {patience_s:.0f} s")
                    _settle(hangs, shard, attempt, waiting, failed)
    finally:
        for reference in running:
            ray.cancel(reference, force=True)
        if started_ray:
            ray.shutdown()
    return failed


def _settle(
    failure: Failure | None,
    shard: Shard,
    attempt: int,
    waiting: deque[tuple[Shard, int]],
    failed: dict[Shard, Failure],
) -> None:
    if failure is None:
        return
    if failure.is_permanent or attempt >= MAX_ATTEMPTS:
        failed[shard] = failure
    else:
        waiting.append((shard, attempt + 1))


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
        return Failure(kind="decoder_died", message=f"the process that hashes died: {first_line(error)}")
    return None
