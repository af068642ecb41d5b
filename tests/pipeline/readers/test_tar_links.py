"""Links in tars are members with the content that they lead to; what leads nowhere is a reject."""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import os
import shutil
import subprocess
import tarfile
import tempfile
from collections import Counter
from pathlib import Path

import pyarrow as pa
import pytest

from tatok.pipeline.planning.plan import ShardSizes, plan_shards
from tatok.pipeline.readers.read import ReadOptions, read_samples
from tatok.pipeline.readers.tar import read_tar
from tatok.pipeline.storage import source_file
from tatok.schemas.errors import SourceError
from tatok.schemas.records import LeftOut, Reject, Sample, Shard
from tests.support.photos import tar_bytes

HARD, SYMBOLIC = tarfile.LNKTYPE, tarfile.SYMTYPE
Member = tuple[str, bytes | tuple[bytes, str]]
"""A name, and the content or what kind of link it is to what."""
COMPRESSIONS = {
    "tar": bytes,
    "tar.gz": gzip.compress,
    "tar.bz2": bz2.compress,
    "tar.xz": lzma.compress,
    "tar.zst": lambda data: bytes(pa.compress(data, "zstd", asbytes=True)),
}


def archive(members: list[Member], tar_format: int = tarfile.GNU_FORMAT) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tar_format) as tar:
        for name, content in members:
            info = tarfile.TarInfo(name)
            if isinstance(content, bytes):
                info.size = len(content)
                tar.addfile(info, io.BytesIO(content))
            else:
                info.type, info.linkname = content
                tar.addfile(info)
    return buffer.getvalue()


def read(path: Path, *, max_sample_bytes: int = 1 << 20, tar_bytes: int = 1 << 30) -> list[Sample | Reject]:
    shards = plan_shards([str(path)], sizes=ShardSizes(tar_bytes=tar_bytes))
    return [item for shard in shards for item in read_samples(shard, ReadOptions(max_sample_bytes=max_sample_bytes))]


def outcome(items: list[Sample | Reject]) -> list[tuple[str, bytes | str]]:
    """Key, and content or reason."""
    return [(item.key, item.reason if isinstance(item, Reject) else item.payload) for item in items]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "links.tar"


MEMBERS: list[Member] = [
    ("forward.jpg", (SYMBOLIC, "late/z.jpg")),
    ("./a.jpg", b"A"),
    ("hard.jpg", (HARD, "./a.jpg")),
    ("deep/up.jpg", (SYMBOLIC, "../a.jpg")),
    ("deep/beside.jpg", (SYMBOLIC, "up.jpg")),
    ("late/z.jpg", b"Z"),
    ("of-a-link.jpg", (HARD, "deep/beside.jpg")),
    ("c.jpg", b"C"),
    ("c.txt", (SYMBOLIC, "words.txt")),
    ("words.txt", b"words"),
]
CONTENT = {
    "forward": b"Z", "./a": b"A", "hard": b"A", "deep/up": b"A", "deep/beside": b"A", "late/z": b"Z",
    "of-a-link": b"A", "c": b"C", "words": "no_image",
}  # fmt: skip


@pytest.mark.parametrize("tar_format", [tarfile.GNU_FORMAT, tarfile.PAX_FORMAT, tarfile.USTAR_FORMAT])
@pytest.mark.parametrize("suffix", COMPRESSIONS)
def test_links_are_followed(suffix: str, tar_format: int, tmp_path: Path) -> None:
    """Hard and symbolic, back and forward, one behind the other, from any folder, to captions as well."""
    path = tmp_path / f"links.{suffix}"
    path.write_bytes(COMPRESSIONS[suffix](archive(MEMBERS, tar_format)))
    shard = Shard(uri=str(path), kind="webdataset", start=0, stop=None, num_bytes=path.stat().st_size, shard_id="")
    items = list(read_samples(shard, ReadOptions(max_sample_bytes=1 << 20)))
    assert outcome(items) == list(CONTENT.items())
    [captioned] = [item for item in items if isinstance(item, Sample) and item.key == "c"]
    assert captioned.attachments == {"txt": b"words"}


def test_long_names_and_targets(path: Path) -> None:
    folder = "ä" * 120 + "/" + "deep/" * 20
    for tar_format in (tarfile.GNU_FORMAT, tarfile.PAX_FORMAT):
        members: list[Member] = [(f"{folder}a.jpg", b"A"), ("b.jpg", (HARD, f"{folder}a.jpg"))]
        path.write_bytes(archive([*members, (f"{folder}c.jpg", (SYMBOLIC, "a.jpg"))], tar_format))
        assert outcome(read(path)) == [(f"{folder}a", b"A"), ("b", b"A"), (f"{folder}c", b"A")]


def test_of_a_name_that_comes_twice(path: Path) -> None:
    """On a disk the second one replaces the first; a hard link is to what was there when it was packed."""
    members: list[Member] = [
        ("a.jpg", b"first"),
        ("hard.jpg", (HARD, "a.jpg")),
        ("symbolic.jpg", (SYMBOLIC, "a.jpg")),
        ("a.jpg", b"second"),
    ]
    path.write_bytes(archive(members))
    assert outcome(read(path)) == [("a", b"first"), ("hard", b"first"), ("symbolic", b"second"), ("a", b"second")]


@pytest.mark.parametrize(
    ("members", "why"),
    [
        ([("x.jpg", (SYMBOLIC, "/etc/hostname"))], "no member"),
        ([("x.jpg", (HARD, "/etc/hostname"))], "no member"),
        ([("deep/x.jpg", (SYMBOLIC, "../../a.jpg")), ("a.jpg", b"A")], "no member"),
        ([("x.jpg", (HARD, "late.jpg")), ("late.jpg", b"A")], "no member"),  # nothing to link to as yet
        ([("x.jpg", (SYMBOLIC, "x.jpg"))], "circle"),
        ([("x.jpg", (SYMBOLIC, "y.jpg")), ("y.jpg", (SYMBOLIC, "x.jpg"))], "circle"),
        ([(f"{n}.jpg", (SYMBOLIC, f"{n + 1}.jpg")) for n in range(9)] + [("9.jpg", b"A")], "more than 8"),
        ([("x.jpg", (SYMBOLIC, "folder")), ("folder/a.jpg", b"A")], "no member"),
    ],
)  # fmt: skip
def test_links_that_lead_to_no_file_of_the_archive(members: list[Member], why: str, path: Path) -> None:
    path.write_bytes(archive([("before.jpg", b"B"), *members, ("after.jpg", b"E")]))
    items = read(path)
    assert len(items) == len(members) + 2
    [first, *_] = [item for item in items if isinstance(item, Reject)]
    assert (first.index, first.reason) == (1, "dangling_link")
    assert why in first.detail
    assert outcome(items)[-1] == ("after", b"E")


def test_a_link_to_a_folder_of_the_archive(path: Path) -> None:
    members = io.BytesIO()
    with tarfile.open(fileobj=members, mode="w") as tar:
        folder = tarfile.TarInfo("folder")
        folder.type = tarfile.DIRTYPE
        tar.addfile(folder)
        link = tarfile.TarInfo("x.jpg")
        link.type, link.linkname = SYMBOLIC, "folder"
        tar.addfile(link)
    path.write_bytes(members.getvalue())
    [reject] = read(path)
    assert isinstance(reject, Reject)
    assert (reject.reason, "no file" in reject.detail) == ("dangling_link", True)


def test_limits_hold_for_what_links_lead_to(path: Path) -> None:
    members: list[Member] = [("a.npy", b"x" * 2000), ("b.jpg", (SYMBOLIC, "a.npy")), ("c.jpg", b"C")]
    path.write_bytes(archive(members))
    assert outcome(read(path, max_sample_bytes=1000)) == [("a", "no_image"), ("b", "too_large"), ("c", b"C")]


def test_hidden_members_may_be_led_to_and_hidden_links_are_left_out(path: Path) -> None:
    """As git-annex keeps its files."""
    members: list[Member] = [
        (".git/annex/objects/1.jpg", b"A"),
        ("a.jpg", (SYMBOLIC, ".git/annex/objects/1.jpg")),
        ("._a.jpg", (SYMBOLIC, "nowhere.jpg")),
    ]
    path.write_bytes(archive(members))
    left_out = Counter[LeftOut]()
    [shard] = plan_shards([str(path)])
    items = list(read_samples(shard, ReadOptions(max_sample_bytes=100), left_out))
    assert outcome(items) == [("a", b"A")]
    assert left_out == {LeftOut("hidden"): 2}


def test_links_out_of_a_range(path: Path) -> None:
    """A split tar: what a range links to lies before it, or after it."""
    members: list[Member] = []
    for n in range(30):
        members += [(f"{n:02}.jpg", bytes([n]) * 3000), (f"h{n:02}.jpg", (HARD, f"{n // 2:02}.jpg"))]
        members += [(f"s{n:02}.jpg", (SYMBOLIC, f"{29 - n:02}.jpg"))]
    path.write_bytes(archive(members))
    whole = read(path)
    assert len(whole) == 90
    assert all(isinstance(item, Sample) for item in whole)
    parts = plan_shards([str(path)], sizes=ShardSizes(tar_bytes=8000))
    assert len(parts) > 5
    assert read(path, tar_bytes=8000) == whole


def test_behind_damage_there_is_nothing_to_lead_to(path: Path) -> None:
    data = archive([("x.jpg", (SYMBOLIC, "z.jpg")), ("a.jpg", b"A"), ("z.jpg", b"Z" * 3000)])
    path.write_bytes(data[: 512 + 1024 + 512 + 1000])
    first, second, third = read(path)
    assert isinstance(first, Reject)
    assert (first.key, first.reason) == ("x", "truncated_archive")
    assert outcome([second, third]) == [("a", b"A"), ("z", "truncated_archive")]
    path.write_bytes(data[: 512 + 1024 + 100])
    first, *_ = read(path)
    assert isinstance(first, Reject)
    assert first.reason == "dangling_link"
    assert "as far as it can be read" in first.detail


def test_a_tar_without_links_is_opened_once(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path.write_bytes(tar_bytes([("a.jpg", b"A"), ("b.jpg", b"B")]))
    [shard] = plan_shards([str(path)])

    def refuse(uri: str) -> None:
        raise AssertionError(f"{uri} was opened again")

    monkeypatch.setattr("tatok.pipeline.readers.tar_links.open_source", refuse)
    assert len(list(read_tar(shard, max_sample_bytes=100))) == 2


def test_a_store_that_fails_at_a_link_is_no_damage(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path.write_bytes(archive([("a.jpg", b"A"), ("b.jpg", (HARD, "a.jpg"))]))
    [shard] = plan_shards([str(path)])

    class Failing(io.BytesIO):
        def read(self, size: int | None = -1) -> bytes:
            raise ConnectionError("gone")

    assert source_file.open_source(str(path)).read(1)
    monkeypatch.setattr("tatok.pipeline.readers.tar_links.open_source", lambda uri: Failing())
    with pytest.raises(SourceError, match="gone"):
        list(read_tar(shard, max_sample_bytes=100))


def test_a_full_disk_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "links.tar.gz"
    path.write_bytes(gzip.compress(archive(MEMBERS)))
    [shard] = plan_shards([str(path)])

    class Full(io.BytesIO):
        def write(self, data: object) -> int:
            raise OSError(28, "No space left on device")

    monkeypatch.setattr(tempfile, "TemporaryFile", lambda **_: Full())
    with pytest.raises(SourceError, match="TMPDIR") as caught:
        list(read_tar(shard, max_sample_bytes=100))
    assert not caught.value.is_permanent


@pytest.mark.skipif(shutil.which("tar") is None, reason="no tar at hand")
@pytest.mark.parametrize("tar_format", ["gnu", "posix", "ustar", "v7"])
def test_what_gnu_tar_packs_is_what_lies_there(tar_format: str, tmp_path: Path) -> None:
    folder = tmp_path / "photos"
    (folder / "deep").mkdir(parents=True)
    (folder / "a.jpg").write_bytes(b"A")
    os.link(folder / "a.jpg", folder / "b.jpg")
    os.symlink("../a.jpg", folder / "deep" / "c.jpg")
    os.symlink("deep/c.jpg", folder / "d.jpg")
    path = tmp_path / "photos.tar"
    subprocess.run(["tar", f"--format={tar_format}", "-cf", path, "-C", folder, "."], check=True)
    assert sorted(outcome(read(path))) == [("./a", b"A"), ("./b", b"A"), ("./d", b"A"), ("./deep/c", b"A")]
