from __future__ import annotations

import json
import os
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tatok.pipeline.output.commit import commit_shard, committed_report, committed_shards, part_name, restore_rejects
from tatok.pipeline.output.tables import TokenizedBatch
from tatok.pipeline.storage.store import OutputStore
from tatok.pipeline.tokenization.tokenize import tokenize_clips
from tatok.schemas.errors import CommitError, ConfigError
from tatok.schemas.records import ShardReport
from tatok.schemas.tokens import (
    FOOTER_CLIPS,
    FOOTER_FINGERPRINT,
    FOOTER_NUM_REJECTS,
    FOOTER_NUM_TOKENS,
    FOOTER_SHARD,
)
from tests.support.parts import FAKE, batches, clip, commit, reject, shard


def files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture
def store(tmp_path: Path) -> OutputStore:
    return OutputStore.open(str(tmp_path / "out"))


def test_part_and_rejects_are_published(store: OutputStore) -> None:
    report = commit(store)
    assert committed_shards(store) == {"s0"}
    part = pq.ParquetFile(f"{store.url}/data/{part_name('s0')}")
    assert (report.num_rows, report.rejects, report.part_bytes) == (
        7,
        {"corrupt": 1},
        os.path.getsize(part_path(store)),
    )
    assert part.read()["key"].to_pylist() == [f"k{i}" for i in range(7)]
    assert part.metadata.num_row_groups == 2
    footer = part.metadata.metadata
    assert json.loads(footer[FOOTER_FINGERPRINT.encode()]) == {"weights": "abc"}
    assert json.loads(footer[FOOTER_SHARD.encode()])["uri"] == "/s0.tar"
    assert int(footer[FOOTER_NUM_TOKENS.encode()]) == report.num_tokens
    assert json.loads(footer[FOOTER_NUM_REJECTS.encode()]) == {"corrupt": 1}
    rejects = pq.read_table(f"{store.url}/_rejects/part-s0.pq").to_pylist()
    assert [(row["key"], row["stage"], row["reason"]) for row in rejects] == [("k99", "decode", "corrupt")]


def test_clips_and_their_frames_are_told(store: OutputStore) -> None:
    mixed, images = commit(store, num_videos=2), commit(store, "s1")
    assert (mixed.num_rows, mixed.num_clips, mixed.num_frames) == (9, 2, 5)
    assert (images.num_rows, images.num_clips, images.num_frames) == (7, 0, 0)
    lost = commit(store, num_videos=2)  # the race: another attempt has published it
    assert (lost.part_sha256, lost.num_clips, lost.num_frames) == (None, 2, 5)
    for report, name in ((mixed, "s0"), (images, "s1")):
        found = committed_report(store, shard(name))
        assert found is not None
        assert (found.num_clips, found.num_frames) == (report.num_clips, report.num_frames)
    footers = [
        pq.read_metadata(f"{store.url}/{name}").metadata for name in ("data/part-s0.parquet", "_rejects/part-s0.pq")
    ]
    assert [FOOTER_CLIPS.encode() in footer for footer in footers] == [True, False]
    assert FOOTER_CLIPS.encode() not in pq.read_metadata(f"{store.url}/data/{part_name('s1')}").metadata
    os.unlink(f"{store.url}/_rejects/part-s0.pq")
    assert restore_rejects(store) == 1
    assert FOOTER_CLIPS.encode() not in pq.read_metadata(f"{store.url}/_rejects/part-s0.pq").metadata


def part_path(store: OutputStore) -> str:
    return f"{store.url}/data/{part_name('s0')}"


def test_encodings(store: OutputStore) -> None:
    commit(store)
    group = pq.ParquetFile(part_path(store)).metadata.row_group(0)
    columns = {group.column(i).path_in_schema: group.column(i) for i in range(group.num_columns)}
    for name in ("tokens", "positions", "patch_entropy_bits"):
        column = columns[f"{name}.list.element"]
        assert ("BYTE_STREAM_SPLIT" in column.encodings) == (name != "patch_entropy_bits")
        assert not any("DICTIONARY" in encoding for encoding in column.encodings)
        assert not column.is_stats_set
    for name in ("key", "num_tokens", "entropy_bits"):
        assert columns[name].is_stats_set
        assert columns[name].has_column_index
    assert {column.compression for column in columns.values()} == {"ZSTD"}
    assert columns["key"].bloom_filter_offset
    assert columns["sample_id"].bloom_filter_offset


def test_same_rows_same_bytes(tmp_path: Path) -> None:
    published = []
    for name in ("a", "b"):
        store = OutputStore.open(str(tmp_path / name))
        report = commit(store)
        published.append((files(tmp_path / name), report.part_sha256))
    assert published[0] == published[1]
    assert sorted(published[0][0]) == ["_rejects/part-s0.pq", "data/part-s0.parquet"]


def test_empty_shard_is_a_part_without_rows(store: OutputStore) -> None:
    report = commit_shard(
        store, shard(), iter(()), fingerprint={}, vocab_size=1024, patch_entropy=True, row_group_rows=10
    )
    assert (report.num_rows, report.num_tokens) == (0, 0)
    assert pq.read_table(part_path(store)).num_rows == 0


def test_failure_half_way_leaves_nothing(store: OutputStore, tmp_path: Path) -> None:
    def failing() -> Iterator[TokenizedBatch]:
        yield from batches()
        raise RuntimeError("decoder lost")

    with pytest.raises(RuntimeError, match="decoder lost"):
        commit_shard(store, shard(), failing(), fingerprint={}, vocab_size=1024, patch_entropy=True, row_group_rows=2)
    assert files(tmp_path / "out") == {}


def test_death_before_the_link_leaves_nothing_under_data(
    store: OutputStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(os, "link", lambda *paths: (_ for _ in ()).throw(OSError(28, "No space left on device")))
        with pytest.raises(CommitError, match=r"part-s0\.parquet"):
            commit(store)
    assert not list((tmp_path / "out" / "data").iterdir())
    assert committed_shards(store) == frozenset()
    commit(store)
    assert committed_shards(store) == {"s0"}


def test_disk_without_hard_links(store: OutputStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "link", lambda *paths: (_ for _ in ()).throw(OSError(95, "Operation not supported")))
    commit(store)
    before = files(tmp_path / "out")
    assert commit(store, first=100).part_sha256 is None
    assert files(tmp_path / "out") == before


def test_loser_of_a_race_discards(store: OutputStore, tmp_path: Path) -> None:
    assert commit(store).part_sha256 is not None
    before = files(tmp_path / "out")
    assert commit(store, first=100).part_sha256 is None
    assert files(tmp_path / "out") == before


def test_rejects_are_those_of_the_attempt_that_won(store: OutputStore, tmp_path: Path) -> None:
    commit(store)
    before = files(tmp_path / "out")
    others = [clip(0), reject(1), reject(2)]
    lost = commit_shard(
        store,
        shard(),
        tokenize_clips(others, FAKE.encode_clips, batch_size=3, vocab_size=1024, patch_entropy=True),
        fingerprint={"weights": "abc"},
        vocab_size=1024,
        patch_entropy=True,
        row_group_rows=4,
    )
    assert (lost.part_sha256, lost.rejects) == (None, {"corrupt": 2})
    assert files(tmp_path / "out") == before


def test_death_between_the_part_and_its_rejects_costs_nothing(
    store: OutputStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    publish = OutputStore.publish

    def dying(self: OutputStore, path: Path, name: str, *, create: bool) -> bool:
        if name.startswith("_rejects/"):
            raise CommitError("the connection is gone")
        return publish(self, path, name, create=create)

    with monkeypatch.context() as patch:
        patch.setattr(OutputStore, "publish", dying)
        with pytest.raises(CommitError):
            commit(store)
    assert sorted(files(tmp_path / "out")) == ["data/part-s0.parquet"]
    assert restore_rejects(store) == 1
    commit(OutputStore.open(str(tmp_path / "reference")))
    assert files(tmp_path / "out") == files(tmp_path / "reference")
    assert restore_rejects(store) == 0


def test_what_another_run_committed_is_known_without_doing_it_again(store: OutputStore) -> None:
    assert committed_report(store, shard()) is None
    report = commit(store)
    assert committed_report(store, shard()) == replace(report, seconds=0.0, part_sha256=None)
    Path(f"{store.url}/data/part-s1.parquet").write_bytes(b"no part")
    with pytest.raises(CommitError, match=r"part-s1\.parquet is not a part"):
        committed_report(store, shard("s1"))


def test_racing_threads_publish_one_part(store: OutputStore, tmp_path: Path) -> None:
    barrier = threading.Barrier(4)
    reports: list[ShardReport] = []

    def race() -> None:
        barrier.wait()
        reports.append(commit(store))

    threads = [threading.Thread(target=race) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sum(report.part_sha256 is not None for report in reports) == 1
    assert sorted(files(tmp_path / "out")) == ["_rejects/part-s0.pq", "data/part-s0.parquet"]


@settings(max_examples=15, deadline=None)
@given(order=st.permutations(["s0", "s1", "s2", "s0", "s1"]), crash=st.integers(0, 4))
def test_any_order_of_attempts_gives_the_same_data(
    order: list[str], crash: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Attempts in any order, repeated, one of them dying: each shard stands there once, with the same bytes."""

    def rows_of(name: str) -> int:
        return 10 * int(name[1])

    folder, reference = tmp_path_factory.mktemp("any"), tmp_path_factory.mktemp("reference")
    store = OutputStore.open(str(folder))
    for i, name in enumerate(order):
        if i == crash:
            dying = iter([next(batches())])
            with store.scratch_file() as path:
                path.write_bytes(next(dying).rows["key"].to_pandas().to_json().encode())
        commit(store, name, first=rows_of(name), count=3)
    for name in ("s0", "s1", "s2"):
        commit(OutputStore.open(str(reference)), name, first=rows_of(name), count=3)
    assert files(folder) == files(reference)


def test_scratch_is_swept(store: OutputStore, tmp_path: Path) -> None:
    scratch = tmp_path / "out" / ".tmp"
    with store.scratch_file() as mine:
        mine.write_bytes(b"x")
        other = scratch / "another-run.1"
        other.write_bytes(b"y")
        old = scratch / "dead-run.1"
        old.write_bytes(b"z")
        os.utime(old, (1, 1))
        store.sweep_scratch()
        assert [path.name for path in scratch.iterdir()] == ["another-run.1"]
    other.unlink()
    store.sweep_scratch()
    assert not scratch.exists()


def test_memory_store_publishes_too() -> None:
    store = OutputStore.open("memory://tokens/run")
    assert store.probe().create_only
    commit(store)
    assert committed_shards(store) == {"s0"}
    assert commit(store).part_sha256 is None


def test_unwritable_output(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("not a folder")
    with pytest.raises(CommitError, match="file/out"):
        OutputStore.open(str(tmp_path / "file" / "out")).probe()
    with pytest.raises(ConfigError, match="nonsense"):
        OutputStore.open("nonsense://x")
