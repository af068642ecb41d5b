"""Compaction: the same rows in the same order in fewer parts, whole or recognisably not."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import textwrap
from collections.abc import Callable, Sequence
from pathlib import Path

import duckdb
import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tatok.dataset.dataset import TokenDataset
from tatok.dataset.parts import TokenizedData
from tatok.pipeline.export.compact import compact
from tatok.pipeline.export.merge import group_parts
from tatok.pipeline.output.manifest import claim_output, mark_incomplete, mark_success, record_run, update_manifest
from tatok.pipeline.output.parquet import PartWriter
from tatok.pipeline.output.tables import rejects_table
from tatok.pipeline.run import run_job
from tatok.pipeline.storage.store import OutputStore
from tatok.schemas.errors import CommitError, SourceError
from tatok.schemas.job import JobConfig
from tatok.schemas.manifest import Part, RunDocument, RunRecord
from tatok.schemas.records import Reject
from tatok.schemas.tokens import FOOTER_SHARD, FOOTER_SHARDS, SCHEMA_VERSION
from tests.support.fake_tokenizer import load_fake
from tests.support.places import ROOT
from tests.support.synthetic_tokens import synthetic_rows, write_synthetic

FINGERPRINT = {"vocab_size": "4096", "schema": "1"}
RECORD = RunRecord(
    started_at="2026-01-02T03:04:05+00:00",
    seconds=1.0,
    status="complete",
    num_shards=1,
    num_rows=1,
    num_tokens=1,
    num_rejects=0,
    num_failed_shards=0,
)


def write_data_set(folder: Path, rows_per_part: Sequence[int], *, row_group_rows: int = 64) -> TokenizedData:
    """A complete dataset with one part of each of these numbers of rows, part i with i % 3 rejects."""
    store = OutputStore.open(str(folder))
    for number, num_rows in enumerate(rows_per_part):
        first = sum(rows_per_part[:number])
        rows = synthetic_rows(np.random.default_rng(number), first, num_rows, patch_entropy=True)
        rejects = [
            Reject(key=f"bad-{number}-{i}", uri="a.tar", index=i, stage="decode", reason="corrupt", detail="made up")
            for i in range(number % 3)
        ]
        footer = {
            "tatok.schema_version": SCHEMA_VERSION,
            "tatok.fingerprint": json.dumps(FINGERPRINT),
            "tatok.shard": json.dumps({"shard_id": f"{number:04}"}),
            "tatok.num_tokens": str(sum(rows.column("num_tokens").to_pylist())),
            "tatok.num_rejects": json.dumps({"corrupt": len(rejects)} if rejects else {}),
        }
        if number % 2:
            footer["tatok.clips"] = json.dumps([1, 8 * number])
        for kind, table in (("rejects", rejects_table(rejects)), ("data", rows)):
            with store.scratch_file() as path:
                with PartWriter(path, table.schema, row_group_rows=row_group_rows) as writer:
                    writer.write(table)
                    writer.finish(footer)
                part = f"part-{number:04}.parquet"
                store.publish(path, f"data/{part}" if kind == "data" else store.layout.rejects_of(part), create=False)
    config = {"write": {"row_group_rows": 100}}
    store.write_text(
        "_run.json", RunDocument(schema_version=SCHEMA_VERSION, fingerprint=FINGERPRINT, config=config).to_json()
    )
    record_run(store, RECORD)
    update_manifest(store, [])
    mark_success(store)
    return TokenizedData.open(folder)


def files(folder: Path) -> dict[str, bytes]:
    """Every file but scratch files."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file() and ".tmp" not in path.parts
    }


@pytest.fixture
def source(tmp_path: Path) -> TokenizedData:
    return write_data_set(tmp_path / "source", [30, 0, 7, 120, 64, 1, 1, 90])


# Of the source's 8 parts, this makes several groups.
TARGET_BYTES = 60_000


@given(st.lists(st.integers(1, 100), max_size=60), st.integers(1, 100))
def test_groups_are_consecutive_and_of_the_wanted_size(sizes: list[int], target: int) -> None:
    parts = [
        Part(name=f"{i:03}", num_rows=1, num_tokens=1, num_bytes=size, row_group_rows=(1,), rejects={}, checksum="")
        for i, size in enumerate(sizes)
    ]
    groups = group_parts(parts, target)
    assert [part for group in groups for part in group] == parts
    for group in groups:
        assert group
        assert len(group) == 1 or sum(part.num_bytes for part in group) <= 2 * target
    if len(groups) > 1 and max(sizes) <= target:
        assert all(sum(part.num_bytes for part in group) >= target / 2 for group in groups)


def test_every_row_survives_once_and_in_order(source: TokenizedData, tmp_path: Path) -> None:
    told: list[int] = []
    summary = compact(source, str(tmp_path / "dest"), target_bytes=TARGET_BYTES, on_rows=told.append)
    merged = TokenizedData.open(tmp_path / "dest")
    assert merged.complete
    assert 1 < len(merged.parts) == summary.num_parts < len(source.parts)
    assert merged.read_all().equals(source.read_all())
    assert merged.schema.equals(source.schema, check_metadata=False)
    rejects = merged.read_all(folder="rejects")
    assert rejects.equals(source.read_all(folder="rejects"))
    assert len(rejects) == 7
    assert sum(told) == source.num_rows == summary.num_rows == 313
    assert summary.num_tokens == source.num_tokens == merged.num_tokens
    assert merged.runs() == (RECORD,)
    assert merged.run.config == source.run.config
    assert merged.run.compacted_from is not None
    assert merged.run.compacted_from.url == source.url
    assert merged.run.compacted_from.complete
    for part in merged.parts:
        assert set(part.row_group_rows[:-1]) <= {100}  # of the source's run.json


def test_clips_and_their_frames_are_still_counted(source: TokenizedData, tmp_path: Path) -> None:
    compact(source, str(tmp_path / "out"), target_bytes=TARGET_BYTES)
    before, after = (TokenizedData.open(folder) for folder in (tmp_path / "source", tmp_path / "out"))
    counts = [
        tuple(sum(getattr(part, name) for part in data.parts) for name in ("num_clips", "num_frames"))
        for data in (before, after)
    ]
    assert counts == [(4, 8 * (1 + 3 + 5 + 7))] * 2
    assert len(after.parts) < len(before.parts)


def test_parts_keep_their_encodings_and_tell_their_shards(source: TokenizedData, tmp_path: Path) -> None:
    compact(source, str(tmp_path / "dest"), target_bytes=TARGET_BYTES)
    merged = TokenizedData.open(tmp_path / "dest")

    def encodings(data: TokenizedData) -> dict[str, tuple[object, ...]]:
        group = data.footer(data.parts[0].name).row_group(0)
        chunks = [group.column(i) for i in range(group.num_columns)]
        return {chunk.path_in_schema: (chunk.encodings, chunk.compression, chunk.is_stats_set) for chunk in chunks}

    assert encodings(merged) == encodings(source)
    shards = []
    for part in merged.parts:
        metadata = merged.footer(part.name).metadata
        assert FOOTER_SHARD.encode() not in metadata
        shards += json.loads(metadata[FOOTER_SHARDS.encode()])
        assert json.loads(metadata[b"tatok.fingerprint"]) == FINGERPRINT
    assert [shard["shard_id"] for shard in shards] == [f"{i:04}" for i in range(8)]
    again = tmp_path / "again"
    compact(merged, str(again), target_bytes=10**9)
    (whole,) = TokenizedData.open(again).parts
    metadata = pq.read_metadata(again / "data" / whole.name).metadata
    assert json.loads(metadata[FOOTER_SHARDS.encode()]) == shards
    assert pq.read_table(again / "data").equals(source.read_all())


@settings(max_examples=12, deadline=None)
@given(st.lists(st.sampled_from([0, 1, 5, 64, 65, 130]), min_size=1, max_size=7), st.integers(1, 150_000))
def test_any_part_sizes(tmp_path_factory: pytest.TempPathFactory, rows_per_part: list[int], target: int) -> None:
    folder = tmp_path_factory.mktemp("sizes")
    source = write_data_set(folder / "source", rows_per_part)
    compact(source, str(folder / "dest"), target_bytes=target)
    merged = TokenizedData.open(folder / "dest")
    assert merged.read_all().equals(source.read_all())
    assert merged.read_all(folder="rejects").equals(source.read_all(folder="rejects"))
    assert merged.num_tokens == source.num_tokens


def test_training_reads_it(source: TokenizedData, tmp_path: Path) -> None:
    compact(source, str(tmp_path / "dest"), target_bytes=TARGET_BYTES)
    before, after = TokenDataset(source.url), TokenDataset(tmp_path / "dest")
    assert len(after) == len(before) == 313
    for row in (0, 31, 312):
        assert after[row].tokens.equal(before[row].tokens)


def test_duckdb_reads_it(source: TokenizedData, tmp_path: Path) -> None:
    compact(source, str(tmp_path / "dest"), target_bytes=TARGET_BYTES)
    found = duckdb.sql(f"SELECT count(*), sum(len(tokens)), sum(num_tokens) FROM '{tmp_path}/dest/data/*.parquet'")
    assert found.fetchall() == [(313, source.num_tokens, source.num_tokens)]


def test_again_does_nothing(source: TokenizedData, tmp_path: Path) -> None:
    dest = tmp_path / "dest"
    compact(source, str(dest), target_bytes=TARGET_BYTES)
    times = {path: path.stat().st_mtime_ns for path in dest.rglob("*") if path.is_file()}
    summary = compact(source, str(dest), target_bytes=TARGET_BYTES)
    assert summary.num_parts_kept == summary.num_parts
    assert {path: path.stat().st_mtime_ns for path in dest.rglob("*") if path.is_file()} == times


def test_stopped_at_any_write_it_goes_on(
    source: TokenizedData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = tmp_path / "whole"
    compact(source, str(whole), target_bytes=TARGET_BYTES)
    publish = OutputStore.publish
    count = 0

    def failing(limit: int) -> Callable[..., bool]:
        def publish_some(store: OutputStore, path: Path, name: str, *, create: bool) -> bool:
            nonlocal count
            count += 1
            if count > limit:
                raise KeyboardInterrupt
            return publish(store, path, name, create=create)

        return publish_some

    num_writes = len(files(whole))
    assert num_writes >= 9
    for limit in range(num_writes):
        dest, count = tmp_path / f"dest-{limit}", 0
        monkeypatch.setattr(OutputStore, "publish", failing(limit))
        with pytest.raises(KeyboardInterrupt):
            compact(source, str(dest), target_bytes=TARGET_BYTES)
        assert not (dest / "_SUCCESS").exists()
        monkeypatch.setattr(OutputStore, "publish", publish)
        compact(source, str(dest), target_bytes=TARGET_BYTES)
        assert files(dest) == files(whole)


@pytest.mark.parametrize("num_publications", [3, 6])
def test_killed_it_goes_on(source: TokenizedData, tmp_path: Path, num_publications: int) -> None:
    script = f"""
        import os, signal
        from tatok.pipeline.export.compact import compact
        from tatok.pipeline.storage.store import OutputStore
        from tatok.dataset.parts import TokenizedData
        publish, left = OutputStore.publish, {num_publications}
        def dying(*arguments, **options):
            global left
            left -= 1
            if left < 0:
                os.kill(os.getpid(), signal.SIGKILL)
            return publish(*arguments, **options)
        OutputStore.publish = dying
        compact(TokenizedData.open({source.url!r}), {str(tmp_path / "dest")!r}, target_bytes={TARGET_BYTES})
    """
    killed = subprocess.run([sys.executable, "-c", textwrap.dedent(script)], cwd=ROOT, check=False)
    assert killed.returncode == -signal.SIGKILL
    assert not (tmp_path / "dest" / "_SUCCESS").exists()
    compact(source, str(tmp_path / "dest"), target_bytes=TARGET_BYTES)
    compact(source, str(tmp_path / "whole"), target_bytes=TARGET_BYTES)
    assert files(tmp_path / "dest") == files(tmp_path / "whole")


def test_what_is_no_place_for_it(source: TokenizedData, tmp_path: Path) -> None:
    dest = tmp_path / "dest"
    compact(source, str(dest), target_bytes=TARGET_BYTES)
    before = files(dest)
    with pytest.raises(CommitError, match="--target-size"):
        compact(source, str(dest), target_bytes=10**9)
    other = write_data_set(tmp_path / "other", [5])
    with pytest.raises(CommitError, match=r"source .*not from .*other"):
        compact(other, str(dest), target_bytes=TARGET_BYTES)
    with pytest.raises(CommitError, match="was tokenized there"):
        compact(source, other.url, target_bytes=TARGET_BYTES)
    assert files(dest) == before
    for overlapping in (source.url, f"{source.url}/merged", str(tmp_path)):
        with pytest.raises(CommitError, match="overlap"):
            compact(source, overlapping)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "notes.txt").write_text("mine")
    with pytest.raises(CommitError, match="not empty"):
        compact(source, str(tmp_path / "full"))
    with pytest.raises(CommitError, match="is a file"):
        compact(source, str(tmp_path / "full" / "notes.txt"))


def test_a_grown_source_is_not_mixed_in(source: TokenizedData, tmp_path: Path) -> None:
    compact(source, str(tmp_path / "dest"), target_bytes=TARGET_BYTES)
    grown = write_data_set(tmp_path / "source", [30, 0, 7, 120, 64, 1, 1, 90, 11])
    with pytest.raises(CommitError, match=r"8 parts, 313 rows.*9 parts, 324 rows"):
        compact(grown, str(tmp_path / "dest"), target_bytes=TARGET_BYTES)


def test_an_incomplete_source(source: TokenizedData, tmp_path: Path) -> None:
    mark_incomplete(OutputStore.open(source.url))
    unfinished = TokenizedData.open(source.url)
    with pytest.raises(SourceError, match="--allow-incomplete"):
        compact(unfinished, str(tmp_path / "dest"))
    compact(unfinished, str(tmp_path / "dest"), allow_incomplete=True)
    merged = TokenizedData.open(tmp_path / "dest")
    assert merged.read_all().equals(source.read_all())
    assert merged.run.compacted_from is not None
    assert not merged.run.compacted_from.complete


def test_a_part_of_another_kind_is_named(source: TokenizedData, tmp_path: Path) -> None:
    name = source.parts[3].name
    path = Path(source.url) / "data" / name
    table, metadata = pq.read_table(path), pq.read_metadata(path).metadata
    narrow = table.drop_columns(["patch_entropy_bits"])
    pq.write_table(narrow.replace_schema_metadata(metadata), path)
    with pytest.raises(CommitError, match=rf"{name} has other columns than the rest \(patch_entropy_bits\)"):
        compact(source, str(tmp_path / "dest"))
    pq.write_table(table.slice(1).replace_schema_metadata(metadata), path)
    with pytest.raises(SourceError, match="hold 312 rows, the manifest says 313"):
        compact(source, str(tmp_path / "dest"))
    metadata[b"tatok.fingerprint"] = b'{"weights": "other"}'
    pq.write_table(table.replace_schema_metadata(metadata), path)
    with pytest.raises(CommitError, match=rf"{name} was made under other settings"):
        compact(source, str(tmp_path / "dest"))
    assert not (tmp_path / "dest" / "_SUCCESS").exists()


def test_tokenizing_into_it_is_refused(source: TokenizedData, tmp_path: Path) -> None:
    compact(source, str(tmp_path / "dest"))
    store = OutputStore.open(str(tmp_path / "dest"))
    config = JobConfig(source="a.tar", output=store.url)
    with pytest.raises(CommitError, match="Continue in the original output") as caught:
        claim_output(store, config, FINGERPRINT)
    assert source.url in str(caught.value)
    (tmp_path / "dest" / "_run.json").unlink()
    with pytest.raises(CommitError, match="Continue in the original output"):
        claim_output(store, config, FINGERPRINT)
    claim_output(OutputStore.open(source.url), config, FINGERPRINT)


def test_a_job_into_it_stops_before_it_writes(
    photo_shards: Callable[..., str], tmp_path: Path, local_ray: None
) -> None:
    def config(output: str) -> JobConfig:
        return JobConfig.model_validate(
            {
                "source": photo_shards(2, 4),
                "output": str(tmp_path / output),
                "preprocessing": {"image_size": 64},
                "resources": {"num_decoders": 1},
            }
        )

    run_job(config("out"), load_tokenizer=load_fake)
    compact(TokenizedData.open(tmp_path / "out"), str(tmp_path / "merged"))
    before = files(tmp_path / "merged")
    with pytest.raises(CommitError, match="was compacted from"):
        run_job(config("merged"), load_tokenizer=load_fake)
    assert files(tmp_path / "merged") == before


def test_buckets(s3_bucket: str, tmp_path: Path) -> None:
    url = f"s3://{s3_bucket}/compact"
    write_synthetic(f"{url}/source", 600, rows_per_part=100, rejects_per_part=2)
    source = TokenizedData.open(f"{url}/source")
    for dest in (f"{url}/dest", str(tmp_path / "dest")):
        compact(source, dest, target_bytes=60_000)
        merged = TokenizedData.open(dest)
        assert merged.complete
        assert 1 < len(merged.parts) < 6
        assert merged.read_all().equals(source.read_all())
        assert merged.read_all(folder="rejects").equals(source.read_all(folder="rejects"))
        assert compact(source, dest, target_bytes=60_000).num_parts_kept == len(merged.parts)
    with pytest.raises(CommitError, match="overlap"):
        compact(source, f"{url}/source/merged")


def test_old_run_json_is_read() -> None:
    text = '{"schema_version": "1", "fingerprint": {}, "config": {}}'
    run = RunDocument.from_json(text)
    assert run.compacted_from is None
    assert "compacted_from" not in run.to_json()
    for broken in ("[]", '{"schema_version": "1"}', text[:-1] + ', "compacted_from": {"url": "a"}}'):
        with pytest.raises(ValueError, match="not a run document"):
            RunDocument.from_json(broken)
