"""What else is in tars: hidden members, members that are no plain files, ends that are none, further data."""

from __future__ import annotations

import bz2
import gzip
import lzma
import os
import shutil
import subprocess
import tarfile
from collections import Counter
from pathlib import Path

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tatok.pipeline.planning.plan import ShardSizes, plan_shards
from tatok.pipeline.readers.read import ReadOptions, read_samples
from tatok.pipeline.readers.tar import read_tar
from tatok.pipeline.readers.tar_headers import is_hidden
from tatok.schemas.records import LeftOut, LeftOutMembers, Reject, Sample, Shard
from tests.support.photos import tar_bytes

BLOCK = 512
needs_tar = pytest.mark.skipif(shutil.which("tar") is None, reason="no tar at hand")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "photos.tar"


def read(path: Path, left_out: Counter[LeftOut] | None = None, *, size: int = 1 << 30) -> list[Sample | Reject]:
    shards = plan_shards([str(path)], sizes=ShardSizes(tar_bytes=size))
    return [item for shard in shards for item in read_samples(shard, ReadOptions(max_sample_bytes=1 << 20), left_out)]


def outline(items: list[Sample | Reject]) -> list[tuple[int, str, str]]:
    """(index, key, extension or reason) of each item."""
    return [(item.index, item.key, item.reason if isinstance(item, Reject) else item.extension) for item in items]


def special(kind: bytes, name: str) -> bytes:
    info = tarfile.TarInfo(name)
    info.type = kind
    return info.tobuf(tarfile.GNU_FORMAT)


def members(*names: str) -> bytes:
    """An archive without its end; each member holds its own name."""
    return tar_bytes([(name, name.encode()) for name in names])[: 2 * BLOCK * len(names)]


END = bytes(2 * BLOCK)


@pytest.mark.parametrize(
    ("name", "hidden"),
    [
        ("a.jpg", False), ("./a.jpg", False), ("../a.jpg", False), ("./deep/../a.jpg", False), ("a/b..jpg", False),
        (".a.jpg", True), ("./._a.jpg", True), (".git/a.jpg", True), ("deep/.cache/x/a.jpg", True), ("...", True),
    ],
)  # fmt: skip
def test_what_is_hidden(name: str, hidden: bool) -> None:
    assert is_hidden(name) is hidden


def test_hidden_members_break_no_sample_and_are_counted(path: Path) -> None:
    """A macOS companion between a photo and its caption; a hidden folder with a photo in it."""
    names = ("./._a.jpg", "./a.jpg", "./._a.txt", "./a.txt", ".thumbs/a.jpg", "./b.jpg", ".DS_Store")
    folder = special(tarfile.DIRTYPE, ".thumbs")
    path.write_bytes(members(*names[:4]) + folder + members(*names[4:]) + END)
    left_out = Counter[LeftOut]()
    first, second = read(path, left_out)
    assert isinstance(first, Sample)
    assert (first.key, first.attachments) == ("./a", {"txt": b"./a.txt"})
    assert outline([second]) == [(1, "./b", "jpg")]
    assert left_out == {LeftOut("hidden"): 4}


def test_the_count_comes_last_also_behind_damage(path: Path) -> None:
    path.write_bytes(members(".x", "a.jpg") + b"\xff" * BLOCK + END)
    [shard] = plan_shards([str(path)])
    sample, reject, last = read_tar(shard, max_sample_bytes=100)
    assert isinstance(sample, Sample)
    assert isinstance(reject, Reject)
    assert last == LeftOutMembers(counts={LeftOut("hidden"): 1})
    path.write_bytes(members("a.jpg") + END)
    assert len(list(read_tar(plan_shards([str(path)])[0], max_sample_bytes=100))) == 1


_NAMES = st.sampled_from(["a.jpg", "a.txt", "b.jpg", "b", ".a.jpg", "./.b/c.jpg", "._a.txt", "c.", "x/c.jpg"])


@settings(max_examples=60, deadline=None)
@given(names=st.lists(st.tuples(_NAMES, st.sampled_from([b"0", b"2", b"3", b"5", b"V"])), min_size=1, max_size=30))
def test_ranges_hold_what_the_whole_holds(
    names: list[tuple[str, bytes]], tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Samples, links, devices and hidden members, each in one range."""
    path = tmp_path_factory.mktemp("split") / "photos.tar"
    blocks = [members(name) if kind == b"0" else special(kind, name) for name, kind in names]
    path.write_bytes(b"".join(blocks) + END)
    of_whole, of_ranges = Counter[LeftOut](), Counter[LeftOut]()
    whole = read(path, of_whole)
    assert read(path, of_ranges, size=3 * BLOCK) == whole
    assert of_ranges == of_whole
    assert of_whole.total() == sum(is_hidden(name) for name, kind in names if kind not in (b"5", b"V"))


@pytest.mark.parametrize("kind", [tarfile.CHRTYPE, tarfile.BLKTYPE, tarfile.FIFOTYPE, b"M", b"Q"])
def test_members_that_are_no_files(kind: bytes, path: Path) -> None:
    devices = special(kind, "b.jpg") + special(kind, "c.txt") + special(kind, "null")
    path.write_bytes(members("a.jpg") + devices + members("d.jpg", "d.txt") + special(kind, "d.npy") + END)
    assert outline(read(path)) == [
        (0, "a", "jpg"),
        (1, "b", "unsupported_member"),
        (2, "c", "unsupported_member"),
        (3, "null", "unsupported_member"),
        (4, "d", "jpg"),  # what nobody reads may be anything
    ]


@needs_tar
@pytest.mark.parametrize(
    "how", [["--format=gnu"], *(["--format=posix", f"--sparse-version={v}"] for v in ("0.0", "0.1", "1.0"))]
)
def test_sparse_members_of_gnu_tar(how: list[str], tmp_path: Path) -> None:
    for name in ("a.jpg", "c.jpg"):
        (tmp_path / name).write_bytes(name.encode())
    with (tmp_path / "b.jpg").open("wb") as file:
        for n in range(40):  # more holes than a header has room for
            file.seek(n * 65536)
            file.write(b"x")
    path = tmp_path / "photos.tar"
    names = ["a.jpg", "b.jpg", "c.jpg"]
    subprocess.run(["tar", "--sparse", *how, "-cf", path, "-C", tmp_path, *names], check=True)
    items = read(path)
    assert outline(items) == [(0, "a", "jpg"), (1, "b", "unsupported_member"), (2, "c", "jpg")]
    [reject] = [item for item in items if isinstance(item, Reject)]
    assert "sparse" in reject.detail


@needs_tar
def test_the_label_of_gnu_tar_is_nothing(tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_bytes(b"A")
    path = tmp_path / "photos.tar"
    subprocess.run(["tar", "--label=My photos", "-cf", path, "-C", tmp_path, "a.jpg"], check=True)
    assert outline(read(path)) == [(0, "a", "jpg")]


def test_folders_of_incremental_backups_are_nothing(path: Path) -> None:
    """They hold a list of names."""
    info = tarfile.TarInfo("photos")
    info.type, info.size = b"D", 10
    path.write_bytes(info.tobuf(tarfile.GNU_FORMAT) + b"Ya.jpg\0\0".ljust(BLOCK, b"\0") + members("a.jpg") + END)
    assert outline(read(path)) == [(0, "a", "jpg")]


def test_headers_that_cannot_be_understood_are_damage(path: Path) -> None:
    """Numbers and maps out of which tarfile makes exceptions that are not its own."""
    record = b"30 GNU.sparse.map=abc,1,2,nope\n"
    info = tarfile.TarInfo("b.jpg")
    info.type, info.size = tarfile.XHDTYPE, len(record)
    planted = info.tobuf(tarfile.USTAR_FORMAT) + record.ljust(BLOCK, b"\0")
    path.write_bytes(members("a.jpg") + planted + members("c.jpg") + END)
    assert outline(read(path)) == [(0, "a", "jpg"), (1, "photos.tar", "corrupt_archive")]


def test_a_negative_size_in_a_record_does_not_send_the_planner_in_circles(path: Path) -> None:
    record = b"14 size=-1024\n"
    info = tarfile.TarInfo("b.jpg")
    info.type, info.size = tarfile.XHDTYPE, len(record)
    planted = info.tobuf(tarfile.USTAR_FORMAT) + record.ljust(BLOCK, b"\0")
    path.write_bytes(members("a.jpg") + planted + members("c.jpg", "d.jpg") + END)
    assert outline(read(path, size=BLOCK))[-1] == (1, "photos.tar", "corrupt_archive")


@pytest.mark.parametrize(
    ("data", "last"),
    [
        (members("a.jpg", "b.jpg"), "truncated_archive"),
        (members("a.jpg", "b.jpg") + bytes(BLOCK), None),
        (members("a.jpg", "b.jpg") + bytes(BLOCK + 100), None),
        (members("a.jpg", "b.jpg") + END, None),
        (members("a.jpg", "b.jpg") + bytes(1 << 21), None),
        (members("a.jpg", "b.jpg") + bytes(BLOCK) + members("c.jpg") + END, "corrupt_archive"),
        (members("a.jpg", "b.jpg") + bytes(BLOCK) + b"x", "corrupt_archive"),
        (members("a.jpg", "b.jpg") + END + members("c.jpg") + END, "data_after_end"),  # as `cat` joins them
        (members("a.jpg", "b.jpg") + bytes(20 * BLOCK) + b"x", "data_after_end"),
        (members("a.jpg", "b.jpg") + bytes(1 << 21) + b"\n", "data_after_end"),
    ],
)
@pytest.mark.parametrize("size", [1 << 30, BLOCK])
def test_ends(data: bytes, last: str | None, size: int, path: Path) -> None:
    path.write_bytes(data)
    expected = [(0, "a", "jpg"), (1, "b", "jpg")]
    assert outline(read(path, size=size)) == (expected if last is None else [*expected, (2, "photos.tar", last)])


def test_a_block_of_zeros_at_the_start(path: Path) -> None:
    path.write_bytes(bytes(BLOCK) + members("a.jpg") + END)
    assert outline(read(path)) == [(0, "photos.tar", "corrupt_archive")]
    path.write_bytes(END + members("a.jpg") + END)
    assert outline(read(path)) == [(0, "photos.tar", "data_after_end")]


def test_a_range_does_not_read_what_follows_it(path: Path) -> None:
    path.write_bytes(members(*(f"{n}.jpg" for n in range(10))) + END + b"more")
    first, *_, last = plan_shards([str(path)], sizes=ShardSizes(tar_bytes=4 * BLOCK))
    assert all(isinstance(item, Sample) for item in read_tar(first, max_sample_bytes=100))
    assert [item.reason for item in read_tar(last, max_sample_bytes=100) if isinstance(item, Reject)] == [
        "data_after_end"
    ]


COMPRESSIONS = {
    "gz": gzip.compress,
    "bz2": bz2.compress,
    "xz": lzma.compress,
    "zst": lambda data: bytes(pa.compress(data, "zstd", asbytes=True)),
}


@pytest.mark.parametrize("suffix", COMPRESSIONS)
def test_streams_one_behind_the_other(suffix: str, tmp_path: Path) -> None:
    """As pbzip2, bgzip and `cat` make them: one archive, cut anywhere."""
    data = members("a.jpg", "b.jpg", "c.jpg") + END
    path = tmp_path / f"photos.tar.{suffix}"
    compress = COMPRESSIONS[suffix]
    path.write_bytes(b"".join(compress(piece) for piece in (data[:700], data[700:2048], data[2048:])))
    shard = Shard(uri=str(path), kind="webdataset", start=0, stop=None, num_bytes=0, shard_id="")
    options = ReadOptions(max_sample_bytes=100)
    assert outline(list(read_samples(shard, options))) == [(n, key, "jpg") for n, key in enumerate("abc")]
    path.write_bytes(compress(data) + compress(data))
    assert outline(list(read_samples(shard, options)))[3:] == [(3, path.name, "data_after_end")]


def test_a_gzip_whose_checksum_is_wrong_is_damaged(tmp_path: Path) -> None:
    path = tmp_path / "photos.tar.gz"
    data = bytearray(gzip.compress(members("a.jpg", "b.jpg") + END))
    data[-6] ^= 1
    path.write_bytes(data)
    assert outline(read(path)) == [(0, "a", "jpg"), (1, "b", "jpg"), (2, path.name, "corrupt_archive")]


@pytest.mark.parametrize("suffix", ["gz", "bz2", "xz"])
def test_what_follows_a_compressed_archive(suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"photos.tar.{suffix}"
    path.write_bytes(COMPRESSIONS[suffix](members("a.jpg") + END) + bytes(100))
    shard = Shard(uri=str(path), kind="webdataset", start=0, stop=None, num_bytes=0, shard_id="")
    assert outline(list(read_samples(shard, ReadOptions(max_sample_bytes=100)))) == [(0, "a", "jpg")], "padding"
    path.write_bytes(path.read_bytes() + b"garbage")
    *_, last = outline(list(read_samples(shard, ReadOptions(max_sample_bytes=100))))
    assert last == (1, path.name, "corrupt_archive")


def test_a_member_without_extension_is_a_sample_of_its_own(path: Path) -> None:
    path.write_bytes(members("a", "a.jpg", "a.txt", "README") + END)
    assert outline(read(path)) == [(0, "a", "no_image"), (1, "a", "jpg"), (2, "README", "no_image")]


@needs_tar
@pytest.mark.parametrize("tar_format", ["gnu", "posix"])
def test_names_are_those_that_gnu_tar_lists(tar_format: str, tmp_path: Path) -> None:
    folder = tmp_path / "photos"
    names = ["a.jpg", "b c.jpg", "ü" * 60 + ".jpg", "n" * 200 + ".jpg", "deep/" * 30 + "x.jpg"]
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(name.encode())
    (folder / os.fsdecode(b"caf\xe9.jpg")).write_bytes(b"latin")
    path = tmp_path / "photos.tar"
    subprocess.run(["tar", f"--format={tar_format}", "-cf", path, "-C", folder, "--sort=name", "."], check=True)
    listed = subprocess.run(
        ["tar", "--quoting-style=literal", "-tf", path], check=True, capture_output=True
    ).stdout.decode("utf-8", "backslashreplace")
    samples = read(path)
    assert [f"{sample.key}.jpg" for sample in samples] == [n for n in listed.splitlines() if not n.endswith("/")]
    assert {sample.payload for sample in samples if isinstance(sample, Sample)} == {
        *(name.encode() for name in names), b"latin"
    }  # fmt: skip
