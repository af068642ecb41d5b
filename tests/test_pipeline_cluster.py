"""The whole job on a real local Ray, with a fake model."""

from __future__ import annotations

import functools
import json
import os
import shutil
import signal
import sys
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pyarrow.dataset as ds
import pyarrow.parquet as pq
import pytest
import torch
from conftest import encoded, jpeg, photo_members, tar_bytes, write_photo_shards
from fake_tokenizer import FakeTokenizer, load_fake, load_other_fake
from test_pipeline_decode import png_bomb
from tiny_checkpoint import tiny_checkpoint

from pipeline import cluster, scheduler
from pipeline.events import Event, Notice, ShardCommitted, ShardFailed, ShardRetried, ShardsPlanned, Throughput
from pipeline.fingerprint import TokenizerSpec
from pipeline.run import RunSummary, check_image_size, run_job
from schemas.errors import CommitError, ConfigError
from schemas.job import JobConfig
from schemas.records import TokenSequence
from tatok.parts import TokenizedData

pytestmark = pytest.mark.usefixtures("local_ray")


IN_PLACE_TOO = pytest.mark.parametrize("num_decoders", [1, 0], ids=["decoders", "in-place"])


def job(source: str, output: Path, **sections: object) -> JobConfig:
    resources = {"batch_size": 4, "num_decoders": 1, **sections.pop("resources", {})}  # type: ignore[dict-item]
    document = {
        "source": source,
        "output": str(output),
        "preprocessing": {"image_size": 64},
        "resources": resources,
        **sections,
    }
    return JobConfig.model_validate(document)


def run(config: JobConfig, events: list[Event] | None = None, **options: object) -> RunSummary:
    on_event = events.append if events is not None else lambda event: None
    return run_job(config, **{"load_tokenizer": load_fake, "on_event": on_event, **options})  # type: ignore[arg-type]


def rows(output: Path) -> list[dict[str, object]]:
    table = ds.dataset(output / "data").to_table()
    return sorted(table.to_pylist(), key=lambda row: (row["source_uri"], row["source_index"]))


def rejects(output: Path) -> list[dict[str, object]]:
    return ds.dataset(output / "rejects").to_table().to_pylist()


def published(output: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in (output / "data").iterdir()}


@dataclass(frozen=True, kw_only=True)
class Finished:
    """A data set of 4 shards of 10 photos, to be left as it is."""

    source: str
    output: Path
    summary: RunSummary
    events: list[Event]


@pytest.fixture(scope="module")
def finished(local_ray: None, tmp_path_factory: pytest.TempPathFactory) -> Finished:
    folder = tmp_path_factory.mktemp("finished")
    source = write_photo_shards(folder, 4, 10)
    events: list[Event] = []
    summary = run(job(source, folder / "out", resources={"num_decoders": 2}), events)
    return Finished(source=source, output=folder / "out", summary=summary, events=events)


def test_photos_in_tokens_out(finished: Finished) -> None:
    summary, output = finished.summary, finished.output
    assert (summary.status, summary.num_parts, summary.num_rows, summary.num_rejects) == ("complete", 4, 40, 0)
    table = rows(output)
    assert [row["key"] for row in table] == [f"photo-{i:04}" for i in range(40)]
    assert [row["caption"] for row in table] == [f"caption {i}" for i in range(40)]
    assert [row["label"] for row in table] == [str(i % 10) for i in range(40)]
    assert [json.loads(str(row["metadata"])) for row in table] == [{"number": i} for i in range(40)]
    assert [(row["width"], row["height"]) for row in table] == [(64 + i % 40, 64) for i in range(40)]
    assert all(row["num_tokens"] == len(row["tokens"]) for row in table)  # type: ignore[arg-type]
    assert len({row["num_tokens"] for row in table}) > 3
    assert len({row["sample_id"] for row in table}) == 40
    names = sorted(path.name for path in output.iterdir())
    assert names == ["_SUCCESS", "data", "manifest.json", "rejects", "run.json", "runs"]
    [record] = TokenizedData.open(output).runs()
    assert (record.status, record.num_shards, record.num_rows, record.num_failed_shards) == ("complete", 4, 40, 0)
    assert record.num_tokens == summary.num_tokens
    assert 0 < record.seconds < 600
    assert sum(isinstance(event, ShardCommitted) for event in finished.events) == 4
    assert [event.num_rows for event in finished.events if isinstance(event, Throughput)][-1] == 40


def test_footer_names_source_and_fingerprint(finished: Finished) -> None:
    recorded = json.loads((finished.output / "run.json").read_text())
    for part in (finished.output / "data").iterdir():
        footer = pq.read_metadata(part).metadata
        assert Path(json.loads(footer[b"tatok.shard"])["uri"]).name.startswith("photos-")
        assert json.loads(footer[b"tatok.fingerprint"]) == recorded["fingerprint"]


def test_nothing_is_done_twice(finished: Finished, monkeypatch: pytest.MonkeyPatch) -> None:
    before = published(finished.output)
    monkeypatch.setitem(sys.modules, "pipeline.cluster", None)  # Ray must not even be imported
    started = time.monotonic()
    again = run(job(finished.source, finished.output))
    assert time.monotonic() - started < 10
    assert (again.status, again.reports, again.num_rows) == ("complete", (), 40)
    assert published(finished.output) == before


def test_lost_part_is_restored_byte_for_byte(finished: Finished, tmp_path: Path) -> None:
    output = tmp_path / "out"
    shutil.copytree(finished.output, output)
    before = published(output)
    victim = sorted(before)[1]
    (output / "data" / victim).unlink()
    restored = run(job(finished.source, output))
    assert [f"part-{report.shard.shard_id}.parquet" for report in restored.reports] == [victim]
    assert published(output) == before
    assert (output / "manifest.json").read_bytes() == (finished.output / "manifest.json").read_bytes()
    assert (output / "_SUCCESS").exists()


def test_other_settings_are_refused(finished: Finished, tmp_path: Path) -> None:
    before = published(finished.output)
    with pytest.raises(CommitError, match=r"tokenizer\.weights: \w+ -> \w+"):
        run(job(finished.source, finished.output), load_tokenizer=load_other_fake)
    more = write_photo_shards(tmp_path, 1, 2)
    with pytest.raises(CommitError, match=r"preprocessing\.resample"):
        run(job(more, finished.output, preprocessing={"image_size": 64, "resample": "lanczos"}))
    assert published(finished.output) == before
    assert (finished.output / "_SUCCESS").exists()


def test_parts_of_former_sources_are_mentioned(finished: Finished) -> None:
    events: list[Event] = []
    summary = run(job(finished.source.replace("0003", "0002"), finished.output), events)
    assert summary.num_parts == 4
    assert any(isinstance(event, Notice) and "1 parts" in event.message for event in events)


@pytest.mark.corpus
def test_real_photos(corpus: Path, tmp_path: Path) -> None:
    output = tmp_path / "out"
    source = f"{corpus}/photos-raw-{{0000..0003}}.tar"
    summary = run(job(source, output, preprocessing={"image_size": 128}, resources={"batch_size": 16}))
    assert (summary.status, summary.num_parts, summary.num_rows, summary.rejects) == ("complete", 4, 320, {})
    for row in rows(output):
        assert row["num_tokens"] == len(row["tokens"])  # type: ignore[arg-type]
        assert row["entropy_bits"] == pytest.approx(row["kept_entropy_bits"] + row["residual_bits"], rel=1e-4)  # type: ignore[operator]
        assert row["caption"]


def test_hostile_input_costs_only_itself(tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.mkdir()
    good = photo_members(0, 6)
    photo = jpeg(0, 300, 300)
    bad = {
        "corrupt.jpg": photo[: len(photo) // 2],
        "text.jpg": b"not a photo at all\n" * 40,
        "tiny.png": encoded(0, 1, 1, "PNG"),
        "bomb.png": png_bomb(30_000),
        "nothing.jpg": b"",
    }
    mixed = list(good)
    for i, (name, data) in enumerate(bad.items()):
        mixed.insert(8 * i % len(good), (name, data))
    # Insertions may split a good photo from its caption, which would make two samples of it: keep groups whole.
    mixed = [member for member in mixed if member not in good]
    mixed = good[:12] + mixed + good[12:]
    (source / "a-mixed.tar").write_bytes(tar_bytes(mixed))
    (source / "b-truncated.tar").write_bytes(tar_bytes(photo_members(10, 6))[: 5 * 4 * 1024 + 2000])
    (source / "c-empty.tar").write_bytes(b"")
    (source / "d-text.tar").write_bytes(b"hello world\n" * 100)
    (source / "e-good.tar").write_bytes(tar_bytes(photo_members(20, 6)))

    output = tmp_path / "out"
    summary = run(job(str(source), output))
    assert summary.status == "complete"
    assert summary.num_parts == 5
    keys = [row["key"] for row in rows(output)]
    assert {f"photo-{i:04}" for i in [*range(6), *range(20, 26)]} <= set(keys)
    found = {(row["key"], row["stage"], row["reason"]) for row in rejects(output)}
    assert found >= {
        ("corrupt", "decode", "truncated"),
        ("text", "decode", "not_an_image"),
        ("tiny", "decode", "too_small"),
        ("bomb", "decode", "too_many_pixels"),
        ("nothing", "decode", "empty"),
        ("c-empty.tar", "read", "empty_archive"),
        ("d-text.tar", "read", "not_an_archive"),
    }
    assert Counter(row["reason"] for row in rejects(output))["truncated_archive"] == 1
    assert all(row["detail"] for row in rejects(output))
    assert summary.rejects == Counter(row["reason"] for row in rejects(output))
    assert not {row["key"] for row in rejects(output)} & set(keys)


def test_image_size_must_fit_the_patch() -> None:
    config = job("a.tar", Path("out"), preprocessing={"image_size": 72})
    with pytest.raises(ConfigError, match="multiple of the checkpoint's patch of 16"):
        check_image_size(config, TokenizerSpec.of(FakeTokenizer()))  # type: ignore[arg-type]


def test_tokenizer_that_cannot_load_stops_the_run(photo_shards: Callable[..., str], tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot start: no such checkpoint"):
        run(job(photo_shards(1, 1), tmp_path / "out"), load_tokenizer=refuse)


def refuse(device: str) -> FakeTokenizer:
    raise ConfigError("no such checkpoint")


def load_and_note(mark: str, device: str) -> FakeTokenizer:
    Path(mark).write_text(device)
    return load_fake(device)


def test_a_tokenizer_without_a_gpu_is_told_to_use_the_cpu(photo_shards: Callable[..., str], tmp_path: Path) -> None:
    """Its node may have GPUs, which belong to others."""
    load = functools.partial(load_and_note, str(tmp_path / "device"))
    assert run(job(photo_shards(1, 1), tmp_path / "out"), load_tokenizer=load).num_rows == 1
    assert (tmp_path / "device").read_text() == "cpu"


@dataclass(frozen=True, kw_only=True)
class NotingTokenizer(FakeTokenizer):
    """Writes down how many images each call has."""

    mark: str

    def encode(self, pixels: torch.Tensor) -> list[TokenSequence]:
        with open(self.mark, "a") as file:
            file.write(f"{len(pixels)} ")
        return super().encode(pixels)


def load_noting(mark: str, device: str) -> FakeTokenizer:
    return NotingTokenizer(mark=mark)


@IN_PLACE_TOO
def test_batches_are_as_large_as_the_job_says(
    photo_shards: Callable[..., str], tmp_path: Path, num_decoders: int
) -> None:
    source = photo_shards(num_shards=1, photos_per_shard=130)
    # A quarter of the bytes would be 21 of these images.
    resources = {"num_decoders": num_decoders, "batch_size": 64, "max_bytes_in_flight": 1 << 20}
    load = functools.partial(load_noting, str(tmp_path / "sizes"))
    assert run(job(source, tmp_path / "out", resources=resources), load_tokenizer=load).num_rows == 130
    assert (tmp_path / "sizes").read_text() == "64 64 2 "


def test_a_finished_job_for_gpus_has_nothing_to_do_on_a_driver_without(
    photo_shards: Callable[..., str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoint = tiny_checkpoint(tmp_path / "tiny")
    sections = {"checkpoint": str(checkpoint), "preprocessing": {"image_size": 32}}
    source = photo_shards(1, 2)
    assert run_job(job(source, tmp_path / "out", device="cpu", **sections)).num_rows == 2
    (tmp_path / "out" / "_SUCCESS").unlink()  # the driver died a moment before
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    again = run_job(job(source, tmp_path / "out", device="cuda", **sections))
    assert (again.status, again.reports, again.num_rows) == ("complete", (), 2)
    assert (tmp_path / "out" / "_SUCCESS").exists()


def processes(title: str) -> list[int]:
    """Descendants of this process whose command line holds `title`."""
    parents, matching = {}, []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            stat, command = (folder / "stat").read_text(), (folder / "cmdline").read_bytes().decode()
        except OSError:
            continue
        parents[int(folder.name)] = int(stat.rpartition(")")[2].split()[1])
        if title in command:
            matching.append(int(folder.name))

    def is_ours(pid: int) -> bool:
        while pid > 1:
            if pid == os.getpid():
                return True
            pid = parents.get(pid, 0)
        return False

    return [pid for pid in matching if is_ours(pid)]


def test_killed_decoders_cost_nothing(photo_shards: Callable[..., str], tmp_path: Path) -> None:
    source = photo_shards(num_shards=3, photos_per_shard=20)
    killed: list[int] = []
    events: list[Event] = []

    def kill_once(event: Event) -> None:
        events.append(event)
        if isinstance(event, Throughput) and event.num_rows and not killed:
            for pid in processes("DecodeWorker"):
                os.kill(pid, signal.SIGKILL)
                killed.append(pid)

    # One chunk ahead, and a slow model: the decoders are busy for most of the run.
    config = job(source, tmp_path / "out", resources={"num_decoders": 2, "max_bytes_in_flight": 1 << 20})
    slow = functools.partial(load_fake, delay_s=0.2)
    summary = run(config, on_event=kill_once, load_tokenizer=slow)
    assert killed
    assert summary.status == "complete"
    assert [row["key"] for row in rows(tmp_path / "out")] == [f"photo-{i:04}" for i in range(60)]


@IN_PLACE_TOO
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
    there = cluster.ray.cluster_resources
    monkeypatch.setattr(cluster.ray, "cluster_resources", lambda: next(promised, None) or there())
    monkeypatch.setattr(scheduler, "_RESIZE_S", 0.5)
    monkeypatch.setattr(scheduler, "_ROOM_S", 1.0)
    config = job(photo_shards(num_shards=5, photos_per_shard=2), tmp_path / "out", resources={"num_decoders": 4})
    load = functools.partial(load_at_the_second_attempt, str(tmp_path / "mark"))
    summary = run(config, load_tokenizer=load)
    assert (summary.status, summary.num_rows) == ("complete", 10)


@IN_PLACE_TOO
def test_hanging_source_is_given_up_and_named(
    photo_shards: Callable[..., str], tmp_path: Path, num_decoders: int
) -> None:
    photo_shards(num_shards=2)
    os.mkfifo(tmp_path / "source" / "hangs.tar")
    source = f"{tmp_path}/source/{{hangs,photos-0000,photos-0001}}.tar"
    events: list[Event] = []
    config = job(source, tmp_path / "out", resources={"decode_timeout_s": 3, "num_decoders": num_decoders})
    summary = run(config, events)
    assert summary.status == "shards_failed"
    assert [Path(shard.uri).name for shard in summary.failed] == ["hangs.tar"]
    assert summary.num_rows == 20
    assert not (tmp_path / "out" / "_SUCCESS").exists()
    assert sum(isinstance(event, ShardRetried) for event in events) == 1
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


@IN_PLACE_TOO
def test_a_sample_that_hangs_its_decoder_is_found(
    photo_shards: Callable[..., str], tmp_path: Path, num_decoders: int
) -> None:
    photo_shards(num_shards=2, photos_per_shard=5)
    slow = ("slow.png", encoded(0, 13_000, 13_000, "PNG"))
    members = [*photo_members(20, 3), slow, *photo_members(23, 3)]
    (tmp_path / "source" / "poison.tar").write_bytes(tar_bytes(members))
    events: list[Event] = []
    config = job(
        str(tmp_path / "source"), tmp_path / "out", resources={"decode_timeout_s": 1.5, "num_decoders": num_decoders}
    )
    summary = run(config, events)
    assert (summary.status, summary.num_rows, summary.rejects) == ("complete", 16, {"decoder_hang": 1})
    (reject,) = rejects(tmp_path / "out")
    assert (reject["key"], reject["source_index"], reject["stage"]) == ("slow", 3, "decode")
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
    assert run(rest).status == "too_many_rejects", "the limit holds for the whole data set, with nothing to do too"
    lenient = rest.model_copy(update={"limits": rest.limits.model_copy(update={"max_reject_fraction": 1.0})})
    assert run(lenient).status == "complete"
    assert (tmp_path / "out" / "_SUCCESS").exists()
