from __future__ import annotations

import gzip
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from webdataset import tariterators

from tatok.pipeline.planning.plan import plan_shards
from tatok.pipeline.readers.read import ReadOptions, read_samples
from tatok.pipeline.readers.tar_headers import split_member_name
from tatok.schemas.errors import SourceError
from tatok.schemas.records import Reject, Sample, Shard
from tests.support.photos import jpeg, photo_members, tar_bytes


def shard_of(path: Path) -> Shard:
    return plan_shards([str(path)])[0]


def read(path: Path, *, max_sample_bytes: int = 1 << 20, image_field: str | None = None) -> list[Sample | Reject]:
    return list(read_samples(shard_of(path), ReadOptions(max_sample_bytes=max_sample_bytes, image_field=image_field)))


@pytest.fixture
def archive(tmp_path: Path) -> Path:
    return tmp_path / "photos.tar"


def outline(items: list[Sample | Reject]) -> list[tuple[int, str, str]]:
    """(index, key, extension or reason) of each item."""
    return [(item.index, item.key, item.reason if isinstance(item, Reject) else item.extension) for item in items]


def test_samples_come_as_stored(archive: Path) -> None:
    archive.write_bytes(tar_bytes(photo_members(0, 3)))
    samples = read(archive)
    assert outline(samples) == [(0, "photo-0000", "jpg"), (1, "photo-0001", "jpg"), (2, "photo-0002", "jpg")]
    second = samples[1]
    assert isinstance(second, Sample)
    assert second.payload == jpeg(1, width=65)
    assert second.attachments == {"txt": b" caption 1 \n", "cls": b"1", "json": b'{"number": 1}'}
    assert second.uri == str(archive)


@pytest.mark.parametrize("suffix", ["tar.gz", "tgz"])
def test_compressed_archive(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"photos.{suffix}"
    path.write_bytes(gzip.compress(tar_bytes(photo_members(0, 2))))
    assert [item.key for item in read(path)] == ["photo-0000", "photo-0001"]


@pytest.mark.corpus
def test_keys_are_those_of_webdataset(corpus: Path) -> None:
    source = corpus / "photos-raw-0000.tar"
    with source.open("rb") as stream:
        files = tariterators.tar_file_expander([{"url": str(source), "stream": stream}])
        theirs = [(sample["__key__"], sample["jpg"]) for sample in tariterators.group_by_keys(files)]
    ours = [(sample.key, sample.payload) for sample in read(source, max_sample_bytes=1 << 26)]
    assert ours == theirs
    assert len(ours) == 80


@given(name=st.text(alphabet="ab./_\n\u00e4") | st.text())
def test_names_split_as_webdataset_splits_them(name: str) -> None:
    key, extension = tariterators.base_plus_ext(name)
    assert split_member_name(name) == ((name, ".") if key is None else (key, "." + extension.lower()))


def test_decoders_and_driver_need_no_torch() -> None:
    names = (
        "cluster.driver", "run", "decode.sample", "tokenization.dedup", "decode.guarded", "readers.read",
        "video.local_video",
    )  # fmt: skip
    modules = ", ".join(f"tatok.pipeline.{name}" for name in names)
    code = f"import sys, {modules}; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_key_ends_at_the_first_dot_of_the_base_name(archive: Path) -> None:
    archive.write_bytes(tar_bytes([("v1.0/a.left.JPG", b"x"), ("v1.0/a.TXT", b"t"), ("v1.0/b.jpg", b"y")]))
    assert outline(read(archive)) == [(0, "v1.0/a", "left.jpg"), (1, "v1.0/b", "jpg")]


def test_nothing_is_lost_to_unsorted_or_duplicate_members(archive: Path) -> None:
    members = [("a.jpg", b"1"), ("b.jpg", b"2"), ("a.jpg", b"3"), ("a.jpg", b"4"), ("a.txt", b"t")]
    archive.write_bytes(tar_bytes(members))
    samples = read(archive)
    assert outline(samples) == [(0, "a", "jpg"), (1, "b", "jpg"), (2, "a", "jpg"), (3, "a", "jpg")]
    assert [sample.payload for sample in samples if isinstance(sample, Sample)] == [b"1", b"2", b"3", b"4"]


def test_what_is_unreadable_is_rejected(archive: Path) -> None:
    members = [
        ("a.txt", b"no image"),
        ("README", b"no extension"),
        ("b.jpg", b"x"),
        ("b.png", b"y"),
        ("c.__key__", b"webdataset's own name"),
        ("d.jpg", b"z" * 2000),
        ("e.jpg", b"good"),
    ]
    archive.write_bytes(tar_bytes(members))
    items = read(archive, max_sample_bytes=1000)
    assert outline(items) == [
        (0, "a", "no_image"),
        (1, "README", "no_image"),
        (2, "b", "ambiguous_image"),
        (3, "c", "no_image"),
        (4, "d", "too_large"),
        (5, "e", "jpg"),
    ]
    assert all(item.stage == "read" for item in items if isinstance(item, Reject))


def test_image_field_chooses_the_member(archive: Path) -> None:
    archive.write_bytes(tar_bytes([("a.jpg", b"1"), ("a.seg.png", b"2"), ("b.jpg", b"3")]))
    items = read(archive, image_field="seg.png")
    assert outline(items) == [(0, "a", "seg.png"), (1, "b", "no_image")]


def test_name_that_is_not_utf8(archive: Path) -> None:
    archive.write_bytes(tar_bytes([("a.jpg", b"x")]).replace(b"a.jpg", b"\xe9.jpg", 1))
    header = bytearray(archive.read_bytes()[:512])
    header[148:156] = b" " * 8
    header[148:156] = f"{sum(header):06o}\0 ".encode()
    archive.write_bytes(bytes(header) + archive.read_bytes()[512:])
    (item,) = read(archive)
    item.key.encode("utf-8")
    assert item.key == r"\xe9"


def test_empty_and_foreign_files(tmp_path: Path) -> None:
    for name, data, reason in (
        ("empty.tar", b"", "empty_archive"),
        ("text.tar", b"hello " * 500, "not_an_archive"),
        ("short.tar", b"hello", "not_an_archive"),
        ("zip.tar.gz", b"\x1f\x8b" + b"\x00" * 2000, "not_an_archive"),
    ):
        path = tmp_path / name
        path.write_bytes(data)
        assert outline(read(path)) == [(0, name, reason)], name


def test_archive_without_members(archive: Path) -> None:
    archive.write_bytes(tar_bytes([]))
    assert read(archive) == []


def test_damage_between_headers(archive: Path) -> None:
    data = bytearray(tar_bytes([("a.jpg", b"1" * 512), ("b.jpg", b"2" * 512), ("c.jpg", b"3")]))
    data[1024:1536] = b"\xff" * 512
    archive.write_bytes(data)
    assert outline(read(archive)) == [(0, "a", "jpg"), (1, "photos.tar", "corrupt_archive")]


def test_truncated_gzip(tmp_path: Path) -> None:
    path = tmp_path / "photos.tar.gz"
    data = gzip.compress(tar_bytes(photo_members(0, 20)))
    path.write_bytes(data[: len(data) // 2])
    items = read(path)
    assert 1 < len(items) < 20
    assert isinstance(items[-1], Reject)
    assert items[-1].reason == "truncated_archive"
    assert all(isinstance(item, Sample) for item in items[:-1])


def test_absurd_header_record_is_not_read(archive: Path) -> None:
    info = tarfile.TarInfo("././@LongLink")
    info.type, info.size = tarfile.GNUTYPE_LONGNAME, 1 << 40
    archive.write_bytes(tar_bytes([("a.jpg", b"x")])[:1024] + info.tobuf(tarfile.GNU_FORMAT) + bytes(2048))
    items = read(archive)
    assert outline(items) == [(0, "a", "jpg"), (1, "photos.tar", "corrupt_archive")]


def test_range_of_samples(archive: Path) -> None:
    archive.write_bytes(tar_bytes(photo_members(0, 5)))
    whole = shard_of(archive)
    part = Shard(uri=whole.uri, kind="webdataset", start=1, stop=3, num_bytes=1, shard_id="x")
    assert [item.index for item in read_samples(part, ReadOptions(max_sample_bytes=1 << 20))] == [1, 2]


def test_missing_file_is_no_reject(tmp_path: Path) -> None:
    shard = Shard(uri=str(tmp_path / "gone.tar"), kind="webdataset", start=0, stop=None, num_bytes=1, shard_id="x")
    with pytest.raises(SourceError, match=r"gone\.tar"):
        list(read_samples(shard, ReadOptions(max_sample_bytes=1)))


_NAMES = st.tuples(st.sampled_from("abc"), st.sampled_from(["jpg", "txt", "npy"])).map(".".join)


@settings(max_examples=40, deadline=None)
@given(names=st.lists(_NAMES, max_size=12))
def test_every_image_is_a_sample_or_named_in_a_reject(
    names: list[str], tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = tmp_path_factory.mktemp("read") / "photos.tar"
    path.write_bytes(tar_bytes([(name, str(i).encode()) for i, name in enumerate(names)]))
    items = read(path)
    assert [item.index for item in items] == list(range(len(items)))
    payloads = [item.payload for item in items if isinstance(item, Sample)]
    assert payloads == [str(i).encode() for i, name in enumerate(names) if name.endswith("jpg")]


@settings(max_examples=40, deadline=None)
@given(names=st.lists(_NAMES, max_size=12, unique=True))
def test_groups_are_those_of_webdataset(names: list[str], tmp_path_factory: pytest.TempPathFactory) -> None:
    path = tmp_path_factory.mktemp("read") / "photos.tar"
    path.write_bytes(tar_bytes([(name, b"x") for name in names]))
    files = ({"fname": name, "data": b"x", "__url__": ""} for name in names)
    theirs = [sample["__key__"] for sample in tariterators.group_by_keys(files)]
    assert [item.key for item in read(path)] == theirs


@settings(max_examples=60, deadline=None)
@given(fraction=st.floats(0, 1, exclude_max=True))
def test_any_truncation_keeps_what_stands_before_it(fraction: float, tmp_path_factory: pytest.TempPathFactory) -> None:
    members = [(f"{key}.{ext}", key.encode() * 700) for key in "abcdef" for ext in ("jpg", "txt")]
    data = tar_bytes(members)
    size_to_end_of_members = sum(512 + (len(value) + 511) // 512 * 512 for _, value in members)
    cut = int(fraction * size_to_end_of_members)
    path = tmp_path_factory.mktemp("cut") / "photos.tar"
    path.write_bytes(data[:cut])
    *samples, last = read(path)
    assert isinstance(last, Reject)
    assert last.stage == "read"
    assert all(isinstance(sample, Sample) and sample.payload == sample.key.encode() * 700 for sample in samples)
    assert [sample.key for sample in samples] == list("abcdef")[: len(samples)]
    num_complete = sum(cut >= (i + 1) * size_to_end_of_members // 6 for i in range(6))
    assert len(samples) >= num_complete
