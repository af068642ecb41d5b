"""The scale benchmark's tiny twin: the real scheduler in virtual time does every shard, and its cost does not grow."""

from __future__ import annotations

import tracemalloc

import fsspec
import pytest

from benchmarks.speed.scale import SimulatedBucket, simulate
from tatok.pipeline.planning.plan import plan_shards
from tests.support.simulated_calls import SimulatedCalls


def test_every_shard_is_done_in_about_the_ideal_time() -> None:
    small = simulate(2000, 20)
    assert small.num_retried > 0, "some attempts fail, as the seed has it"
    assert small.num_second_leases >= small.num_retried
    assert small.ideal_virtual_s < small.run_virtual_s < 1.5 * small.ideal_virtual_s
    assert small.tail_virtual_s < 120


def test_the_cost_of_a_shard_does_not_grow_with_their_number() -> None:
    few, many = simulate(1000, 20), simulate(8000, 20)
    assert many.scheduling_us_a_shard < 3 * few.scheduling_us_a_shard


def test_a_plan_takes_little_memory_while_it_is_made() -> None:
    fsspec.register_implementation("million", SimulatedBucket, clobber=True)
    SimulatedBucket.num_files = 8000
    plan_shards(["million://bucket/*/*.tar"])
    tracemalloc.start()
    try:
        shards = plan_shards(["million://bucket/*/*.tar"])
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak / len(shards) < 1500, "bytes a shard"


def test_virtual_time_stands_still_without_events() -> None:
    calls = SimulatedCalls(0)
    assert calls.wait((), timeout_s=1.0) == ()
    assert calls.now() == pytest.approx(1.0)
