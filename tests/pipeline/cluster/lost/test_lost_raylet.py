"""A node whose raylet is killed while the first actors start on it; another node joins."""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tatok.pipeline.monitoring.events import Event, Notice, ShardRetried
from tatok.pipeline.run import run_job
from tatok.pipeline.verify.dataset import verify_output
from tatok.schemas.job import JobConfig
from tests.support.fake_tokenizer import FakeTokenizer, load_fake
from tests.support.places import ROOT
from tests.support.processes import TalkingProcess
from tests.support.runs import IN_PLACE_TOO


@pytest.fixture
def head() -> Iterator[Any]:
    """A Ray whose only node has no room for actors."""
    from ray.cluster_utils import Cluster

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(ROOT))
        cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
        yield cluster
        cluster.shutdown()


def load_slowly_at_first(mark: Path, device: str) -> FakeTokenizer:
    """Whoever comes first says so by a mark, and is not done before its node is gone."""
    import ray

    if ray.get_runtime_context().get_actor_id():
        try:
            os.close(os.open(mark, os.O_CREAT | os.O_EXCL))
        except FileExistsError:
            pass
        else:
            time.sleep(300)
    return load_fake(device)


@pytest.mark.long  # the chaos bench's twin kills a raylet, too
@IN_PLACE_TOO
@pytest.mark.timeout(600)
def test_a_raylet_is_killed_as_the_actors_start(
    head: Any, photo_shards: Callable[..., str], tmp_path: Path, num_decoders: int
) -> None:
    source = photo_shards(num_shards=3, photos_per_shard=4)
    config = {
        "source": source,
        "output": str(tmp_path / "out"),
        "device": "cpu",
        "preprocessing": {"image_size": 64},
        "resources": {"batch_size": 4, "num_decoders": num_decoders},
    }
    mark = tmp_path / "mark"
    driver = TalkingProcess(__name__, json.dumps(config), str(mark), environment={"RAY_ADDRESS": head.address})
    try:
        driver.wait_for("connected", seconds=240)  # to the head, as the only node: with another one it would die
        node = head.add_node(num_cpus=2)
        driver.wait_for("starts", seconds=240)
        os.kill(node.all_processes["raylet"][0].process.pid, signal.SIGKILL)
        head.add_node(num_cpus=2)
        driver.wait_for("complete 12 failed 0", seconds=240)
        assert driver.end() == 0, driver.said
    finally:
        driver.kill()
    found = verify_output(str(tmp_path / "out"), [source])
    assert found.findings == ()
    assert (found.num_rows, found.num_rejects, found.num_samples) == (12, 0, 12)


def main() -> None:
    """The driver's process."""
    import functools

    from tatok.pipeline.cluster.driver import start_ray

    def tell(event: Event) -> None:
        if isinstance(event, Notice):
            print(event.message, flush=True)
        elif isinstance(event, ShardRetried):
            print(event.reason, flush=True)

    def watch() -> None:
        while not mark.exists():
            time.sleep(0.05)
        print("starts", flush=True)

    mark = Path(sys.argv[2])
    threading.Thread(target=watch, daemon=True).start()
    from tests.pipeline.cluster.lost.test_lost_raylet import load_slowly_at_first as load  # as workers know it

    config = JobConfig.model_validate(json.loads(sys.argv[1]))
    start_ray(config, 0)
    print("connected", flush=True)
    summary = run_job(config, load_tokenizer=functools.partial(load, mark), on_event=tell)
    print(summary.status, summary.num_rows, "failed", len(summary.failed), flush=True)


if __name__ == "__main__":
    main()
