"""The samples of tars by their headers; the right numbers are by hand, from docs/guides/sources.md."""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import tarfile
from collections.abc import Callable
from pathlib import Path
from random import Random

import pyarrow as pa
import pytest

from benchmarks.robustness.fuzz_inputs import bases, mutated
from tatok.pipeline.census.tars import count_tar
from tatok.schemas.errors import SourceError

BLOCK = 512
each_format = pytest.mark.parametrize("tar_format", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])


def info(name: str, kind: bytes = tarfile.REGTYPE, link: str = "", **pax: str) -> tarfile.TarInfo:
    member = tarfile.TarInfo(name)
    member.type, member.linkname, member.pax_headers = kind, link, pax
    return member


def archive(*members: str | tarfile.TarInfo, tar_format: int = tarfile.GNU_FORMAT, size: int = 700) -> bytes:
    """Members of `size` bytes each, where they have any content."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tar_format) as tar:
        for member in members:
            each = info(member) if isinstance(member, str) else member
            each.size = size if each.isreg() else 0
            tar.addfile(each, io.BytesIO(bytes(size)) if each.isreg() else None)
    return buffer.getvalue()


def count(data: bytes, folder: Path) -> tuple[int, int | None]:
    (folder / "a.tar").write_bytes(data)
    return count_tar(str(folder / "a.tar"))


@pytest.mark.parametrize(
    ("names", "num_samples"),
    [
        ([], 0),
        (["a.jpg", "a.txt", "b.jpg"], 2),
        (["a.jpg", "b.jpg", "a.txt"], 3),  # not next to each other
        (["a.jpg", "a.JPG", "a.txt"], 2),  # an extension that comes again
        (["a.jpg", "a.seg.png", "a.b.c"], 1),
        (["x/a.jpg", "y/a.jpg", "./y/a.txt"], 3),
        (["v1.0/a.jpg", "v1.0/a.txt"], 1),
        (["a.jpg", "README", "LICENSE", "b.jpg"], 4),
        (["a.jpg", "._a.jpg", "a.txt", ".git/x.jpg", "b.jpg", "./c.jpg"], 3),
        (["../a.jpg", "..b.jpg", "...jpg"], 1),
        (["x.jpg/.hidden/a.jpg", "x/.b/c.jpg"], 0),
        (["caf\u00e9.jpg", "cafe\u0301.jpg"], 2),
        (["a" * 90 + ".jpg", "a" * 90 + ".txt"], 1),
    ],
)
@each_format
def test_members_of_one_key_are_a_sample(names: list[str], num_samples: int, tar_format: int, tmp_path: Path) -> None:
    assert count(archive(*names, tar_format=tar_format), tmp_path) == (num_samples, num_samples)


@pytest.mark.parametrize("tar_format", [tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_long_names(tar_format: int, tmp_path: Path) -> None:
    """The first hundred bytes of all are the same."""
    stems = [f"{'d' * 120}/{'x' * 150}{number}" for number in range(3)]
    names = [f"{stem}.{end}" for stem in stems for end in ("jpg", "txt")]
    hidden = f"{'d' * 120}/.{'x' * 150}.jpg"
    long_link = info("link.jpg", tarfile.SYMTYPE, link=names[0] + "/" + "y" * 200)
    assert count(archive(*names, hidden, long_link, tar_format=tar_format), tmp_path) == (4, 4)


def test_a_ustar_prefix_is_part_of_the_name(tmp_path: Path) -> None:
    names = [f"{'p' * 120}{n}/a.jpg" for n in range(2)]
    assert count(archive(*names, tar_format=tarfile.USTAR_FORMAT), tmp_path) == (2, 2)


def test_pax_records_give_path_and_size(tmp_path: Path) -> None:
    """As archives with members of 8 GiB and more have them, here with less."""
    first = info("a.jpg", path="b.jpg", size="1400")
    data = archive(first, "b.txt", tar_format=tarfile.PAX_FORMAT)
    # Its own header says 700 bytes; by the record it has one block more, which is put in here.
    at = data.index(b"b.txt") // BLOCK * BLOCK
    assert count(data[:at] + bytes(BLOCK) + data[at:], tmp_path) == (1, 1)
    everywhere = tarfile.TarInfo.create_pax_global_header({"comment": "x" * 600})
    assert count(everywhere + archive("a.jpg", "a.txt"), tmp_path) == (1, 1)


def test_what_is_no_plain_file_is_a_member_all_the_same(tmp_path: Path) -> None:
    members = [
        "a.jpg",
        info("folder.x/", tarfile.DIRTYPE),  # no data, and does not part a.jpg from a.txt
        "a.txt",
        info("hard.jpg", tarfile.LNKTYPE, "a.jpg"),
        info("soft.jpg", tarfile.SYMTYPE, "a.jpg"),
        info("nowhere.jpg", tarfile.SYMTYPE, "/etc/hosts"),
        info("pipe.jpg", tarfile.FIFOTYPE),
        info("device.jpg", tarfile.CHRTYPE),
        info("label", b"V"),  # of the archive; like a folder's listing (D) it is no member
        info("listing", b"D"),
        info("unknown.jpg", b"Q"),
    ]
    assert count(archive(*members), tmp_path) == (7, 7)


def test_old_sparse_members_have_further_maps(tmp_path: Path) -> None:
    header = bytearray(info("s.jpg", tarfile.GNUTYPE_SPARSE).tobuf(tarfile.GNU_FORMAT))
    header[124:136], header[482] = b"00000000012\0", 1  # ten bytes of data, and one more block of the map
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)
    assert count(bytes(header) + bytes(2 * BLOCK) + archive("b.jpg"), tmp_path) == (2, 2)


COMPRESSED: dict[str, Callable[[bytes], bytes]] = {
    "gzip": gzip.compress,
    "two gzips": lambda data: gzip.compress(data[:1000]) + gzip.compress(data[1000:]),
    "bzip2": bz2.compress,
    "xz": lzma.compress,
    "zstd": lambda data: bytes(pa.compress(data, "zstd", asbytes=True)),
}


@pytest.mark.parametrize("how", COMPRESSED)
def test_compressed(how: str, tmp_path: Path) -> None:
    data = COMPRESSED[how](archive(*(f"{n}.jpg" for n in range(50))))
    assert count(data, tmp_path) == (50, 50)
    least, most = count(data[: len(data) // 2], tmp_path)
    assert (least, most) == (1, None)  # a reject for all, and how many came before depends on who decompresses


GOOD = archive("a.jpg", "b.jpg", "c.jpg")  # each 3 blocks, then the end
MEMBERS = 9 * BLOCK


@pytest.mark.parametrize(
    ("data", "bounds"),
    [
        (b"", (1, 1)),
        (bytes(BLOCK), (0, 0)),
        (bytes(20 * BLOCK), (0, 0)),
        (b"no tar at all" * 100, (1, None)),
        (GOOD[:MEMBERS], (4, 4)),  # no end is a cut: a reject
        (GOOD[: MEMBERS + BLOCK], (3, 3)),
        (GOOD[: MEMBERS + 100], (4, None)),  # ends within a block
        (GOOD[: MEMBERS + 2 * BLOCK] + b"more", (4, 4)),  # a reject for what follows the end
        (GOOD + GOOD, (4, 4)),
        (GOOD[:MEMBERS] + b"x" * 100, (4, None)),
        (GOOD[: MEMBERS - 10], (4, None)),  # all bytes of c are there
        (GOOD[: MEMBERS - BLOCK], (3, None)),  # a, b, and a reject for the rest
        (GOOD[: MEMBERS - 2 * BLOCK - 10], (3, None)),  # within a header
        (GOOD[: 3 * BLOCK] + bytes(BLOCK) + GOOD[3 * BLOCK :], (2, None)),  # one zero block before further data
        (GOOD[: 3 * BLOCK] + b"X" + GOOD[3 * BLOCK + 1 :], (2, None)),  # a header whose checksum is wrong
        (GOOD[: 3 * BLOCK] + bytes(tarfile.TarInfo.create_pax_global_header({"a": "b"}))[:BLOCK], (2, None)),
        (archive("x" * 200)[: 2 * BLOCK] + bytes(1024), (1, None)),  # a long name of nothing
    ],
)
def test_damage_bounds_the_count(data: bytes, bounds: tuple[int, int | None], tmp_path: Path) -> None:
    assert count(data, tmp_path) == bounds


@pytest.mark.parametrize(
    "field", [b"99999999999\0", b"\xff" * 12, b"\x80" + b"\xff" * 11, b"notanumber!\0", b"-0000000001\0"]
)
def test_sizes_that_cannot_be_are_damage(field: bytes, tmp_path: Path) -> None:
    data = bytearray(GOOD)
    data[3 * BLOCK + 124 : 3 * BLOCK + 136] = field
    data[3 * BLOCK + 148 : 3 * BLOCK + 156] = b" " * 8
    data[3 * BLOCK + 148 : 3 * BLOCK + 156] = b"%06o\0 " % sum(data[3 * BLOCK : 4 * BLOCK])
    least, most = count(bytes(data), tmp_path)
    assert least == 2
    assert most is None


def test_every_mutation_has_a_count(tmp_path: Path) -> None:
    """No damage is an exception."""
    for number in range(500):
        rng = Random(number)
        least, most = count(mutated("tar", rng.choice(bases("tar")), rng), tmp_path)
        assert least >= 0
        assert most is None or most >= least


def test_a_store_that_fails_is_no_damage(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="cannot open"):
        count_tar(str(tmp_path / "gone.tar"))
