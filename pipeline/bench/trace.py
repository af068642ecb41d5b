"""A trace for Perfetto: torch's own of a few batches, and the run's shards as spans below it."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from tatok.pipeline.bench.own_processes import alone
from tatok.pipeline.bench.stages import StageSamples, batch_of
from tatok.pipeline.cluster.sizes import Sizes
from tatok.pipeline.tokenization.loading import LoadTokenizer
from tatok.schemas.job import JobConfig
from tatok.schemas.records import Clip, ShardReport

__all__ = ["CommittedShard", "write_trace"]

_PIPELINE_PID = 1_000_000  # no process's: torch's events carry real ones
_NUM_BATCHES = 3
_MOST_SAMPLES = 64


@dataclass(frozen=True, slots=True, kw_only=True)
class CommittedShard:
    """A shard of the run and when it was committed, in seconds since the run's start."""

    report: ShardReport
    at_s: float


def write_trace(
    path: Path,
    config: JobConfig,
    found: StageSamples,
    load_tokenizer: LoadTokenizer,
    sizes: Sizes,
    shards: Sequence[CommittedShard],
    *,
    on_cluster: bool,
) -> None:
    """Write Chrome's JSON, which Perfetto and chrome://tracing open: kernels of a few batches, spans of the shards.

    The two have clocks of their own: spans begin at the run's start, kernels at 0. Batches are traced in a process of
    their own, with a GPU of the connected Ray where the job's is `on_cluster`.
    """
    from tatok.pipeline.decode.sample import decode_sample

    samples = found.samples[:_MOST_SAMPLES]
    decoded = [item for sample in samples for item in decode_sample(sample, config.preprocessing, config.limits)]
    pixels_BTCHW, _ = batch_of([item for item in decoded if isinstance(item, Clip)], sizes.batch_size)
    work = partial(_device_trace, load_tokenizer, sizes.device, pixels_BTCHW)
    document = alone(work, on_cluster=on_cluster and sizes.gpus_per_tokenizer > 0)
    events: list[dict[str, Any]] = document["traceEvents"]
    first = min((event["ts"] for event in events if "ts" in event), default=0)
    for event in events:
        if "ts" in event:
            event["ts"] -= first
    events.append(_named("process_name", 0, "the run's shards"))
    for lane, shard in _lanes(shards):
        events.append(
            {
                "name": shard.report.shard.uri.rpartition("/")[2],
                "cat": "shard",
                "ph": "X",
                "pid": _PIPELINE_PID,
                "tid": lane,
                "ts": (shard.at_s - shard.report.seconds) * 1e6,
                "dur": shard.report.seconds * 1e6,
                "args": {"rows": shard.report.num_rows, "tokens": shard.report.num_tokens},
            }
        )
        events.append(_named("thread_name", lane, f"shard in flight {lane + 1}"))
    path.write_text(json.dumps(document))


def _named(what: str, lane: int, name: str) -> dict[str, Any]:
    return {"name": what, "ph": "M", "pid": _PIPELINE_PID, "tid": lane, "args": {"name": name}}


def _lanes(shards: Sequence[CommittedShard]) -> list[tuple[int, CommittedShard]]:
    """Shards that overlap in time get different lanes."""
    free_at: list[float] = []
    placed = []
    for shard in sorted(shards, key=lambda shard: shard.at_s - shard.report.seconds):
        start = shard.at_s - shard.report.seconds
        lane = next((lane for lane, end in enumerate(free_at) if end <= start), len(free_at))
        free_at[lane : lane + 1] = [shard.at_s]
        placed.append((lane, shard))
    return placed


def _device_trace(load_tokenizer: LoadTokenizer, device: str, batch_BTCHW: np.ndarray) -> dict[str, Any]:
    import torch
    from torch.profiler import ProfilerActivity, profile, record_function

    tokenizer, pixels_BTCHW = load_tokenizer(device), torch.from_numpy(batch_BTCHW)
    on_cuda = torch.device(device).type == "cuda"
    tokenizer.encode_clips(pixels_BTCHW)  # kernels are chosen at the first call
    with profile(activities=[ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if on_cuda else [])]) as profiler:
        for number in range(_NUM_BATCHES):
            with record_function(f"batch {number}"):
                tokenizer.encode_clips(pixels_BTCHW)
        if on_cuda:
            torch.cuda.synchronize(torch.device(device))
    with tempfile.TemporaryDirectory() as folder:
        exported = Path(folder) / "trace.json"
        profiler.export_chrome_trace(str(exported))
        return json.loads(exported.read_text())
