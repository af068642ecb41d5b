"""The whole job on a real local Ray, with a fake model."""

from __future__ import annotations

import functools
import json
import shutil
import sys
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import torch

from tatok.dataset.parts import TokenizedData
from tatok.pipeline.monitoring.events import (
    Event,
    Notice,
    ShardCommitted,
    Throughput,
)
from tatok.pipeline.run import RunSummary, check_image_size, run_job
from tatok.pipeline.tokenization.spec import TokenizerSpec
from tatok.schemas.errors import CommitError, ConfigError
from tatok.schemas.records import TokenSequence
from tests.support.fake_tokenizer import FakeTokenizer, load_fake, load_other_fake
from tests.support.photos import encoded, jpeg, photo_members, png_bomb, tar_bytes, write_photo_shards
from tests.support.runs import MOSTLY_BY_DECODERS, job, rejects, rows, run
from tests.support.tiny_checkpoint import tiny_checkpoint

pytestmark = pytest.mark.usefixtures("local_ray")


def published(output: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in (output / "data").iterdir()}


@dataclass(frozen=True, kw_only=True)
class Finished:
    """A dataset of 4 shards of 10 photos, to be left as it is."""

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
    beside = [".huggingface.yaml", "_SUCCESS", "_manifest.json", "_rejects", "_run.json", "_runs"]
    assert names == [*beside, "data"]
    [record] = TokenizedData.open(output).runs()
    assert (record.status, record.num_shards, record.num_rows, record.num_failed_shards) == ("complete", 4, 40, 0)
    assert record.num_tokens == summary.num_tokens
    assert 0 < record.seconds < 600
    assert sum(isinstance(event, ShardCommitted) for event in finished.events) == 4
    assert [event.num_rows for event in finished.events if isinstance(event, Throughput)][-1] == 40


def test_footer_names_source_and_fingerprint(finished: Finished) -> None:
    recorded = json.loads((finished.output / "_run.json").read_text())
    for part in (finished.output / "data").iterdir():
        footer = pq.read_metadata(part).metadata
        assert Path(json.loads(footer[b"tatok.shard"])["uri"]).name.startswith("photos-")
        assert json.loads(footer[b"tatok.fingerprint"]) == recorded["fingerprint"]


def test_nothing_is_done_twice(finished: Finished, monkeypatch: pytest.MonkeyPatch) -> None:
    before = published(finished.output)
    monkeypatch.setitem(sys.modules, "tatok.pipeline.cluster.driver", None)  # Ray must not even be imported
    again = run(job(finished.source, finished.output))
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
    assert (output / "_manifest.json").read_bytes() == (finished.output / "_manifest.json").read_bytes()
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
    assert any(isinstance(event, Notice) and "1 part in" in event.message for event in events)


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


@MOSTLY_BY_DECODERS
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
