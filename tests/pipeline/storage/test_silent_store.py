"""A store that takes connections and never answers, and pieces of uploads whose processes were killed."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path

import fsspec
import pytest

from tatok.pipeline.output.commit import committed_shards
from tatok.pipeline.output.manifest import update_manifest
from tatok.pipeline.storage import background, store, unfinished
from tatok.pipeline.storage.options import storage_options
from tatok.pipeline.storage.store import OutputStore
from tatok.schemas.errors import CommitError


@pytest.fixture
def silent_store(silent_url: str, s3_port: int, monkeypatch: pytest.MonkeyPatch) -> Iterator[OutputStore]:
    """An output on a server that says nothing, with a deadline of a second instead of many."""
    for module in (background, store):
        monkeypatch.setattr(module, "ANSWER_S", 1.0)
    monkeypatch.setattr(background.answered, "__defaults__", (1.0,))
    with storage_options({"s3": {"endpoint_url": silent_url, "key": "k", "secret": "s"}}):
        yield OutputStore.open("s3://bucket/out")


@pytest.mark.parametrize(
    "work",
    [
        lambda output: output.probe(),
        committed_shards,
        lambda output: output.read_text("run.json"),
        lambda output: output.exists("run.json"),
        lambda output: output.size("data/part"),
        lambda output: output.open_input("data/part"),
        lambda output: output.etag("data/part"),
        lambda output: output.remove("_SUCCESS"),
        lambda output: update_manifest(output, ()),
    ],
    ids=["probe", "listing", "text", "exists", "size", "open", "etag", "remove", "manifest"],
)
def test_the_driver_says_so_and_what_to_do(silent_store: OutputStore, work: Callable[[OutputStore], object]) -> None:
    with pytest.raises(CommitError, match=r"s3://bucket/out.*no answer within 1 s") as caught:
        work(silent_store)
    assert "endpoint_url" in str(caught.value.remedy)


def test_an_upload_has_a_deadline_that_grows_with_its_size(
    silent_store: OutputStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "part").write_bytes(bytes(1000))
    monkeypatch.setattr(store, "_SLOWEST_BYTES_A_S", 1000)
    with pytest.raises(CommitError, match="no answer within 3 s"):
        silent_store.publish(tmp_path / "part", "manifest.json", create=False)


def test_sweeping_a_silent_store_is_no_failure(silent_store: OutputStore) -> None:
    silent_store.sweep_scratch()


def test_a_file_that_falls_silent_while_it_is_read(s3_bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is no damaged part that should be deleted."""
    output = OutputStore.open(f"s3://{s3_bucket}/falls-silent")
    output.write_text("data/part", "x" * 100)
    with output.open_input("data/part") as file:
        monkeypatch.setattr(background, "within", _never)
        with pytest.raises(CommitError, match=r"cannot read s3://.*/data/part: no answer within"):
            file.read()


def _never(seconds: float, work: object) -> object:
    raise background.Unanswered


def begin_upload(bucket: str, key: str) -> str:
    fs = fsspec.filesystem("s3")
    upload = fs.call_s3("create_multipart_upload", Bucket=bucket, Key=key)["UploadId"]
    fs.call_s3("upload_part", Bucket=bucket, Key=key, UploadId=upload, PartNumber=1, Body=b"x" * (5 << 20))
    return str(upload)


def uploads(bucket: str) -> set[str]:
    found = fsspec.filesystem("s3").call_s3("list_multipart_uploads", Bucket=bucket).get("Uploads", ())
    return {each["Key"] for each in found}


def test_pieces_of_killed_uploads_are_collected_once_none_can_be_alive(
    s3_bucket: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """This server says of every upload that it began in 2010."""
    begun = {key: begin_upload(s3_bucket, key) for key in ("killed/data/a", "killed/data/b", "killed-2/data/a")}
    output = OutputStore.open(f"s3://{s3_bucket}/killed")
    monkeypatch.setattr(unfinished, "STALE_UPLOAD", timedelta(days=365 * 1000))
    output.sweep_scratch()
    assert uploads(s3_bucket) == set(begun), "another run's, at work"
    monkeypatch.undo()
    output.sweep_scratch()
    assert uploads(s3_bucket) == {"killed-2/data/a"}, "of another output"
    OutputStore.open(f"s3://{s3_bucket}/killed-2").sweep_scratch()
    assert uploads(s3_bucket) == set()


def test_who_may_not_list_uploads_may_still_write(s3_bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
    fs = fsspec.filesystem("s3")  # instances are shared
    allowed = fs.call_s3

    def forbidding(method: str, **request: object) -> object:
        if method == "list_multipart_uploads":
            raise PermissionError("AccessDenied")
        return allowed(method, **request)

    monkeypatch.setattr(fs, "call_s3", forbidding)
    output = OutputStore.open(f"s3://{s3_bucket}/forbidden")
    assert output.write_text("run.json", "x")
    output.sweep_scratch()
