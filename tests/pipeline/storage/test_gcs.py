"""Publishing into Google Cloud Storage, over its protocol: fake-gcs-server, a process of its own."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import fsspec
import pytest

import tatok.pipeline.storage.store
from tatok.pipeline.output.commit import committed_shards
from tatok.pipeline.storage.store import OutputStore
from tests.support.parts import commit


def test_an_object_is_created_once(gcs_bucket: str) -> None:
    store = OutputStore.open(f"gs://{gcs_bucket}/store").probe()
    assert store.create_only, "the generation must match"
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


def test_a_resumable_upload_does_not_replace_an_object(
    gcs_bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The server looks at the generation of single uploads alone, so this shows the look before an upload in pieces."""
    fs = fsspec.filesystem("gs")  # instances are shared
    monkeypatch.setattr(fs, "put_file", partial(fs.put_file, chunksize=1 << 19))
    monkeypatch.setattr(tatok.pipeline.storage.store, "_IN_PIECES_BYTES", 1 << 19)
    store = OutputStore.open(f"gs://{gcs_bucket}/large").probe()
    path = tmp_path / "part"
    for letter, wins in ((b"a", True), (b"b", False)):
        path.write_bytes(letter * (21 << 18))
        assert store.publish(path, "data/part", create=True) is wins
    assert fs.cat_file(f"{gcs_bucket}/large/data/part") == b"a" * (21 << 18)
