from __future__ import annotations

import pytest

from tatok.pipeline.cluster.sizes import plan_sizes, resize
from tatok.schemas.errors import ConfigError
from tatok.schemas.job import JobConfig


def sizes(num_shards: int = 100, num_cpus: float = 8, num_gpus: float = 0, **resources: object) -> tuple[int, int, int]:
    config = JobConfig.model_validate({"source": "a", "output": "o", "resources": resources})
    plan = plan_sizes(config, num_shards=num_shards, num_cpus=num_cpus, num_gpus=num_gpus)
    assert plan.cpus_per_actor * plan.num_actors <= num_cpus + 1e-9
    return plan.num_tokenizers, plan.num_decoders, plan.shards_per_tokenizer


def test_sizes_fit_the_machine() -> None:
    assert sizes(num_cpus=64, num_gpus=4) == (4, 60, 15)
    assert sizes(num_cpus=2, num_gpus=1) == (1, 2, 2)
    assert sizes(num_shards=1, num_gpus=1) == (1, 1, 1)
    assert sizes(num_gpus=1, shards_in_flight=2) == (1, 2, 2)
    assert sizes(num_decoders=7) == (1, 7, 7)
    assert sizes(num_decoders=3, num_tokenizers=2) == (2, 3, 2)
    with pytest.raises(ConfigError, match="2 GPUs"):
        sizes(num_gpus=2, num_tokenizers=3)


def test_on_cpus_alone_tokenizers_decode_in_place() -> None:
    config = JobConfig(source="a", output="o")
    plan = plan_sizes(config, num_shards=100, num_cpus=8, num_gpus=0)
    assert (plan.decodes_in_place, plan.num_actors, plan.torch_threads, plan.cpus_per_actor) == (True, 8, 1, 1.0)
    assert sizes() == (8, 8, 1)
    assert sizes(num_cpus=0.5) == (1, 1, 1)
    assert sizes(num_shards=3) == (3, 3, 1)
    assert sizes(num_tokenizers=2, shards_in_flight=3) == (2, 6, 3)
    assert sizes(num_gpus=2, num_decoders=0) == (2, 2, 1), "whoever asks for it"
    more = resize(plan, config, num_shards=100, num_cpus=12, num_gpus=2)
    assert (more.num_tokenizers, more.gpus_per_tokenizer, more.decodes_in_place) == (12, 0, True)


def test_the_threads_of_a_tokenizer_do_not_depend_on_how_many_shards_are_left() -> None:
    for wanted, threads in ((None, 1), (2, 4), (1, 8)):
        config = JobConfig.model_validate({"source": "a", "output": "o", "resources": {"num_tokenizers": wanted}})
        for num_shards in (100, 1):
            assert plan_sizes(config, num_shards=num_shards, num_cpus=8, num_gpus=0).torch_threads == threads


def test_gpus_are_asked_for_only_where_wanted() -> None:
    on_cpu = JobConfig(source="a", output="o", device="cpu")
    assert plan_sizes(on_cpu, num_shards=9, num_cpus=4, num_gpus=2).gpus_per_tokenizer == 0
    anywhere = JobConfig(source="a", output="o")
    assert plan_sizes(anywhere, num_shards=9, num_cpus=4, num_gpus=2).gpus_per_tokenizer == 1
    for num_gpus in (0, 2):
        on_gpu = plan_sizes(
            JobConfig(source="a", output="o", device="cuda"), num_shards=9, num_cpus=4, num_gpus=num_gpus
        )
        assert (on_gpu.gpus_per_tokenizer, on_gpu.num_tokenizers, on_gpu.device) == (1, max(num_gpus, 1), "cuda")


@pytest.mark.parametrize(
    ("wanted", "num_gpus", "device"),
    [(None, 2, "cuda"), (None, 0, "cpu"), ("cpu", 2, "cpu"), ("cuda", 2, "cuda"), ("mps", 0, "mps")],
)
def test_the_device_is_planned_and_not_what_a_node_happens_to_have(
    wanted: str | None, num_gpus: int, device: str
) -> None:
    config = JobConfig(source="a", output="o", device=wanted)
    plan = plan_sizes(config, num_shards=9, num_cpus=4, num_gpus=num_gpus)
    assert (plan.device, plan.gpus_per_tokenizer) == (device, 1 if device == "cuda" else 0)


def test_without_a_gpu_there_is_no_tf32() -> None:
    config = JobConfig(source="a", output="o", precision="tf32")
    assert plan_sizes(config, num_shards=9, num_cpus=4, num_gpus=1).device == "cuda"
    with pytest.raises(ConfigError, match="say device: cuda, so that the job waits"):
        plan_sizes(config, num_shards=9, num_cpus=4, num_gpus=0)


def test_batches_are_larger_on_gpus() -> None:
    for num_gpus, wanted, batch_size in ((1, None, 256), (0, None, 16), (1, 32, 32), (0, 64, 64)):
        config = JobConfig.model_validate({"source": "a", "output": "o", "resources": {"batch_size": wanted}})
        assert plan_sizes(config, num_shards=9, num_cpus=4, num_gpus=num_gpus).batch_size == batch_size


def test_a_running_job_follows_its_cluster() -> None:
    config = JobConfig.model_validate({"source": "a", "output": "o", "resources": {"num_tokenizers": 2}})
    first = plan_sizes(config, num_shards=100, num_cpus=8, num_gpus=2)
    more = resize(first, config, num_shards=100, num_cpus=16, num_gpus=2)
    assert (more.num_tokenizers, more.num_decoders) == (2, 14)
    for num_gpus in (0, 1):  # nodes are lost; they or others may come back
        fewer = resize(first, config, num_shards=100, num_cpus=4, num_gpus=num_gpus)
        assert (fewer.num_tokenizers, fewer.gpus_per_tokenizer) == (2, 1)
    last = resize(first, config, num_shards=1, num_cpus=8, num_gpus=2)
    assert (last.num_tokenizers, last.num_decoders) == (1, 1)
    done = resize(first, config, num_shards=0, num_cpus=8, num_gpus=2)
    assert (done.num_tokenizers, done.num_decoders) == (0, 0), "the last shard was committed a moment ago"


@pytest.mark.parametrize(
    ("num_shards", "num_pieces", "num_gpus", "resources", "found"),
    [
        (1, 50, 0, {}, (16, 1, 1)),
        (1, 3, 0, {}, (3, 1, 1)),
        (1, 1, 0, {"num_tokenizers": 4}, (1, 1, 1)),
        (1, 50, 0, {"num_tokenizers": 1}, (1, 1, 1)),
        (3, 50, 0, {"num_tokenizers": 2, "shards_in_flight": 2}, (2, 3, 2)),
        (1, 50, 4, {}, (1, 15, 1)),  # one GPU has long done what takes a core a minute
        (1, 1000, 4, {}, (2, 14, 1)),  # and one process hands on the pixels of two
        (3, 1000, 4, {}, (4, 12, 1)),
        (1, 1000, 1, {"num_tokenizers": 4}, (1, 15, 1)),
        (1, 50, 0, {"num_tokenizers": 2, "num_decoders": 3}, (2, 3, 1)),
    ],
)
def test_large_shards_are_worth_several_processes(
    num_shards: int, num_pieces: int, num_gpus: int, resources: dict[str, int], found: tuple[int, int, int]
) -> None:
    config = JobConfig.model_validate({"source": "a", "output": "o", "resources": resources})
    plan = plan_sizes(config, num_shards=num_shards, num_pieces=num_pieces, num_cpus=16, num_gpus=num_gpus)
    assert (plan.num_tokenizers, plan.num_decoders, plan.shards_per_tokenizer) == found
