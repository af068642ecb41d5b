"""A million shards on a thousand GPU actors, simulated: the real planner, ledger and scheduler, without a Ray.

    make bench-scale

Actors are entries in a heap of virtual time: a shard takes a random time, a heartbeat a millisecond. All that the
driver does is the code that a real run uses, and its CPU time is real (with the simulation's own in it). What is not in
the figures: Ray's own calls, which `ray_calls` measures apart on a local Ray, and the network.
"""

from __future__ import annotations

import argparse
import gc
import json
import math
import resource
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import fsspec
from fsspec.spec import AbstractFileSystem

from tatok.pipeline.cluster.scheduler import Scheduler
from tatok.pipeline.cluster.sizes import Sizes
from tatok.pipeline.monitoring.events import Event
from tatok.pipeline.planning.pending import compare_with_committed
from tatok.pipeline.planning.plan import plan_shards
from tatok.schemas.job import JobConfig
from tests.support.simulated_calls import SimulatedCalls

_ROWS_A_SHARD = 10_000
_TOKENS_A_ROW = 56
_SHARD_S = 5.0  # of a GPU at 2,000 images a second
_START_S = 30.0


@dataclass(frozen=True, slots=True, kw_only=True)
class ScaleResult:
    """CPU seconds and bytes of the driver; virtual seconds of the run."""

    num_shards: int
    num_tokenizers: int
    num_decoders: int
    listing_and_planning_s: float
    planned_bytes: int
    comparing_s: float
    scheduling_s: float
    scheduling_us_a_shard: float
    peak_bytes: int
    run_virtual_s: float
    driver_busy_share: float
    tail_virtual_s: float
    ideal_virtual_s: float
    num_retried: int
    num_second_leases: int


class SimulatedBucket(AbstractFileSystem):
    """`million://bucket/00/shard-0000000.tar`, ... : so many files that no list holds them, 10,000 a folder."""

    protocol = "million"
    cachable = False
    num_files = 1_000_000
    file_bytes = 1 << 30
    _A_FOLDER = 10_000

    def ls(self, path: str, detail: bool = True, **kwargs: Any) -> list[Any]:
        parts = self._strip_protocol(path).split("/")
        if len(parts) == 1:
            folders = range(math.ceil(self.num_files / self._A_FOLDER))
            entries = [{"name": f"{parts[0]}/{i:04}", "type": "directory", "size": 0} for i in folders]
        else:
            first = int(parts[1]) * self._A_FOLDER
            numbers = range(first, min(first + self._A_FOLDER, self.num_files))
            entries = [self._entry(f"{parts[0]}/{parts[1]}/shard-{i:07}.tar", i) for i in numbers]
        return entries if detail else [entry["name"] for entry in entries]

    def info(self, path: str, **kwargs: Any) -> dict[str, Any]:
        path = self._strip_protocol(path)
        if not path.endswith(".tar"):
            return {"name": path, "type": "directory", "size": 0}
        return self._entry(path, int(path[-11:-4]))

    def _entry(self, name: str, number: int) -> dict[str, Any]:
        return {"name": name, "type": "file", "size": self.file_bytes, "ETag": f'"{number:032x}"'}


def simulate(num_shards: int, num_tokenizers: int, *, decoders_a_tokenizer: int = 2, seed: int = 0) -> ScaleResult:
    """List, plan and run; returns what it took. `num_shards` beyond the limits of memory is the caller's risk."""
    fsspec.register_implementation("million", SimulatedBucket, clobber=True)
    SimulatedBucket.num_files = num_shards
    gc.collect()
    before, started = _rss(), time.process_time()
    shards = plan_shards(["million://bucket/*/*.tar"])
    planning_s, planned_bytes = time.process_time() - started, _rss() - before
    assert len(shards) == num_shards
    started = time.process_time()
    pending = compare_with_committed(shards, frozenset(), lambda ids: ()).pending
    comparing_s = time.process_time() - started
    config = JobConfig(source=("million://bucket",), output="million://out")
    sizes = Sizes(
        num_tokenizers=num_tokenizers,
        num_decoders=decoders_a_tokenizer * num_tokenizers,
        shards_per_tokenizer=decoders_a_tokenizer,
        gpus_per_tokenizer=1.0,
        cpus_per_actor=1.0,
        torch_threads=1,
        device="cuda",
        batch_size=256,
    )
    calls = SimulatedCalls(seed, num_nodes=num_tokenizers)
    num_retried = 0

    def count(event: Event) -> None:
        nonlocal num_retried
        num_retried += type(event).__name__ == "ShardRetried"

    started = time.process_time()
    outcome = Scheduler(config, pending, sizes, calls, lambda spec: {}, count).run()
    scheduling_s = time.process_time() - started
    assert len(outcome.reports) + len(outcome.failed) == num_shards
    assert outcome.stopped_by is None
    return ScaleResult(
        num_shards=num_shards,
        num_tokenizers=num_tokenizers,
        num_decoders=sizes.num_decoders,
        listing_and_planning_s=round(planning_s, 2),
        planned_bytes=planned_bytes,
        comparing_s=round(comparing_s, 2),
        scheduling_s=round(scheduling_s, 2),
        scheduling_us_a_shard=round(scheduling_s / num_shards * 1e6, 1),
        peak_bytes=resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
        run_virtual_s=round(calls.now(), 1),
        driver_busy_share=round(scheduling_s / calls.now(), 4),
        tail_virtual_s=round(calls.now() - calls.last_lease_at, 1),
        ideal_virtual_s=round(num_shards * _SHARD_S * math.exp(0.3**2 / 2) / num_tokenizers, 1),
        num_retried=num_retried,
        num_second_leases=calls.num_leases - num_shards,
    )


def ray_calls(num_calls: int = 2000, num_waiting: int = 2000) -> dict[str, float]:
    """Microseconds of Ray's own calls on this machine: one actor call, and one `wait` over so many references."""
    import ray

    ray.init(address="local", num_cpus=1, include_dashboard=False, logging_level="ERROR", log_to_driver=False)

    @ray.remote
    class Actor:
        def report(self, value: int) -> int:
            return value

        def sleep(self) -> None:
            time.sleep(3600)

    actor = Actor.remote()  # type: ignore[attr-defined]
    ray.get(actor.report.remote(0))
    started = time.perf_counter()
    ray.get([actor.report.remote(number) for number in range(num_calls)])
    call_us = (time.perf_counter() - started) / num_calls * 1e6
    waiting = [actor.sleep.remote() for _ in range(num_waiting)]
    started = time.perf_counter()
    for _ in range(20):
        ray.wait(waiting, num_returns=len(waiting), timeout=0)
    wait_us = (time.perf_counter() - started) / 20 * 1e6
    ray.kill(actor)
    ray.shutdown()
    return {"call_us": round(call_us, 1), "wait_us": round(wait_us, 1), "num_waiting": num_waiting}


def _rss() -> int:
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * resource.getpagesize()


def _in_steps(num_shards: int) -> Iterator[int]:
    yield from (count for count in (num_shards // 100, num_shards // 10, num_shards) if count)


def main() -> int:
    """Print, and with --json write, one result a size."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shards", type=int, default=1_000_000)
    parser.add_argument("--tokenizers", type=int, default=1000)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    results: dict[str, Any] = {"runs": []}
    for count in _in_steps(options.shards):
        result = asdict(simulate(count, options.tokenizers))
        results["runs"].append(result)
        print(json.dumps(result), flush=True)
    results["ray"] = ray_calls()
    print(json.dumps(results["ray"]))
    if options.json:
        options.json.write_text(json.dumps(results, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
