"""A dataset's folder: any reader of Parquet finds the rows and nothing else; older datasets keep their names."""

from __future__ import annotations

import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import duckdb
import pandas as pd
import polars as pl
import pyarrow.dataset as ds
import pyarrow.parquet as pq
import pytest
from fsspec.implementations.memory import MemoryFileSystem

from tatok import TokenDataset, statistics
from tatok.dataset.parts import TokenizedData
from tatok.pipeline.export.compact import compact
from tatok.pipeline.output.commit import commit_shard, restore_rejects
from tatok.pipeline.output.manifest import claim_output, mark_success, record_run, require_same_run, update_manifest
from tatok.pipeline.storage.store import OutputStore
from tatok.pipeline.tokenization.dedup import hashed_shards
from tatok.pipeline.verify.dataset import verify_output
from tatok.schemas.errors import CommitError, SourceError
from tatok.schemas.job import JobConfig
from tatok.schemas.manifest import LAYOUT, LAYOUT_0_2, RunRecord, layout_of
from tests.support.parts import batches, give_old_names, shard
from tests.support.synthetic_tokens import write_synthetic

KEYS = [f"row-{number:09}" for number in range(30)]
FINGERPRINT = {"vocab_size": "1024", "weights": "abc"}
NEW = {".huggingface.yaml", "_SUCCESS", "_dedup", "_manifest.json", "_rejects", "_run.json", "_runs", "data"}
OLD = {"_SUCCESS", "data", "dedup", "manifest.json", "rejects", "run.json", "runs"}
RECORD = RunRecord(
    started_at="2026-01-01T00:00:00+00:00",
    seconds=1.0,
    status="complete",
    num_shards=3,
    num_rows=30,
    num_tokens=1,
    num_rejects=6,
    num_failed_shards=0,
)


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three parts with rejects, a run's record, and what dedup leaves."""
    folder = tmp_path_factory.mktemp("written") / "tokens"
    write_synthetic(str(folder), 30, rows_per_part=10, rejects_per_part=2)
    record_run(OutputStore.of_dataset(str(folder)), RECORD)
    (folder / "_dedup").mkdir()
    pq.write_table(pq.read_table(folder / "_rejects").select(["key"]), folder / "_dedup" / "hashes-s0.pq")
    return folder


@pytest.fixture
def old(written: Path, tmp_path: Path) -> Path:
    folder = Path(shutil.copytree(written, tmp_path / "old"))
    give_old_names(folder)
    return folder


def names(folder: Path) -> set[str]:
    """All but scratch files."""
    return {path.name for path in folder.iterdir()} - {".tmp"}


def by_datasets(folder: str) -> list[str]:
    import datasets

    return list(datasets.load_dataset(folder, split="train")["key"])


READERS: dict[str, Callable[[str], Any]] = {
    "pandas": lambda folder: pd.read_parquet(folder)["key"],
    "pyarrow": lambda folder: ds.dataset(folder).to_table()["key"].to_pylist(),
    "polars": lambda folder: pl.read_parquet(f"{folder}/**/*.parquet")["key"],
    "duckdb": lambda folder: duckdb.read_parquet(folder).fetchnumpy()["key"],
    "duckdb, by a glob": lambda folder: duckdb.read_parquet(f"{folder}/**/*.parquet").fetchnumpy()["key"],
    "datasets": by_datasets,
}


@pytest.mark.parametrize("reader", READERS)
def test_a_reader_of_parquet_finds_the_rows_and_nothing_else(
    reader: str, written: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    assert names(written) == NEW
    assert sorted(READERS[reader](str(written))) == KEYS


@pytest.mark.parametrize("reader", ["pandas", "pyarrow"])
def test_rejects_are_read_by_their_folder(reader: str, written: Path) -> None:
    assert len(READERS[reader](f"{written}/_rejects")) == 6


def test_an_older_dataset_is_read(old: Path) -> None:
    assert names(old) == OLD
    data = TokenizedData.open(old)
    assert (data.layout, data.complete, data.num_rows) == (LAYOUT_0_2, True, 30)
    assert data.runs() == (RECORD,)
    assert data.read_all(folder="rejects").num_rows == 6
    assert data.path("part-a.parquet", "rejects") == f"{old}/rejects/part-a.parquet"
    assert len(TokenDataset(str(old))) == 30
    assert statistics.query(old, "SELECT count(*) AS n FROM rejects").to_pylist() == [{"n": 6}]
    assert not {finding.check for finding in verify_output(str(old)).findings} & {"run", "manifest"}


def test_an_older_dataset_goes_on_in_its_own_names(tmp_path: Path) -> None:
    def commit(store: OutputStore, name: str) -> None:
        commit_shard(
            store,
            shard(name),
            batches(),
            fingerprint=FINGERPRINT,
            vocab_size=1024,
            patch_entropy=True,
            row_group_rows=4,
        )

    folder = tmp_path / "tokens"
    config = JobConfig(source="a.tar", output=str(folder))
    store = OutputStore.of_dataset(str(folder))
    claim_output(store, config, FINGERPRINT)
    commit(store, "s0")
    update_manifest(store, [])
    give_old_names(folder)
    (folder / "rejects" / "part-s0.parquet").unlink()

    resumed = OutputStore.of_dataset(str(folder))
    assert require_same_run(resumed, FINGERPRINT)
    with pytest.raises(CommitError, match=r"settings of its run\.json"):
        claim_output(resumed, config, {"weights": "other"})
    claim_output(resumed, config, FINGERPRINT)
    commit(pickle.loads(pickle.dumps(resumed)), "s1")  # as a worker has it
    assert restore_rejects(resumed) == 1
    record_run(resumed, RECORD)
    assert len(update_manifest(resumed, []).parts) == 2
    mark_success(resumed)
    assert names(folder) == OLD - {"dedup"}
    assert {path.name for path in (folder / "rejects").iterdir()} == {"part-s0.parquet", "part-s1.parquet"}


def test_an_older_dataset_is_compacted_into_today_s_names(old: Path, tmp_path: Path) -> None:
    compact(TokenizedData.open(old), str(tmp_path / "new"))
    assert names(tmp_path / "new") == NEW - {"_dedup"}
    merged = TokenizedData.open(tmp_path / "new")
    assert merged.runs() == (RECORD,)
    assert merged.read_all(folder="rejects").equals(TokenizedData.open(old).read_all(folder="rejects"))


@pytest.mark.parametrize("gone", [["run.json"], ["run.json", "manifest.json"], ["_SUCCESS", "manifest.json"]])
def test_an_older_dataset_without_its_documents_is_still_one(gone: list[str], old: Path) -> None:
    for name in gone:
        (old / name).unlink()
    assert OutputStore.of_dataset(str(old)).layout == LAYOUT_0_2
    data = TokenizedData.open(old)
    assert (data.layout, data.num_rows) == (LAYOUT_0_2, 30)
    assert data.read_all(folder="rejects").num_rows == 6


def test_what_is_hashed_is_known_by_either_name(old: Path, written: Path) -> None:
    for folder in (old, written):
        assert hashed_shards(OutputStore.of_dataset(str(folder))) == {"s0"}


def test_a_folder_that_two_versions_wrote_into_is_refused(old: Path, written: Path) -> None:
    shutil.copy(written / "_run.json", old)
    for opened in (TokenizedData.open, OutputStore.of_dataset, verify_output):
        with pytest.raises(SourceError, match=r"both run\.json and _run\.json") as refused:
            opened(str(old))  # type: ignore[operator]
        assert "delete the newer ones" in str(refused.value.remedy)


def test_whoever_comes_second_to_an_older_tatok_gives_way(old: Path, tmp_path: Path) -> None:
    store = OutputStore.of_dataset(str(tmp_path / "tokens"))
    config = JobConfig(source="a.tar", output=store.url)
    (tmp_path / "tokens").mkdir()
    shutil.copy(old / "run.json", tmp_path / "tokens")
    with pytest.raises(CommitError, match=r"run\.json appeared meanwhile"):
        claim_output(store, config, FINGERPRINT)
    assert names(tmp_path / "tokens") == {"run.json"}
    assert OutputStore.of_dataset(store.url).layout == LAYOUT_0_2


def test_names_that_users_give_say_nothing() -> None:
    assert layout_of(["runs", "tokens.png", "data"], "x") == LAYOUT
    assert layout_of([], "x") == LAYOUT


def test_a_dataset_that_may_be_read_but_not_listed_is_opened(written: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Such a bucket says "forbidden" of what is not there."""
    fs = MemoryFileSystem()
    fs.put(str(written), "/forbidding", recursive=True)
    read = MemoryFileSystem.cat_file

    def cat_file(self: MemoryFileSystem, path: str, *args: Any, **options: Any) -> bytes:
        try:
            return read(self, path, *args, **options)
        except FileNotFoundError as error:
            raise PermissionError("Access Denied") from error

    monkeypatch.setattr(MemoryFileSystem, "cat_file", cat_file)
    assert TokenizedData.open("memory://forbidding").num_rows == 30
    with pytest.raises(SourceError, match="Access Denied"):
        TokenizedData.open("memory://forbidding/data")
