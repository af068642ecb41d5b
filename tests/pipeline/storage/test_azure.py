"""Azure Blob Storage, over its protocol: Azurite, a process of its own."""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Barrier

import fsspec
import pytest

from tatok import Rows, TokenDataset, statistics
from tatok.dataset.parts import TokenizedData
from tatok.pipeline.decode.sample import decode_sample
from tatok.pipeline.output.commit import commit_shard, committed_shards, restore_rejects
from tatok.pipeline.output.manifest import claim_output, mark_success, require_same_run, update_manifest
from tatok.pipeline.planning.pending import compare_with_committed
from tatok.pipeline.planning.plan import plan_shards
from tatok.pipeline.readers.read import ReadOptions, read_samples
from tatok.pipeline.storage.failures import is_permanent
from tatok.pipeline.storage.remedies import access_remedy
from tatok.pipeline.storage.store import OutputStore
from tatok.pipeline.tokenization.tokenize import tokenize_clips
from tatok.pipeline.verify.dataset import verify_output
from tatok.schemas.errors import CommitError, SourceError
from tatok.schemas.job import JobConfig, Limits, Preprocessing
from tatok.schemas.manifest import LAYOUT
from tatok.schemas.records import Reject, Shard
from tests.support.fake_tokenizer import FakeTokenizer
from tests.support.parts import commit
from tests.support.photos import photo_members, tar_bytes

FAKE = FakeTokenizer()
FINGERPRINT = {"vocab_size": str(FAKE.vocab_size), "schema": "2", "patch_entropy": "true"}


def test_an_object_is_created_once(azure_container: str) -> None:
    store = OutputStore.open(f"az://{azure_container}/store").probe()
    assert store.create_only, "a blob that must not be there"
    assert committed_shards(store) == frozenset()
    assert commit(store).part_sha256 is not None
    assert commit(store, first=50).part_sha256 is None, "the second one loses"
    assert committed_shards(store) == {"s0"}
    assert store.write_text("text", "a", create=True)
    assert not store.write_text("text", "b", create=True)
    assert store.read_text("text") == "a"
    assert store.write_text("text", "c")
    assert store.read_text("text") == "c"
    store.remove("text")
    assert store.read_text("text") is None
    assert store.size("text") is None
    assert store.names() == {"data", "_rejects"}


def test_of_two_at_once_one_wins(azure_container: str, tmp_path: Path) -> None:
    store = OutputStore.open(f"az://{azure_container}/race").probe()
    together = Barrier(4)

    def publish(number: int) -> bool:
        path = tmp_path / f"{number}"
        path.write_bytes(bytes([number]) * 100_000)
        together.wait()
        return store.publish(path, "data/part", create=True)

    with ThreadPoolExecutor(max_workers=4) as pool:
        won = list(pool.map(publish, range(4)))
    assert sum(won) == 1
    assert fsspec.filesystem("az").cat_file(f"{azure_container}/race/data/part")[0] == won.index(True)


def tokenize(store: OutputStore, shard: Shard) -> None:
    samples = read_samples(shard, ReadOptions(max_sample_bytes=1 << 20))
    decoded = (
        each
        for sample in samples
        for each in ([sample] if isinstance(sample, Reject) else decode_sample(sample, PREPROCESSING, Limits()))
    )
    commit_shard(
        store,
        shard,
        tokenize_clips(decoded, FAKE.encode_clips, batch_size=4, vocab_size=FAKE.vocab_size, patch_entropy=True),
        fingerprint=FINGERPRINT,
        vocab_size=FAKE.vocab_size,
        patch_entropy=True,
        row_group_rows=4,
    )


PREPROCESSING = Preprocessing(image_size=64)


def test_a_dataset_from_a_tar_to_the_loader(azure_container: str) -> None:
    """As a run does, without Ray: planned, claimed, committed, resumed, verified, queried, loaded."""
    fs = fsspec.filesystem("az")
    for number in range(2):
        members = [*photo_members(10 * number, 10), ("bad.jpg", b"no photo")]
        fs.pipe_file(f"{azure_container}/source/photos-{number}.tar", tar_bytes(members))
    source, url = f"az://{azure_container}/source/photos-*.tar", f"az://{azure_container}/tokens"
    config = JobConfig(source=source, output=url)
    store = OutputStore.of_dataset(url).probe()
    assert store.layout == LAYOUT
    claim_output(store, config, FINGERPRINT)
    first, second = plan_shards([source])
    tokenize(store, first)
    assert not TokenizedData.open(url).complete

    resumed = OutputStore.of_dataset(url).probe()
    assert require_same_run(resumed, FINGERPRINT)
    progress = compare_with_committed([first, second], committed_shards(resumed), lambda ids: [])
    assert [shard.shard_id for shard in progress.pending] == [second.shard_id]
    tokenize(resumed, second)
    resumed.remove(LAYOUT.rejects_of(f"part-{first.shard_id}.parquet"))
    assert restore_rejects(resumed) == 1
    manifest = update_manifest(resumed, [])
    assert all(part.checksum.startswith("etag:") for part in manifest.parts)
    mark_success(resumed)
    resumed.sweep_scratch()

    found = verify_output(url, [source])
    assert [(finding.check, finding.message) for finding in found.findings] == []
    assert (found.num_rows, found.num_rejects, found.num_counted) == (20, 2, 2)
    data = TokenizedData.open(url)
    assert (data.complete, data.num_rows) == (True, 20)
    assert statistics.query(url, "SELECT count(*) AS n FROM rejects").to_pylist() == [{"n": 2}]
    keys = data.read_all(["key"])["key"].to_pylist()
    assert sorted(keys) == [f"photo-{number:04}" for number in range(20)]
    batches = list(TokenDataset(url).stream(Rows(rows=5), epochs=1))
    assert sum(len(row.tokens) for batch in batches for row in batch.documents) == data.num_tokens


@pytest.fixture
def wrong_key(azure_container: str, monkeypatch: pytest.MonkeyPatch) -> str:
    """A blob that is there, for clients whose key is not the account's."""
    fsspec.filesystem("az").pipe_file(f"{azure_container}/forbidden/a.tar", b"x")
    before, _, rest = os.environ["AZURE_STORAGE_CONNECTION_STRING"].partition("AccountKey=")
    monkeypatch.setitem(
        fsspec.config.conf, "az", {"connection_string": f"{before}AccountKey=d3Jvbmc=;{rest.partition(';')[2]}"}
    )
    return f"az://{azure_container}/forbidden"


OPENED: dict[str, Callable[[str], object]] = {
    "the dataset": TokenizedData.open,
    "the output": lambda url: OutputStore.of_dataset(url),
    "a probe": lambda url: OutputStore.open(url).probe(),
    "a part's place": lambda url: OutputStore.open(url).publish(Path(__file__), "data/x", create=True),
    "a document": lambda url: OutputStore.open(url).write_text("x", "y"),
    "a source": lambda url: plan_shards([f"{url}/*.tar"]),
    "a tar": lambda url: list(
        read_samples(
            Shard(uri=f"{url}/a.tar", kind="webdataset", start=0, stop=None, num_bytes=1, shard_id="s"),
            ReadOptions(max_sample_bytes=1),
        )
    ),
}


@pytest.mark.parametrize("what", OPENED)
def test_a_store_that_refuses_says_so(what: str, wrong_key: str) -> None:
    with pytest.raises((SourceError, CommitError)) as refused:
        OPENED[what](wrong_key)
    assert refused.value.__cause__ is not None
    assert is_permanent(refused.value.__cause__)
    assert "the credentials in use may not" in str(access_remedy(refused.value.__cause__, wrong_key, "read"))
