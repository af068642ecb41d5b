"""Processes that are killed or hang, sources that cannot be read: what a run with a fake model makes of them."""

from __future__ import annotations

import functools
import os
import shutil
import signal
from collections.abc import Callable
from pathlib import Path

import pytest

from tatok.pipeline.cluster import crew, driver, leases
from tatok.pipeline.monitoring.events import (
    Event,
    ShardFailed,
    ShardRetried,
    ShardsPlanned,
    Throughput,
)
from tests.support.fake_tokenizer import FakeTokenizer, load_fake
from tests.support.photos import endless_jpeg, photo_members, tar_bytes
from tests.support.processes import descendants
from tests.support.runs import MOSTLY_BY_DECODERS, MOSTLY_IN_PLACE, job, rejects, rows, run

pytestmark = pytest.mark.usefixtures("local_ray")


def test_killed_decoders_cost_nothing(photo_shards: Callable[..., str], tmp_path: Path) -> None:
    source = photo_shards(num_shards=3, photos_per_shard=20)
    killed: list[int] = []
    events: list[Event] = []

    def kill_once(event: Event) -> None:
        events.append(event)
        if isinstance(event, Throughput) and event.num_rows and not killed:
            for pid in descendants("DecodeWorker"):
                os.kill(pid, signal.SIGKILL)
                killed.append(pid)

    # One chunk ahead, and a slow model: the decoders are busy for most of the run.
    config = job(source, tmp_path / "out", resources={"num_decoders": 2, "max_bytes_in_flight": 1 << 20})
    slow = functools.partial(load_fake, delay_s=0.2)
    summary = run(config, on_event=kill_once, load_tokenizer=slow)
    assert killed
    assert summary.status == "complete"
    assert [row["key"] for row in rows(tmp_path / "out")] == [f"photo-{i:04}" for i in range(60)]


@MOSTLY_BY_DECODERS
def test_killed_tokenizer_is_replaced(photo_shards: Callable[..., str], tmp_path: Path, num_decoders: int) -> None:
    source = photo_shards(num_shards=2)
    events: list[Event] = []
    load = functools.partial(load_fake, kill_self_once=str(tmp_path / "killed"))
    config = job(source, tmp_path / "out", resources={"num_decoders": num_decoders})
    summary = run(config, events, load_tokenizer=load)
    assert (tmp_path / "killed").exists()
    assert (summary.status, summary.num_rows) == ("complete", 20)
    assert any(isinstance(event, ShardRetried) and "tokenizer" in event.reason for event in events)


def load_at_the_second_attempt(mark: str, device: str) -> FakeTokenizer:
    if not Path(mark).exists():
        Path(mark).touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return load_fake(device)


def test_decoders_make_room_for_a_tokenizer_where_a_node_is_lost_before_any_has_loaded(
    photo_shards: Callable[..., str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Planned for five CPUs, of which four are there; what the dying tokenizer leaves, a waiting decoder takes.
    promised = iter([{"CPU": 5.0}])
    there = driver.ray.cluster_resources
    monkeypatch.setattr(driver.ray, "cluster_resources", lambda: next(promised, None) or there())
    monkeypatch.setattr(crew, "_RESIZE_S", 0.5)
    monkeypatch.setattr(crew, "_ROOM_S", 1.0)
    config = job(photo_shards(num_shards=5, photos_per_shard=2), tmp_path / "out", resources={"num_decoders": 4})
    load = functools.partial(load_at_the_second_attempt, str(tmp_path / "mark"))
    summary = run(config, load_tokenizer=load)
    assert (summary.status, summary.num_rows) == ("complete", 10)


@MOSTLY_IN_PLACE
def test_hanging_source_is_given_up_and_named(
    photo_shards: Callable[..., str], tmp_path: Path, num_decoders: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    photo_shards(num_shards=2)
    os.mkfifo(tmp_path / "source" / "hangs.tar")
    source = f"{tmp_path}/source/{{hangs,photos-0000,photos-0001}}.tar"
    events: list[Event] = []
    monkeypatch.setattr(leases, "STRAGGLER_S", 2.0)  # it hangs for longer than a straggler may take
    config = job(source, tmp_path / "out", resources={"decode_timeout_s": 3, "num_decoders": num_decoders})
    summary = run(config, events)
    assert summary.status == "shards_failed"
    assert [Path(shard.uri).name for shard in summary.failed] == ["hangs.tar"]
    assert summary.num_rows == 20
    assert not (tmp_path / "out" / "_SUCCESS").exists()
    retried = [event for event in events if isinstance(event, ShardRetried)]
    assert [Path(event.shard.uri).name for event in retried].count("hangs.tar") == 1
    assert all("decode_timeout_s" in event.reason for event in retried), "on a busy machine good ones may be late, too"
    (failed,) = [event for event in events if isinstance(event, ShardFailed)]
    assert "decode_timeout_s" in failed.reason


def test_a_shard_that_cannot_be_read_is_reported_once_and_too_many_stop_the_run(
    photo_shards: Callable[..., str], tmp_path: Path
) -> None:
    source = photo_shards(num_shards=6, photos_per_shard=3)
    config = job(source, tmp_path / "out")

    def without_shards(event: Event) -> None:
        events.append(event)
        if isinstance(event, ShardsPlanned):  # they vanish between planning and reading
            for number in range(5):
                (tmp_path / "source" / f"photos-{number:04}.tar").unlink()

    events: list[Event] = []
    summary = run(config, on_event=without_shards)
    assert (summary.status, len(summary.failed), summary.num_rows) == ("shards_failed", 5, 3)
    assert not any(isinstance(event, ShardRetried) for event in events), "there is no use in looking again"
    assert all("No such file" in failure.message for failure in summary.failed.values())

    shutil.rmtree(tmp_path / "out")
    photo_shards(num_shards=6, photos_per_shard=3)
    events.clear()
    config = config.model_copy(update={"limits": config.limits.model_copy(update={"max_failed_shards": 2})})
    summary = run(config, on_event=without_shards)
    assert (summary.status, summary.num_parts) == ("too_many_failed_shards", 0)
    assert len(summary.failed) == 2


def test_a_file_cut_on_its_way_is_tried_again(photo_shards: Callable[..., str], tmp_path: Path) -> None:
    source = photo_shards(num_shards=1, photos_per_shard=6)
    path = tmp_path / "source" / "photos-0000.tar"
    whole = path.read_bytes()
    events: list[Event] = []

    def cut_once(event: Event) -> None:
        events.append(event)
        if isinstance(event, ShardsPlanned):
            path.write_bytes(whole[:10_000])
        if isinstance(event, ShardRetried):
            path.write_bytes(whole)

    summary = run(job(source, tmp_path / "out"), on_event=cut_once)
    assert (summary.status, summary.num_rows, summary.rejects) == ("complete", 6, {})
    (retried,) = [event for event in events if isinstance(event, ShardRetried)]
    assert "ended after 10000 of" in retried.reason


@MOSTLY_BY_DECODERS
def test_a_sample_that_hangs_its_decoder_is_found(
    photo_shards: Callable[..., str], tmp_path: Path, num_decoders: int
) -> None:
    photo_shards(num_shards=2, photos_per_shard=5)
    members = [*photo_members(20, 3), ("endless.jpg", endless_jpeg()), *photo_members(23, 3)]
    (tmp_path / "source" / "poison.tar").write_bytes(tar_bytes(members))
    events: list[Event] = []
    config = job(
        str(tmp_path / "source"), tmp_path / "out", resources={"decode_timeout_s": 5, "num_decoders": num_decoders}
    )
    summary = run(config, events)
    assert (summary.status, summary.num_rows, summary.rejects) == ("complete", 16, {"decoder_hang": 1})
    (reject,) = rejects(tmp_path / "out")
    assert (reject["key"], reject["source_index"], reject["stage"]) == ("endless", 3, "decode")
    assert sum(isinstance(event, ShardRetried) for event in events) == 1


def test_too_many_rejects_stop_the_run(tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.mkdir()
    for i in range(8):
        bad = [(f"bad-{j:03}.jpg", b"text") for j in range(60)]
        (source / f"{i}.tar").write_bytes(tar_bytes([*photo_members(i, 1), *bad]))
    config = job(str(source), tmp_path / "out")
    summary = run(config)
    assert summary.status == "too_many_rejects"
    assert len(summary.reports) < 8
    assert not (tmp_path / "out" / "_SUCCESS").exists()
    done = [report.shard.uri for report in summary.reports]
    rest = config.model_copy(update={"source": tuple(done)})
    assert run(rest).status == "too_many_rejects", "the limit holds for the whole dataset, with nothing to do too"
    lenient = rest.model_copy(update={"limits": rest.limits.model_copy(update={"max_reject_fraction": 1.0})})
    assert run(lenient).status == "complete"
    assert (tmp_path / "out" / "_SUCCESS").exists()
