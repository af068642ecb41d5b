from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from tatok.pipeline.cluster.leases import Attempt
from tatok.pipeline.cluster.scheduler import Scheduler
from tatok.pipeline.cluster.sizes import Sizes
from tatok.pipeline.cluster.slots import Decoder, IdleDecoders
from tatok.schemas.job import JobConfig
from tests.support.parts import shard
from tests.support.simulated_calls import SimulatedCalls


def decoder(node: str) -> Decoder:
    return Decoder(actor=object(), node=node)


def test_neighbours_come_first_and_other_tokenizers_neighbours_last() -> None:
    idle = IdleDecoders()
    a, b, c, more_of_a = (decoder(node) for node in "abca")
    for each in (b, a, c, more_of_a):
        idle.add(each)
    assert len(idle) == 4
    tokenizers = {"a", "b"}
    assert [idle.take("a", tokenizers) for _ in range(4)] == [a, more_of_a, c, b]
    assert (len(idle), set(idle.nodes)) == (0, set())


def test_tokenizers_that_decode_have_no_neighbours() -> None:
    idle = IdleDecoders()
    idle.add(None)
    idle.add(None)
    assert [idle.take("a", {"a"}) for _ in range(len(idle))] == [None, None]


class NotingCalls(SimulatedCalls):
    """Notes whether each shard was decoded on its tokenizer's node."""

    def __init__(self, seed: int, num_nodes: int) -> None:
        super().__init__(seed, num_nodes=num_nodes)
        self.pairs = Counter[bool]()

    def run_shard(self, tokenizer: Any, attempt: Attempt, decoder: Any, fingerprint: Mapping[str, str]) -> Any:
        self.pairs[self.node(tokenizer) == self.node(decoder)] += 1
        return super().run_shard(tokenizer, attempt, decoder, fingerprint)

    def resources(self) -> Mapping[str, float]:
        return {"CPU": 16.0, "GPU": 4.0}


@pytest.mark.parametrize("seed", range(5))
def test_pixels_seldom_cross_the_network(seed: int) -> None:
    """Four nodes, each with a tokenizer and three decoders."""
    config = JobConfig(source=("a",), output="o")
    sizes = Sizes(
        num_tokenizers=4,
        num_decoders=12,
        shards_per_tokenizer=3,
        gpus_per_tokenizer=1.0,
        cpus_per_actor=1.0,
        torch_threads=1,
        device="cuda",
        batch_size=256,
    )
    calls = NotingCalls(seed, 4)
    shards = [shard(f"s{number}") for number in range(400)]
    outcome = Scheduler(config, shards, sizes, calls, lambda spec: {}, lambda event: None).run()
    assert len(outcome.reports) == 400
    assert calls.pairs[True] >= 0.9 * calls.pairs.total(), calls.pairs


@pytest.mark.usefixtures("local_ray")
def test_actors_tell_where_they_are(tmp_path: Path) -> None:
    import ray

    from tatok.pipeline.cluster.workers.decoder import DecodeWorker
    from tatok.pipeline.storage.store import OutputStore

    config = JobConfig(source=("a",), output=str(tmp_path))
    actor = DecodeWorker.remote(config, OutputStore.open(str(tmp_path)))  # type: ignore[attr-defined]
    assert ray.get(actor.ready.remote()).node == ray.get_runtime_context().get_node_id()
    ray.kill(actor)
