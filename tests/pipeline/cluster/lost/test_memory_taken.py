"""A Ray whose memory monitor is on, while another process takes the machine's memory and gives it back."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import pytest
import torch
from ray._common.utils import get_system_memory
from ray._private.utils import get_used_memory

from tatok.pipeline.monitoring.events import Event, Notice, ShardRetried, Throughput
from tatok.pipeline.run import run_job
from tatok.pipeline.verify.dataset import verify_output
from tatok.schemas.job import JobConfig
from tatok.schemas.records import TokenSequence
from tests.support.fake_tokenizer import FakeTokenizer
from tests.support.processes import TalkingProcess
from tests.support.runs import MOSTLY_BY_DECODERS

MARGIN_BYTES = 4 << 30  # above what is used as a test begins; Ray and the run take about half of it
MOST_BYTES = 6 << 30
_TAKE = """
import sys, time
held = []
for _ in range(int(sys.argv[1]) >> 26):
    held.append(b"x" * (1 << 26))
    time.sleep(0.02)
print("all taken", flush=True)
sys.stdin.read()
"""


@contextmanager
def memory_taken() -> Iterator[None]:
    """Another process takes memory, a piece after the other, and holds it for the time of the block."""
    holder = subprocess.Popen([sys.executable, "-c", _TAKE, str(MOST_BYTES)], stdin=subprocess.PIPE)
    try:
        yield
    finally:
        holder.kill()
        holder.wait()
        assert holder.stdin is not None
        holder.stdin.close()


@pytest.fixture
def monitored() -> dict[str, str]:
    """The environment of a Ray whose monitor kills above a threshold that is near."""
    total, used = get_system_memory(), get_used_memory()
    if total - used < MARGIN_BYTES + MOST_BYTES:
        pytest.skip(f"needs {(MARGIN_BYTES + MOST_BYTES) >> 30} GiB of free memory")
    return {
        "RAY_ADDRESS": "local",
        "RAY_memory_usage_threshold": f"{(used + MARGIN_BYTES) / total:.6f}",
        "RAY_memory_monitor_refresh_ms": "100",
    }


@pytest.mark.long  # what such a death costs is in test_leases.py, that a lost process costs nothing in the file beside
@MOSTLY_BY_DECODERS
@pytest.mark.timeout(600)
def test_the_monitor_kills_and_the_run_finishes(
    photo_shards: Callable[..., str], tmp_path: Path, monitored: dict[str, str], num_decoders: int
) -> None:
    source = photo_shards(num_shards=4, photos_per_shard=10)
    config = {
        "source": source,
        "output": str(tmp_path / "out"),
        "preprocessing": {"image_size": 64},
        "resources": {"batch_size": 2, "num_tokenizers": 2, "num_decoders": 2 * num_decoders},
    }
    held = tmp_path / "held"
    driver = TalkingProcess(__name__, json.dumps(config), str(held), environment=monitored)
    try:
        driver.wait_for("at work", seconds=240)
        held.touch()  # the run must not be over before somebody is killed
        with memory_taken():
            driver.wait_for("running low on memory", seconds=240)
            # Whatever starts meanwhile dies, too, and then waits for a while.
            assert "running low on memory" in driver.wait_for("processes die in a row", seconds=240)
        held.unlink()
        driver.wait_for("complete 40 failed 0", seconds=240)
        assert driver.end() == 0, driver.said
    finally:
        driver.kill()
    found = verify_output(str(tmp_path / "out"), [source])
    assert found.findings == ()
    assert (found.num_rows, found.num_rejects, found.num_samples) == (40, 0, 40)


@dataclass(frozen=True, kw_only=True)
class HeldTokenizer(FakeTokenizer):
    """Slow, and gives nothing while the file `held` is there."""

    held: str

    def encode(self, pixels: torch.Tensor) -> list[TokenSequence]:
        while Path(self.held).exists():
            time.sleep(0.1)
        return super().encode(pixels)


def load_held(held: str, device: str) -> HeldTokenizer:
    return HeldTokenizer(held=held, device_name=device, delay_s=1.0)


def main() -> None:
    """The driver's process."""
    is_at_work = False

    def tell(event: Event) -> None:
        nonlocal is_at_work
        if isinstance(event, Notice):
            print(event.message, flush=True)
        elif isinstance(event, ShardRetried):
            print(event.reason, flush=True)
        elif isinstance(event, Throughput) and event.num_rows and not is_at_work:
            is_at_work = True
            print("at work", flush=True)

    from tests.pipeline.cluster.lost.test_memory_taken import load_held  # by the name that workers know

    load = partial(load_held, sys.argv[2])
    summary = run_job(JobConfig.model_validate(json.loads(sys.argv[1])), load_tokenizer=load, on_event=tell)
    print(summary.status, summary.num_rows, "failed", len(summary.failed), flush=True)


if __name__ == "__main__":
    main()
