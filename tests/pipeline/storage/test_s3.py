"""Reading from and writing to an S3 server, over the real protocol."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path

import fsspec
import pyarrow.parquet as pq
import pytest

from tatok.pipeline.output.commit import committed_shards
from tatok.pipeline.planning.plan import plan_shards
from tatok.pipeline.storage.store import OutputStore
from tatok.schemas.errors import SourceError
from tests.support.parts import commit
from tests.support.photos import photo_members, tar_bytes
from tests.support.runs import job, run


def test_store_on_s3(s3_bucket: str) -> None:
    store = OutputStore.open(f"s3://{s3_bucket}/store").probe()
    assert store.create_only
    assert committed_shards(store) == frozenset()
    assert commit(store).part_sha256 is not None
    assert commit(store, first=50).part_sha256 is None, "the second one loses"
    assert committed_shards(store) == {"s0"}
    assert store.write_text("run.json", "a", create=True)
    assert not store.write_text("run.json", "b", create=True)
    assert store.read_text("run.json") == "a"
    assert store.write_text("run.json", "c")
    assert store.read_text("run.json") == "c"
    store.remove("run.json")
    assert store.read_text("run.json") is None


def test_a_part_in_pieces_does_not_replace_one(s3_bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The condition is the multipart upload's too; who was slower leaves no pieces behind."""
    fs = fsspec.filesystem("s3")  # instances are shared
    monkeypatch.setattr(fs, "put_file", partial(fs.put_file, chunksize=5 << 20))
    store = OutputStore.open(f"s3://{s3_bucket}/pieces").probe()
    path = tmp_path / "part"
    path.write_bytes(b"a" * (11 << 20))
    assert store.publish(path, "data/part", create=True)
    assert store.etag("data/part").endswith("-3"), "of three pieces"
    path.write_bytes(b"b" * (11 << 20))
    assert not store.publish(path, "data/part", create=True)
    assert fs.cat_file(f"{s3_bucket}/pieces/data/part", start=0, end=1) == b"a"
    assert "Uploads" not in fs.call_s3("list_multipart_uploads", Bucket=s3_bucket)


def test_store_that_ignores_create_only(s3_bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
    fs = fsspec.filesystem("s3")  # instances are shared
    obedient = fs.pipe_file
    monkeypatch.setattr(fs, "pipe_file", lambda path, data, mode="overwrite": obedient(path, data))
    store = OutputStore.open(f"s3://{s3_bucket}/ignoring").probe()
    assert not store.create_only
    assert commit(store).part_sha256 is not None
    assert commit(store, first=50).part_sha256 is None


def test_etag_tells_versions_apart(s3_bucket: str) -> None:
    fs = fsspec.filesystem("s3")
    fs.pipe_file(f"{s3_bucket}/versions/a.tar", b"1234")
    before = plan_shards([f"s3://{s3_bucket}/versions/a.tar"])[0].shard_id
    fs.pipe_file(f"{s3_bucket}/versions/a.tar", b"4321")
    assert plan_shards([f"s3://{s3_bucket}/versions/*.tar"])[0].shard_id != before
    with pytest.raises(SourceError, match="versions/b"):
        plan_shards([f"s3://{s3_bucket}/versions/b.tar"])


def test_bucket_in_bucket_out(s3_bucket: str, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    request.getfixturevalue("local_ray")
    fs = fsspec.filesystem("s3")
    for i in range(2):
        fs.pipe_file(f"{s3_bucket}/source/photos-{i}.tar", tar_bytes(photo_members(10 * i, 10)))
    config = job(f"s3://{s3_bucket}/source/photos-{{0..1}}.tar", tmp_path).model_copy(
        update={"output": f"s3://{s3_bucket}/tokens"}
    )
    summary = run(config)
    assert (summary.status, summary.num_rows, summary.num_parts) == ("complete", 20, 2)
    fs.invalidate_cache()
    names = sorted(name.removeprefix(f"{s3_bucket}/tokens/") for name in fs.find(f"{s3_bucket}/tokens"))
    assert [name for name in names if "/" not in name] == [
        ".huggingface.yaml",
        "_SUCCESS",
        "_manifest.json",
        "_run.json",
    ]
    assert len(names) == 9
    assert sum(name.startswith("_runs/") for name in names) == 1
    keys: list[str] = []
    for name in names:
        if name.startswith("data/"):
            with fs.open(f"{s3_bucket}/tokens/{name}", "rb") as file:
                keys += pq.read_table(file)["key"].to_pylist()
    assert sorted(keys) == [f"photo-{i:04}" for i in range(20)]
    assert run(config).reports == ()
    manifest = json.loads(fs.cat_file(f"{s3_bucket}/tokens/_manifest.json"))
    assert manifest["num_rows"] == 20
