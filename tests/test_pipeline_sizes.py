from __future__ import annotations

import pytest

from pipeline.sizes import plan_sizes, resize
from schemas.errors import ConfigError
from schemas.job import JobConfig


def sizes(num_shards: int = 100, num_cpus: float = 8, num_gpus: float = 0, **resources: object) -> tuple[int, int, int]:
    config = JobConfig.model_validate({"source": "a", "output": "o", "resources": resources})
    plan = plan_sizes(config, num_shards=num_shards, num_cpus=num_cpus, num_gpus=num_gpus)
    assert plan.cpus_per_actor * (plan.num_tokenizers + plan.num_decoders) <= num_cpus + 1e-9
    return plan.num_tokenizers, plan.num_decoders, plan.shards_per_tokenizer


def test_sizes_fit_the_machine() -> None:
    assert sizes() == (1, 7, 7)
    assert sizes(num_cpus=2) == (1, 2, 2)
    assert sizes(num_cpus=1) == (1, 2, 2)
    assert sizes(num_cpus=64, num_gpus=4) == (4, 60, 15)
    assert sizes(num_shards=1) == (1, 1, 1)
    assert sizes(num_decoders=3, num_tokenizers=2) == (2, 3, 2)
    assert sizes(shards_in_flight=2) == (1, 2, 2)
    with pytest.raises(ConfigError, match="2 GPUs"):
        sizes(num_gpus=2, num_tokenizers=3)


def test_gpus_are_asked_for_only_where_wanted() -> None:
    on_cpu = JobConfig(source="a", output="o", device="cpu")
    assert plan_sizes(on_cpu, num_shards=9, num_cpus=4, num_gpus=2).gpus_per_tokenizer == 0
    anywhere = JobConfig(source="a", output="o")
    assert plan_sizes(anywhere, num_shards=9, num_cpus=4, num_gpus=2).gpus_per_tokenizer == 1


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
