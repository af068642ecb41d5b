"""Before a job is planned: a cluster may have no GPU yet, because its nodes still start, or start when asked for."""

from __future__ import annotations

import time

# This module first: it sets Ray's environment.
from tatok.pipeline.cluster.probe import ClusterSize, cluster_size

import ray  # isort: skip

from tatok.pipeline.monitoring.events import Notice, OnEvent
from tatok.schemas.errors import ConfigError
from tatok.schemas.job import JobConfig
from tatok.schemas.records import count_text

__all__ = ["size_with_gpus"]

_POLL_S = 1.0
_NOTICE_S = 30.0


def size_with_gpus(config: JobConfig, *, most_gpus: int, may_grow: bool, on_event: OnEvent) -> ClusterSize:
    """What the connected Ray has, once it has a GPU where the job wants one.

    A job that says cuda asks Ray for as many GPUs as it names tokenizers, by default one, but for `most_gpus` at most,
    so that an autoscaler starts nodes, and waits for the first without end. One that names no device asks for none; it
    waits for `resources.gpu_wait_s`, and then does without. `may_grow`: nodes can join this Ray. Raises ConfigError
    where none can and the job says cuda.
    """
    size = cluster_size()
    if size.num_gpus >= 1 or config.device not in (None, "cuda"):
        return size
    if config.device is None:
        return _wait(config.resources.gpu_wait_s, on_event) if may_grow else size
    if not may_grow:
        raise ConfigError(
            "device is cuda, but Ray finds no GPU on this machine; install its driver, name a cluster that has GPUs by "
            "RAY_ADDRESS, or say device: cpu"
        )
    asked = [_nothing.remote() for _ in range(min(config.resources.num_tokenizers or 1, most_gpus))]
    try:
        return _wait(None, on_event, num_asked=len(asked))
    finally:
        for reference in asked:
            ray.cancel(reference, force=True)


@ray.remote(num_cpus=1, num_gpus=1, max_retries=0)
def _nothing() -> None:
    """Waits for a GPU in the queue that the autoscaler looks at."""


def _wait(most_s: float | None, on_event: OnEvent, *, num_asked: int = 0) -> ClusterSize:
    started = time.monotonic()
    if most_s is None:
        doing = f"asked it for {num_asked}, and wait for a node that has one (device: cuda)"
    elif most_s > 0:
        doing = (
            f"wait up to {most_s:g} s for one (resources.gpu_wait_s), unless the job says device: cuda or device: cpu"
        )
    else:
        doing = "so the CPUs tokenize; say device: cpu if that is meant"
    on_event(Notice(message=f"Ray has no GPU: {doing}"))
    told_at = started
    while True:
        size, now = cluster_size(), time.monotonic()
        if size.num_gpus >= 1:
            return size
        if most_s is not None and now - started >= most_s:
            if most_s > 0:
                on_event(Notice(message=f"no GPU has come within {most_s:g} s, so the CPUs tokenize"))
            return size
        if now - told_at >= _NOTICE_S:
            told_at = now
            on_event(
                Notice(
                    message=f"still waiting for a GPU after {now - started:.0f} s: Ray has "
                    f"{count_text(size.num_nodes, 'node')}, {size.num_cpus:g} CPUs and no GPU"
                )
            )
        time.sleep(_POLL_S)
