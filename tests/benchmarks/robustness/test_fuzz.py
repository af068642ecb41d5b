"""Mutated images, archives, tables, lists and job files, and the fuzz bench's tiny twin."""

from __future__ import annotations

import io
import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeVar

import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from benchmarks.robustness.fuzz import _plan_list, fuzz
from benchmarks.robustness.fuzz_inputs import IMAGE_KINDS, KINDS, LIST_KINDS, Kind, bases, fuzz_input, mutated
from tatok.pipeline.census.lists import count_listed
from tatok.pipeline.census.tars import count_tar
from tatok.pipeline.decode.sample import decode_sample
from tatok.pipeline.output.commit import commit_shard, part_name
from tatok.pipeline.planning import plan
from tatok.pipeline.planning.plan import plan_shards
from tatok.pipeline.readers import read
from tatok.pipeline.readers.read import ReadOptions, read_samples
from tatok.pipeline.storage.store import OutputStore
from tatok.pipeline.tokenization.tokenize import tokenize_clips
from tatok.schemas.errors import ConfigError
from tatok.schemas.job import JobConfig, Limits, Preprocessing, load_job
from tatok.schemas.manifest import LAYOUT
from tatok.schemas.records import Clip, Reject, Sample
from tests.support.fake_tokenizer import FakeTokenizer, load_fake

T = TypeVar("T")

FAKE = FakeTokenizer()
RANDOMS = st.randoms(use_true_random=False)
IMAGES = st.sampled_from(IMAGE_KINDS)
ARCHIVES = st.sampled_from(("tar", "parquet"))


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_mutated_was_good(kind: Kind, tmp_path: Path) -> None:
    for data in bases(kind):
        if kind == "job":
            (tmp_path / "job.yaml").write_bytes(data)
            assert isinstance(load_job(tmp_path / "job.yaml"), JobConfig)
        elif kind in LIST_KINDS:
            (tmp_path / f"a.{kind}").write_bytes(data)
            shards = plan_shards([str(tmp_path / f"a.{kind}")])
            num_rows = count_listed(str(tmp_path / f"a.{kind}"), kind)
            assert sum(shard.num_samples or 0 for shard in shards) == num_rows >= 2
        elif kind in ("tar", "parquet"):
            (tmp_path / f"a.{kind}").write_bytes(data)
            (shard,) = plan_shards([str(tmp_path / f"a.{kind}")])
            assert all(isinstance(each, Sample) for each in read_samples(shard, ReadOptions(max_sample_bytes=1 << 20)))
        else:
            Image.open(io.BytesIO(data)).load()


def test_a_seed_makes_the_same_inputs_of_every_kind() -> None:
    inputs = [fuzz_input(3, number) for number in range(300)]
    assert inputs == [fuzz_input(3, number) for number in range(300)]
    assert inputs[0].data != fuzz_input(4, 0).data
    assert {each.kind for each in inputs} == set(KINDS)
    assert sum(each.data != each.base for each in inputs) > 280


@settings(max_examples=200, deadline=None)
@given(kind=IMAGES, rng=RANDOMS, which=st.integers(0, 99))
def test_an_image_is_a_clip_or_a_reject(kind: Kind, rng: random.Random, which: int) -> None:
    payload = mutated(kind, bases(kind)[which % len(bases(kind))], rng)
    sample = Sample(key="k", uri="a.tar", index=7, media="image", extension=kind, payload=payload)
    (result,) = decode_sample(sample, Preprocessing(image_size=32), Limits(max_pixels=1 << 22))
    assert (result.key, result.uri, result.index) == ("k", "a.tar", 7)
    if isinstance(result, Clip):
        assert result.pixels.shape == (1, 3, 32, 32)
    else:
        assert result.stage == "decode"
        assert result.reason
        assert result.detail


@settings(max_examples=80, deadline=None)
@given(kind=ARCHIVES, rng=RANDOMS, which=st.integers(0, 99))
def test_every_sample_of_an_archive_is_a_row_or_a_reject(
    kind: Kind, rng: random.Random, which: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("archive")
    (folder / f"a.{kind}").write_bytes(mutated(kind, bases(kind)[which % len(bases(kind))], rng))
    try:
        (shard,) = plan_shards([f"{folder}/a.{kind}"])
    except ConfigError:
        assert kind == "parquet", "a tar needs no column of images"
        return
    samples = list(read_samples(shard, ReadOptions(max_sample_bytes=1 << 20)))
    if kind == "tar":
        least, most = count_tar(f"{folder}/a.tar")  # another's walk over the same bytes
        assert least <= len(samples)
        assert most is None or len(samples) <= most
        assert [sample.index for sample in samples] == list(range(len(samples)))
    else:  # the rest of a damaged row group is one reject
        assert [sample.index for sample in samples] == sorted({sample.index for sample in samples})
    decoded: list[Clip | Reject] = []
    for each in samples:
        preprocessing, limits = Preprocessing(image_size=32), Limits(max_pixels=1 << 22)
        decoded += [each] if isinstance(each, Reject) else decode_sample(each, preprocessing, limits)
    store = OutputStore.open(f"{folder}/tokens")
    commit_shard(
        store,
        shard,
        tokenize_clips(decoded, FAKE.encode_clips, batch_size=4, vocab_size=FAKE.vocab_size, patch_entropy=True),
        fingerprint={},
        vocab_size=FAKE.vocab_size,
        patch_entropy=True,
        row_group_rows=10,
    )
    found = [
        (row["source_index"], row["key"])
        for name in (f"data/{part_name(shard.shard_id)}", LAYOUT.rejects_of(part_name(shard.shard_id)))
        for row in pq.read_table(f"{folder}/tokens/{name}").to_pylist()
    ]
    assert sorted(found) == [(sample.index, sample.key) for sample in samples]


@settings(max_examples=150, deadline=None)
@given(rng=RANDOMS, which=st.integers(0, 99))
def test_a_job_file_is_a_configuration_or_a_config_error(
    rng: random.Random, which: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = tmp_path_factory.getbasetemp() / "fuzzed.yaml"
    path.write_bytes(mutated("job", bases("job")[which % len(bases("job"))], rng))
    refusal = ""
    try:
        assert isinstance(load_job(path), JobConfig)
    except ConfigError as error:
        refusal = str(error)
    assert not refusal or "fuzzed.yaml" in refusal


@pytest.mark.usefixtures("local_ray")
def test_the_bench(tmp_path: Path) -> None:
    report = fuzz(120, 5, tmp_path)
    assert report.findings == ()
    assert sum(report.inputs.values()) == report.num_inputs == 120
    assert report.jobs_accepted + report.jobs_refused == report.inputs["job"]
    assert report.tables_accepted + report.tables_refused == report.inputs["parquet"]
    assert report.tables_accepted
    assert report.lists_accepted + report.lists_refused == sum(report.inputs[kind] for kind in LIST_KINDS)
    assert report.num_counted >= report.inputs["tar"] + report.tables_accepted
    num_images = sum(report.inputs[kind] for kind in IMAGE_KINDS)
    assert report.num_rows + sum(report.rejects.values()) >= num_images
    assert report.rejects
    assert report.longest_shard_s > 0


def load_blind(device: str = "cpu", **options: object) -> FakeTokenizer:
    """A tokenizer in whose process the reader drops the last sample of every archive, and verification does, too."""
    read.read_tar = without_last(read.read_tar)
    return load_fake(device, **options)


def without_last(function: Callable[..., Iterator[T]]) -> Callable[..., Iterator[T]]:
    def losing(*args: object, **options: object) -> Iterator[T]:
        items = list(function(*args, **options))
        yield from items[:-1] if len(items) > 1 else items

    return losing


@pytest.mark.usefixtures("local_ray")
def test_a_loss_in_the_reader_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of archives whose last sample lies behind the first change nothing but the independent count tells."""
    monkeypatch.setattr(read, "read_tar", without_last(read.read_tar))
    report = fuzz(120, 5, tmp_path, load_tokenizer=load_blind, num_decoders=0)
    counts = {finding.split()[2] for finding in report.findings if finding.startswith("verify: count ")}
    assert counts
    by_construction = {finding.split()[0] for finding in report.findings if " lost " in finding}
    archives = {uri.rpartition("/")[2] for uri in counts if "/input-" in uri}
    assert {name.removesuffix(".tar:") for name in archives} - by_construction
    assert not any(finding.startswith("verify: keys") for finding in report.findings)


def test_a_loss_in_the_parser_of_lists_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = bases("csv")[0]
    _plan_list("csv", whole, tmp_path)
    monkeypatch.setattr(plan, "listed_files", without_last(plan.listed_files))
    with pytest.raises(AssertionError, match="3 rows by its lines, 2 planned"):
        _plan_list("csv", whole, tmp_path)
