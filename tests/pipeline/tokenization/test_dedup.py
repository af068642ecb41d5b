"""Of equal bytes one copy becomes a row, whatever shard it is in, and whatever happens to the run in between."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from tatok.pipeline.decode.sample import decode_sample
from tatok.pipeline.output.commit import commit_shard, committed_shards
from tatok.pipeline.planning.plan import plan_shards
from tatok.pipeline.readers.read import ReadOptions, read_samples
from tatok.pipeline.run import run_job
from tatok.pipeline.storage.store import OutputStore
from tatok.pipeline.tokenization.dedup import drop_duplicates, hash_shard, hashed_shards, list_duplicates, read_dropped
from tatok.pipeline.tokenization.tokenize import tokenize_clips
from tatok.pipeline.verify.dataset import verify_output
from tatok.schemas.errors import CommitError, ConfigError
from tatok.schemas.job import JobConfig
from tatok.schemas.records import Clip, Reject, Shard
from tests.support.fake_tokenizer import FakeTokenizer, load_fake
from tests.support.photos import jpeg, tar_bytes

PHOTOS = {"a": [0, 1, 0, 2], "b": [2, 3, 1], "c": [4, 3, 5, 4, 0]}
"""Tar -> the photo of each sample; a photo is its seed."""


def write_tars(folder: Path, photos: dict[str, list[int]]) -> str:
    folder.mkdir(exist_ok=True)
    for name, seeds in photos.items():
        members = [(f"{name}{i}.jpg", jpeg(seed)) for i, seed in enumerate(seeds)]
        (folder / f"{name}.tar").write_bytes(tar_bytes(members))
    return str(folder)


def job(source: str, output: Path, **settings: object) -> JobConfig:
    return JobConfig.model_validate(
        {"source": source, "output": str(output), "dedup": "exact", "preprocessing": {"image_size": 32}} | settings
    )


def prepare(config: JobConfig, store: OutputStore) -> list[Shard]:
    """What a run does before it tokenizes, without Ray; the shards that wait."""
    committed = committed_shards(store)
    pending = [shard for shard in plan_shards(config.source) if shard.shard_id not in committed]
    for shard in pending:
        hash_shard(config, store, shard)
    list_duplicates(store, pending, committed)
    return pending


def commit(config: JobConfig, store: OutputStore, shard: Shard) -> None:
    def decoded() -> Iterator[Clip | Reject]:
        samples = read_samples(shard, ReadOptions(max_sample_bytes=1 << 20))
        for sample in drop_duplicates(samples, read_dropped(store, shard)):
            if isinstance(sample, Reject):
                yield sample
            else:
                yield from decode_sample(sample, config.preprocessing, config.limits)

    encode = FakeTokenizer().encode_clips
    batches = tokenize_clips(decoded(), encode, batch_size=4, vocab_size=1024, patch_entropy=False)
    commit_shard(store, shard, batches, fingerprint={}, vocab_size=1024, patch_entropy=False, row_group_rows=100)


def rows_of(output: Path) -> list[str]:
    return sorted(pq.read_table(output / "data")["key"].to_pylist())


def one_of_each(output: Path) -> Counter[int]:
    hashes = pq.read_table(output / "data")["sha256"].to_pylist()
    return Counter(Counter(hashes).values())


def named(shards: Sequence[Shard], name: str) -> Shard:
    return next(shard for shard in shards if shard.uri.endswith(f"{name}.tar"))


FIRST_COPIES = ["a0", "a1", "a3", "b1", "c0", "c2"]


@pytest.mark.parametrize("order", ["abc", "cba", "bca"])
def test_the_first_copy_is_kept_in_whatever_order_shards_are_done(tmp_path: Path, order: str) -> None:
    config = job(write_tars(tmp_path / "source", PHOTOS), tmp_path / "out")
    store = OutputStore.open(config.output)
    for name in order:  # the run is killed after each shard and started again
        commit(config, store, named(prepare(config, store), name))
    assert rows_of(tmp_path / "out") == FIRST_COPIES
    [reject] = [row for row in rejects_of(store) if row["key"] == "c4"]
    assert (reject["stage"], reject["reason"]) == ("dedup", "duplicate")
    assert reject["detail"].endswith("a.tar [0]")


def rejects_of(store: OutputStore) -> list[dict]:
    return [row for name in store.list_files("_rejects") for row in read_rows(store, name)]


def read_rows(store: OutputStore, name: str) -> list[dict]:
    with store.open_input(f"_rejects/{name}") as file:
        return pq.read_table(file).to_pylist()


def test_a_source_that_grows_keeps_what_it_has(tmp_path: Path) -> None:
    source = write_tars(tmp_path / "source", {"b": PHOTOS["b"]})
    config = job(source, tmp_path / "out")
    store = OutputStore.open(config.output)
    commit(config, store, named(prepare(config, store), "b"))
    write_tars(tmp_path / "source", {"a": PHOTOS["a"], "c": PHOTOS["c"]})
    for name in "ca":
        commit(config, store, named(prepare(config, store), name))
    assert one_of_each(tmp_path / "out") == {1: 6}
    assert {"b0", "b1", "b2"} <= set(rows_of(tmp_path / "out")), "committed copies stay the kept ones"


def test_a_shard_that_leaves_before_it_is_done_takes_no_copy_with_it(tmp_path: Path) -> None:
    source = write_tars(tmp_path / "source", PHOTOS)
    config = job(source, tmp_path / "out")
    store = OutputStore.open(config.output)
    prepare(config, store)
    assert read_dropped(store, named(plan_shards(config.source), "b"))
    (tmp_path / "source" / "a.tar").unlink()
    pending = prepare(config, store)
    assert not read_dropped(store, named(pending, "b")), "the list of the former source is gone"
    for shard in pending:
        commit(config, store, shard)
    assert rows_of(tmp_path / "out") == ["b0", "b1", "b2", "c0", "c2", "c4"]


def test_a_copy_that_left_after_others_were_dropped_for_it_is_taken_from_where_it_comes_back(tmp_path: Path) -> None:
    source = write_tars(tmp_path / "source", {"a": [7], "b": [7, 8]})
    config = job(source, tmp_path / "out")
    store = OutputStore.open(config.output)
    commit(config, store, named(prepare(config, store), "b"))
    assert rows_of(tmp_path / "out") == ["b1"]
    (tmp_path / "source" / "a.tar").unlink()
    write_tars(tmp_path / "source", {"z": [7]})
    commit(config, store, named(prepare(config, store), "z"))
    assert rows_of(tmp_path / "out") == ["b1", "z0"]


def test_an_output_made_without_dedup_is_refused(tmp_path: Path) -> None:
    config = job(write_tars(tmp_path / "source", PHOTOS), tmp_path / "out")
    store = OutputStore.open(config.output)
    [first, *rest] = plan_shards(config.source)
    commit(config, store, first)
    with pytest.raises(CommitError, match="made without dedup"):
        list_duplicates(store, rest, committed_shards(store))


def test_hashing_again_changes_nothing(tmp_path: Path) -> None:
    config = job(write_tars(tmp_path / "source", PHOTOS), tmp_path / "out")
    store = OutputStore.open(config.output)
    pending = prepare(config, store)
    files = {path: path.read_bytes() for path in (tmp_path / "out" / "_dedup").iterdir()}
    assert hashed_shards(store) == {shard.shard_id for shard in pending}
    prepare(config, store)
    assert {path: path.read_bytes() for path in (tmp_path / "out" / "_dedup").iterdir()} == files


def test_a_job_with_dedup(tmp_path: Path, local_ray: None) -> None:
    source = write_tars(tmp_path / "source", PHOTOS)
    (tmp_path / "source" / "d.tar").write_bytes(b"no archive at all" * 100)
    config = job(source, tmp_path / "out", resources={"num_decoders": 2}, limits={"max_reject_fraction": 0.2})
    summary = run_job(config, load_tokenizer=load_fake)
    assert summary.status == "complete"
    assert rows_of(tmp_path / "out") == FIRST_COPIES
    assert summary.rejects == {"duplicate": 6, "not_an_archive": 1}
    assert verify_output(config.output, [source]).findings == ()
    parts = {path.name: path.read_bytes() for path in (tmp_path / "out" / "data").iterdir()}
    next(path for path in (tmp_path / "out" / "data").iterdir() if pq.read_metadata(path).num_rows == 1).unlink()
    again = run_job(config, load_tokenizer=load_fake)
    assert (again.status, len(again.reports)) == ("complete", 1)
    assert {path.name: path.read_bytes() for path in (tmp_path / "out" / "data").iterdir()} == parts
    other = config.model_copy(update={"dedup": "none"})
    with pytest.raises((CommitError, ConfigError), match="dedup"):
        run_job(other, load_tokenizer=load_fake)
