from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from s3fs import S3FileSystem

from tatok.dataset.dataset import TokenDataset
from tatok.dataset.packing import Packing
from tatok.dataset.parts import TokenizedData
from tatok.pipeline.output.manifest import claim_output, mark_success, update_manifest
from tatok.pipeline.storage.store import OutputStore
from tatok.schemas.errors import ConfigError, SourceError
from tatok.schemas.job import JobConfig
from tatok.schemas.urls import filesystem_of
from tests.support.parts import commit
from tests.support.synthetic_tokens import write_synthetic


@pytest.fixture
def store(tmp_path: Path) -> OutputStore:
    return OutputStore.open(str(tmp_path / "out"))


def test_a_running_job_shows_what_it_has_published(store: OutputStore) -> None:
    commit(store, "s0")
    update_manifest(store, [])
    commit(store, "s1")  # newer than the manifest
    data = TokenizedData.open(store.url)
    assert [part.name for part in data.parts] == ["part-s0.parquet", "part-s1.parquet"]
    assert not data.complete
    assert data.num_rows == 14
    assert data.num_tokens == sum(part.num_tokens for part in update_manifest(store, []).parts)
    assert data.parts[1].row_group_rows == (4, 3)
    assert data.run.fingerprint == {"weights": "abc"}


def test_a_finished_data_set_is_opened_from_its_manifest_alone(store: OutputStore) -> None:
    claim_output(store, JobConfig(source="a.tar", output=store.url), {"weights": "abc"})
    commit(store, "s0")
    manifest = update_manifest(store, [])
    mark_success(store)
    (Path(store.url) / "data" / "part-s0.parquet").write_bytes(b"not looked at")
    data = TokenizedData.open(Path(store.url))
    assert data.complete
    assert data.parts == manifest.parts


def test_columns_and_row_groups(store: OutputStore) -> None:
    commit(store, "s0")
    data = TokenizedData.open(store.url)
    whole = pq.read_table(f"{store.url}/data/part-s0.parquet")
    assert data.read("part-s0.parquet").equals(whole)
    part = data.read("part-s0.parquet", columns=["key", "tokens"], row_groups=[1])
    assert part.equals(whole.select(["key", "tokens"]).slice(4))
    assert data.schema.equals(whole.schema.remove_metadata()) or data.schema.names == whole.schema.names
    assert data.read("part-s0.parquet", folder="rejects").column("reason").to_pylist() == ["corrupt"]


def test_clear_errors(store: OutputStore, tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="holds no tokenized dataset"):
        TokenizedData.open(tmp_path / "nothing")
    with pytest.raises(ConfigError, match="fsspec"):
        TokenizedData.open("nosuchscheme://bucket")
    commit(store, "s0")
    data = TokenizedData.open(store.url)
    with pytest.raises(ConfigError, match="no column colour"):
        data.read("part-s0.parquet", columns=["colour"])
    (Path(store.url) / "data" / "part-x.parquet").write_bytes(b"hello")
    with pytest.raises(SourceError, match=r"part-x\.parquet"):
        TokenizedData.open(store.url)
    pq.write_table(pa.table({"a": [1]}), f"{store.url}/data/part-x.parquet", version="2.4")
    with pytest.raises(SourceError, match="not a part that tatok wrote"):
        TokenizedData.open(store.url)


def test_remote_reads_fetch_the_same_rows(s3_bucket: str, tmp_path: Path) -> None:
    local, remote = str(tmp_path / "syn"), f"s3://{s3_bucket}/syn"
    for url in (local, remote):
        write_synthetic(url, 700, rows_per_part=300, row_group_rows=128, patch_entropy=True)
    here, there = TokenizedData.open(local), TokenizedData.open(remote)
    assert [part.row_group_rows for part in there.parts] == [(128, 128, 44), (128, 128, 44), (100,)]
    names = ["num_tokens", "tokens", "caption"]
    assert there.read_all(names).equals(here.read_all(names))
    part = here.parts[0].name
    columns = ["positions", "label"]
    assert there.read(part, columns=columns, row_groups=[2]).equals(here.read(part, columns=columns, row_groups=[2]))


@pytest.fixture
def asked(s3_bucket: str, monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, str, str]]:
    """What is asked of the bucket: the operation, the object's name, and the range."""
    requests: list[tuple[str, str, str]] = []
    original = S3FileSystem._call_s3

    async def noted(self: S3FileSystem, method: str, *args: Any, **options: Any) -> Any:
        requests.append((method, options.get("Key", "").rpartition("/")[2], options.get("Range", "")))
        return await original(self, method, *args, **options)

    monkeypatch.setattr(S3FileSystem, "_call_s3", noted)
    return requests


def test_opening_a_bucket_s_dataset_is_one_request_a_document(
    s3_bucket: str, asked: list[tuple[str, str, str]]
) -> None:
    url = f"s3://{s3_bucket}/opened"
    write_synthetic(url, 100)
    asked.clear()
    assert TokenizedData.open(url).num_rows == 100
    names = ("_SUCCESS", "_manifest.json", "_run.json", "manifest.json", "run.json")  # the last two of older datasets
    assert sorted(asked) == [("get_object", name, "") for name in names]


def test_a_small_part_of_a_bucket_is_one_request(s3_bucket: str, asked: list[tuple[str, str, str]]) -> None:
    url = f"s3://{s3_bucket}/small"
    write_synthetic(url, 400, rows_per_part=200)
    data = TokenizedData.open(url)
    asked.clear()
    batches = list(TokenDataset(url).stream(Packing(tokens=4096)))
    assert sum(len(batch.rows) for batch in batches) == 400
    of_parts = sorted(each for each in asked if each[1].endswith(".parquet"))
    assert of_parts == [("get_object", part.name, f"bytes=0-{part.num_bytes - 1}") for part in data.parts]


def test_of_a_part_with_several_row_groups_only_what_is_wanted_is_asked_for(
    s3_bucket: str, asked: list[tuple[str, str, str]]
) -> None:
    url = f"s3://{s3_bucket}/groups"
    write_synthetic(url, 30_000, rows_per_part=30_000, row_group_rows=10_000)
    asked.clear()
    batches = list(TokenDataset(url).stream(Packing(tokens=8192)))
    assert sum(len(batch.rows) for batch in batches) == 30_000
    of_parts = [each for each in asked if each[1].endswith(".parquet")]
    assert of_parts
    assert not [each for each in of_parts if each[2].startswith("bytes=0-")]


def test_a_small_part_that_ends_early_is_named(s3_bucket: str) -> None:
    url = f"s3://{s3_bucket}/early"
    write_synthetic(url, 100)
    data = TokenizedData.open(url)
    (part,) = data.parts
    fs, path = filesystem_of(data.path(part.name))
    fs.pipe_file(path, fs.cat_file(path)[:-100])
    with pytest.raises(SourceError, match=rf"{part.name} ends early"):
        data.read(part.name, num_bytes=part.num_bytes, wants_most=True)


def test_synthetic_data_keeps_the_promises_of_real_data(tmp_path: Path) -> None:
    write_synthetic(str(tmp_path), 500, rows_per_part=250)
    data = TokenizedData.open(tmp_path)
    table = data.read_all()
    lengths = table.column("num_tokens").to_pylist()
    assert [len(tokens) for tokens in table.column("tokens").to_pylist()] == lengths
    assert sum(lengths) == data.num_tokens == json.loads((tmp_path / "_manifest.json").read_text())["num_tokens"]
    for positions, num in zip(
        table.column("positions").to_pylist(), table.column("num_patch_tokens").to_pylist(), strict=True
    ):
        assert positions == sorted(set(positions))
        assert len(positions) == num
