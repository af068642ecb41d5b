"""What is gone, what is forbidden, what does not answer, and a store that is down."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest

from tatok.pipeline.planning.plan import plan_shards
from tatok.pipeline.readers.fetch import Fetcher, resolve_uri
from tatok.pipeline.readers.read import ReadOptions, read_samples
from tatok.pipeline.readers.unreadable import Unreadable
from tatok.schemas.errors import SourceError
from tatok.schemas.records import Reject, Sample
from tests.support.photos import jpeg
from tests.support.services.web_server import serving


def read_list(folder: Path, uris: list[str]) -> list[Sample | Reject]:
    path = folder / "list.txt"
    path.write_text("\n".join(uris))
    [shard] = plan_shards([str(path)])
    return list(read_samples(shard, ReadOptions(max_sample_bytes=1 << 20)))


def outline(items: list[Sample | Reject]) -> dict[int, str]:
    return {item.index: item.reason if isinstance(item, Reject) else "sample" for item in items}


def nobody() -> str:
    """An address at which no server listens."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return f"http://127.0.0.1:{probe.getsockname()[1]}"


@pytest.mark.parametrize(
    ("text", "base", "expected"),
    [
        ("a.jpg", "/data/list.txt", "/data/a.jpg"),
        ("../a b.jpg", "/data/x/list.txt", "/data/a b.jpg"),
        ("/other/a.jpg", "/data/list.txt", "/other/a.jpg"),
        ("file:///other/a.jpg", "/data/list.txt", "/other/a.jpg"),
        ("https://host/a.jpg?x=1", "/data/list.txt", "https://host/a.jpg?x=1"),
        ("s3://b/a.jpg", "/data/list.txt", "s3://b/a.jpg"),
        ("deep/a.jpg", "s3://b/lists/list.txt", "s3://b/lists/deep/a.jpg"),
        ("memory://a.jpg", "memory://b/list.txt", "memory://a.jpg"),
        ("/etc/passwd", "s3://b/list.txt", "unreadable:/etc/passwd"),
        ("file:///etc/passwd", "s3://b/list.txt", "unreadable:file:///etc/passwd"),
        ("file:///etc/passwd", "https://host/x.parquet", "unreadable:file:///etc/passwd"),
        ("simplecache::s3://b/a.jpg", "/data/list.txt", "unreadable:simplecache::s3://b/a.jpg"),
        ("sftp://host/a.jpg", "/data/list.txt", "unreadable:sftp://host/a.jpg"),
        (" ", "/data/list.txt", "unreadable: "),
        ("https://h/a.jpg?X-Amz-Signature=PLANTED", "/data/list.txt", "signed:https://h/a.jpg"),
    ],
)
def test_what_a_row_may_name(text: str, base: str, expected: str) -> None:
    assert resolve_uri(text, base) == expected


def test_a_refused_address_is_not_read() -> None:
    got = Fetcher(max_bytes=100).fetch(resolve_uri("/etc/hostname", "s3://b/list.txt"))
    assert isinstance(got, Unreadable)
    assert got.reason == "unreadable_uri"
    got = Fetcher(max_bytes=100).fetch(resolve_uri("https://h/a.jpg?X-Amz-Signature=PLANTED", "s3://b/list.txt"))
    assert isinstance(got, Unreadable)
    assert got.reason == "signed_uri"
    assert "PLANTED" not in got.detail


def test_one_bad_address_is_one_reject(tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_bytes(jpeg(1))
    (tmp_path / "large.jpg").write_bytes(bytes(2 << 20))
    with serving(tmp_path, {"/gone.jpg": 410, "/private.jpg": 403, "/hidden.jpg": 401}) as web:
        names = ["a.jpg", "nothing.jpg", "gone.jpg", "private.jpg", "hidden.jpg", "large.jpg", "a.jpg?again"]
        items = read_list(tmp_path, [f"{web.url}/{name}" for name in names])
    assert outline(items) == {
        0: "sample", 1: "missing", 2: "missing", 3: "forbidden", 4: "forbidden", 5: "too_large", 6: "sample"
    }  # fmt: skip
    assert all(item.stage == "read" for item in items if isinstance(item, Reject))


def test_a_server_that_says_come_again_for_one_address(tmp_path: Path) -> None:
    for i in range(4):
        (tmp_path / f"{i}.jpg").write_bytes(jpeg(i))
    with serving(tmp_path, {"/1.jpg": 503, "/2.jpg": 0}) as web:
        items = read_list(tmp_path, [f"{web.url}/{i}.jpg" for i in range(4)])
        asked = [path for _, path in web.requests]
    assert outline(items) == {0: "sample", 1: "unreachable", 2: "unreachable", 3: "sample"}
    assert asked.count("/1.jpg") >= 2, "it was tried again"


def test_a_dead_server_among_others(tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_bytes(jpeg(1))
    with serving(tmp_path) as web:
        items = read_list(tmp_path, [f"{nobody()}/x.jpg", f"{web.url}/a.jpg"])
    assert outline(items) == {0: "unreachable", 1: "sample"}


@pytest.mark.parametrize("count", [1, 60])
def test_when_nobody_answers_it_is_no_reject(tmp_path: Path, count: int) -> None:
    with pytest.raises(SourceError) as caught:
        read_list(tmp_path, [f"{nobody()}/{i}.jpg" for i in range(count)])
    assert not caught.value.is_permanent


def test_a_server_that_goes_down_in_between(tmp_path: Path) -> None:
    """It has answered before, and nothing now: its addresses are not to blame."""
    for i in range(200):
        (tmp_path / f"{i}.jpg").write_bytes(jpeg(0))
    with serving(tmp_path) as web:
        (tmp_path / "list.txt").write_text("\n".join(f"{web.url}/{i}.jpg" for i in range(200)))
        [shard] = plan_shards([str(tmp_path / "list.txt")])
        samples = read_samples(shard, ReadOptions(max_sample_bytes=1 << 20))
        assert isinstance(next(samples), Sample)
        web.statuses |= {f"/{i}.jpg": 503 for i in range(200)}
        with pytest.raises(SourceError, match="503"):
            list(samples)


def test_files_that_are_gone(tmp_path: Path) -> None:
    folder = tmp_path / "photos"
    folder.mkdir()
    for i in range(3):
        (folder / f"{i}.jpg").write_bytes(jpeg(i))
    [shard] = plan_shards([str(folder)])
    (folder / "1.jpg").unlink()
    items = list(read_samples(shard, ReadOptions(max_sample_bytes=1 << 20)))
    assert [item.reason for item in items if isinstance(item, Reject)] == ["missing"]
    (folder / "2.jpg").write_bytes(b"of another size")
    with pytest.raises(SourceError, match="listed"):
        list(read_samples(shard, ReadOptions(max_sample_bytes=1 << 20)))
    (folder / "2.jpg").unlink()
    (folder / "0.jpg").unlink()
    folder.rename(tmp_path / "elsewhere")
    with pytest.raises(SourceError, match="photos"):  # as when a disk is not mounted
        list(read_samples(shard, ReadOptions(max_sample_bytes=1 << 20)))


def test_a_list_on_a_disk_may_name_what_is_not_there(tmp_path: Path) -> None:
    assert outline(read_list(tmp_path, ["none/a.jpg", "b.jpg"])) == {0: "missing", 1: "missing"}
