"""A Ray of several nodes of which none has a GPU when the job starts; GPUs here are numbers that Ray is told."""

from __future__ import annotations

import functools
import json
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tatok.pipeline.cluster import gpu_wait
from tatok.pipeline.monitoring.events import Event, Notice
from tatok.pipeline.run import run_job
from tatok.schemas.errors import ConfigError
from tatok.schemas.job import JobConfig
from tests.support.fake_tokenizer import FakeTokenizer, load_fake
from tests.support.places import ROOT
from tests.support.processes import TalkingProcess

NOTICE_S = 8.0


@pytest.fixture(scope="module")
def nodes() -> Iterator[Any]:
    """A head with CPUs alone, in processes of its own."""
    from ray.cluster_utils import Cluster

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(ROOT))
        cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 3, "include_dashboard": False})
        yield cluster
        cluster.shutdown()


def driver(config: dict[str, Any], mark: Path, address: str) -> TalkingProcess:
    """A job in a process of its own, and what it says."""
    return TalkingProcess(__name__, json.dumps(config), str(mark), environment={"RAY_ADDRESS": address})


def load_and_note(mark: str, device: str) -> FakeTokenizer:
    import ray

    context = ray.get_runtime_context()
    gpus = context.get_accelerator_ids()["GPU"] if context.get_actor_id() else []
    Path(mark).write_text(f"{device} {context.get_node_id()} {','.join(gpus)}")
    return load_fake(device)


def document(source: str, output: Path, **options: Any) -> dict[str, Any]:
    resources = {"batch_size": 4, "num_decoders": 1} | options.pop("resources", {})
    return {
        "source": source,
        "output": str(output),
        "preprocessing": {"image_size": 64},
        "resources": resources,
        **options,
    }


def test_a_job_that_names_no_device_waits_for_a_while_and_then_takes_the_cpus(
    nodes: Any, photo_shards: Callable[..., str], tmp_path: Path
) -> None:
    config = document(photo_shards(1, 2), tmp_path / "out", resources={"gpu_wait_s": 3})
    process = driver(config, tmp_path / "mark", nodes.address)
    try:
        process.wait_for("Ray has no GPU: wait up to 3 s for one")
        started = time.monotonic()
        process.wait_for("no GPU has come within 3 s")
        assert time.monotonic() - started > 2
        process.wait_for("complete 2")
        assert process.end() == 0
    finally:
        process.kill()
    assert (tmp_path / "mark").read_text().startswith("cpu ")


@pytest.mark.timeout(400)
def test_a_job_for_gpus_waits_until_one_joins_and_runs_there(
    nodes: Any, photo_shards: Callable[..., str], tmp_path: Path
) -> None:
    config = document(photo_shards(3, 2), tmp_path / "out", device="cuda", resources={"num_tokenizers": 2})
    process = driver(config, tmp_path / "mark", nodes.address)
    try:
        process.wait_for("Ray has no GPU: asked it for 2, and wait for a node that has one (device: cuda)")
        for _ in range(2):
            assert "Ray has 1 node, 3 CPUs and no GPU" in process.wait_for("still waiting for a GPU after")
        assert not (tmp_path / "mark").exists(), "nothing is loaded, least of all on a CPU"
        node = nodes.add_node(num_cpus=2, num_gpus=1)
        process.wait_for("Ray has 1 GPU for 2 tokenizers; the others wait for theirs")
        process.wait_for("complete 6")
        assert process.end() == 0, process.said
    finally:
        process.kill()
    assert (tmp_path / "mark").read_text() == f"cuda {node.node_id} 0"
    nodes.remove_node(node)


@pytest.mark.usefixtures("local_ray")
def test_where_no_node_can_join_a_job_for_gpus_is_refused(
    photo_shards: Callable[..., str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    config = JobConfig.model_validate(document("a.tar", tmp_path / "out", device="cuda"))
    with pytest.raises(ConfigError, match="device is cuda, but Ray finds no GPU on this machine"):
        gpu_wait.size_with_gpus(config, most_gpus=1, may_grow=False, on_event=lambda event: None)
    events: list[Event] = []
    free = JobConfig.model_validate(document(photo_shards(1, 1), tmp_path / "out"))
    assert run_job(free, load_tokenizer=load_fake, on_event=events.append).num_rows == 1
    assert not any(isinstance(event, Notice) for event in events), "nor does one that names no device wait"


def main() -> None:
    """The driver's process."""
    gpu_wait._NOTICE_S = NOTICE_S

    def tell(event: Event) -> None:
        if isinstance(event, Notice):
            print(event.message, flush=True)

    config = JobConfig.model_validate(json.loads(sys.argv[1]))
    from tests.pipeline.cluster.test_gpu_wait import load_and_note as load  # by the name that workers know

    summary = run_job(config, load_tokenizer=functools.partial(load, sys.argv[2]), on_event=tell)
    print(summary.status, summary.num_rows, flush=True)


if __name__ == "__main__":
    main()
