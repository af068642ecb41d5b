"""A tokenizer that fails for ever, as after a CUDA error: it is replaced, and no shard pays for it."""

from __future__ import annotations

import functools
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

from tatok.pipeline.cluster import leases
from tatok.pipeline.monitoring.events import Event, Notice, ShardRetried
from tatok.pipeline.run import RunSummary
from tatok.schemas.errors import TatokError
from tatok.schemas.records import TokenSequence
from tests.support.fake_tokenizer import FakeTokenizer, load_fake
from tests.support.runs import job, rows, run

pytestmark = pytest.mark.usefixtures("local_ray")

ILLEGAL = torch.AcceleratorError("CUDA error: an illegal memory access was encountered")
LAUNCH = RuntimeError("CUDA error: CUBLAS_STATUS_EXECUTION_FAILED when calling `cublasSgemm(...)`")
ODD = ValueError("of a kind that nobody has listed")


@dataclass(frozen=True, kw_only=True)
class Poisoned(FakeTokenizer):
    """Fails after so many batches, and ever after; leaves a mark before it does."""

    folder: str
    error: Exception = ODD
    num_good: int = 0

    def encode(self, pixels: torch.Tensor) -> list[TokenSequence]:
        calls.append(len(pixels))
        if len(calls) > self.num_good:
            (Path(self.folder) / "failed").touch()
            raise self.error
        return super().encode(pixels)


calls: list[int] = []  # of this process


@dataclass(frozen=True, kw_only=True)
class Patient(FakeTokenizer):
    """Encodes nothing before the poisoned one has failed: on a busy machine it could do the whole job alone."""

    folder: str

    def encode(self, pixels: torch.Tensor) -> list[TokenSequence]:
        while not (Path(self.folder) / "failed").exists():
            time.sleep(0.02)
        return super().encode(pixels)


def load_poisoned_first(folder: str, error: Exception, num_good: int, device: str) -> FakeTokenizer:
    """Whoever comes first is poisoned; each process leaves its mark."""
    (Path(folder) / str(os.getpid())).touch()
    try:
        os.close(os.open(Path(folder) / "poisoned", os.O_CREAT | os.O_EXCL))
    except FileExistsError:
        return Patient(folder=folder, delay_s=0.1, device_name=device)
    return Poisoned(folder=folder, error=error, num_good=num_good)


def run_poisoned(
    source: str, tmp_path: Path, events: list[Event], error: Exception, num_good: int = 0, **resources: object
) -> RunSummary:
    (tmp_path / "marks").mkdir()
    load = functools.partial(load_poisoned_first, str(tmp_path / "marks"), error, num_good)
    config = job(source, tmp_path / "out", resources={"num_tokenizers": 2, **resources})
    return run(config, events, load_tokenizer=load)


@pytest.mark.parametrize(
    ("error", "num_decoders"),
    [
        pytest.param(ILLEGAL, 0, id="illegal-in-place"),
        pytest.param(LAUNCH, 1, id="cublas-decoders", marks=pytest.mark.long),
        pytest.param(ODD, 0, id="odd-in-place", marks=pytest.mark.long),
        pytest.param(ILLEGAL, 1, id="illegal-decoders", marks=pytest.mark.long),
        pytest.param(LAUNCH, 0, id="cublas-in-place", marks=pytest.mark.long),
        pytest.param(ODD, 1, id="odd-decoders", marks=pytest.mark.long),
    ],
)
def test_one_of_two_tokenizers_fails_for_ever(
    photo_shards: Callable[..., str], tmp_path: Path, num_decoders: int, error: Exception
) -> None:
    source = photo_shards(num_shards=20, photos_per_shard=3)
    events: list[Event] = []
    resources = {"num_decoders": 4 * num_decoders}
    summary = run_poisoned(source, tmp_path, events, error, **resources)
    assert (summary.status, summary.failed) == ("complete", {}), "no shard pays for it"
    assert [row["key"] for row in rows(tmp_path / "out")] == [f"photo-{i:04}" for i in range(60)]
    told = [event.message for event in events if isinstance(event, Notice)]
    (replaced,) = [message for message in told if not message.startswith("still waiting")]  # on a busy machine
    assert "is replaced" in replaced
    assert str(error).partition("\n")[0] in replaced
    num_processes = len(list((tmp_path / "marks").glob("[0-9]*")))
    assert num_processes in (2, 3), "the successor may come when all is done"
    retried = [event.reason for event in events if isinstance(event, ShardRetried)]
    assert any("device works no more" in reason for reason in retried) == (error is not ODD)
    if error is not ODD:
        assert len(retried) <= 4, "those at work at that moment, and no further one"


def test_the_only_tokenizer_fails_after_a_while(photo_shards: Callable[..., str], tmp_path: Path) -> None:
    """Nobody else shows that the shards are good, but itself did before."""
    source = photo_shards(num_shards=12, photos_per_shard=3)
    events: list[Event] = []
    summary = run_poisoned(source, tmp_path, events, ODD, num_good=3, num_tokenizers=1, num_decoders=1)
    assert (summary.status, summary.failed, summary.num_rows) == ("complete", {}, 36)
    assert sum(isinstance(event, Notice) for event in events) == 1


def load_where_nothing_works(device: str) -> FakeTokenizer:
    raise RuntimeError("CUDA error: all CUDA-capable devices are busy or unavailable")


def load_where_nothing_works_once(mark: str, device: str) -> FakeTokenizer:
    if not Path(mark).exists():
        Path(mark).touch()
        load_where_nothing_works(device)
    return load_fake(device)


def test_a_device_that_fails_while_the_model_loads(photo_shards: Callable[..., str], tmp_path: Path) -> None:
    """It costs a process, not the run."""
    events: list[Event] = []
    load = functools.partial(load_where_nothing_works_once, str(tmp_path / "mark"))
    assert run(job(photo_shards(1, 2), tmp_path / "out"), events, load_tokenizer=load).num_rows == 2
    assert any(isinstance(event, Notice) and "busy or unavailable" in event.message for event in events)


def test_devices_that_fail_everywhere_end_the_run(
    photo_shards: Callable[..., str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(leases, "DEATHS_APART_S", 0.0)
    monkeypatch.setattr(leases, "RESTART_BACKOFF_S", 0.0)
    monkeypatch.setattr(leases, "MAX_DEATHS_IN_A_ROW", 2)
    with pytest.raises(TatokError, match=r"busy or unavailable\nlook after the GPUs"):
        run(job(photo_shards(1, 1), tmp_path / "out"), load_tokenizer=load_where_nothing_works)
