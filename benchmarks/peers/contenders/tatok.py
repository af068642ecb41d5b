"""tatok itself, as `tatok tokenize` runs it: `run_job` with the default resources."""

from __future__ import annotations

import time

import tatok.pipeline.cluster.driver  # noqa: F401  sets Ray's environment before the import below
from benchmarks.peers.work import Task
from tatok.pipeline.monitoring.events import Event, ShardCommitted
from tatok.pipeline.run import run_job
from tatok.schemas.job import JobConfig

import ray  # isort: skip

__all__ = ["VARIANTS", "run", "start"]

VARIANTS = ("default resources",)


def start(task: Task) -> None:
    """A local Ray, as Ray Data gets one."""
    ray.init(
        address="local", num_cpus=task.num_cpus, include_dashboard=False, logging_level="ERROR", log_to_driver=False
    )


def run(task: Task, variant: str) -> dict[str, float]:
    """The job; colour profiles are ignored because the peers' code, like most scripts, ignores them."""
    config = JobConfig.model_validate(
        {
            "source": task.shards,
            "output": task.output,
            "device": "cpu",
            "resources": {"batch_size": task.batch_size},
            "preprocessing": {"image_size": task.image_size, "icc_profiles": "ignore", "decoder": task.decoder},
        }
    )
    started, commits = time.monotonic(), list[float]()

    def note(event: Event) -> None:
        if isinstance(event, ShardCommitted):
            commits.append(time.monotonic() - started)

    summary = run_job(config, load_tokenizer=task.load_tokenizer, on_event=note)
    if summary.status != "complete":
        raise RuntimeError(f"tatok: {summary.status}, {summary.rejects}, {summary.failed}")
    return {"first_shard_s": commits[0], "last_shard_s": commits[-1]}
