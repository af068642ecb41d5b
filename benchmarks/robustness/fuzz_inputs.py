"""Mutated images, archives, tables, lists and job files: a number and a seed always give the same input.

Half of the mutated PNGs and archives get their checksums put right again, so that what is wrong lies deeper.
"""

from __future__ import annotations

import gzip
import io
import random
import struct
import tarfile
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Literal

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from benchmarks import ROOT
from tests.support.photos import encoded, jpeg, photo_members, tar_bytes

__all__ = ["IMAGE_KINDS", "KINDS", "LIST_KINDS", "FuzzInput", "Kind", "bases", "fuzz_input", "mutated"]

Kind = Literal["jpeg", "png", "webp", "tar", "parquet", "job", "txt", "csv", "tsv", "jsonl"]
KINDS: dict[Kind, float] = {
    "jpeg": 0.26, "png": 0.17, "webp": 0.17, "tar": 0.13, "parquet": 0.09, "job": 0.1,
    "txt": 0.01, "csv": 0.03, "tsv": 0.02, "jsonl": 0.02,
}  # fmt: skip
"""The share of the inputs that each kind has."""

IMAGE_KINDS: tuple[Kind, ...] = ("jpeg", "png", "webp")
LIST_KINDS: tuple[Kind, ...] = ("txt", "csv", "tsv", "jsonl")

_BLOCK = 512
_NUMBERS = (0, 1, 0x7F, 0x80, 0xFF, 0x7FFF, 0xFFFF, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF)
_JOB_FRAGMENTS = (
    b"[" * 3000,
    b"{" * 50,
    b"&a [*a, *a]",
    b"*nobody",
    b"!!python/object/apply:os.system ['true']",
    b"!!binary x",
    b"!!timestamp 2001-99-99",
    b"2001-99-99",
    b"1e999",
    b".nan",
    b"-.inf",
    b"-1",
    b"0x" + b"f" * 400,
    b"9" * 5000,
    b"190:20:30",
    b"null",
    b"~",
    b"'",
    b'"\\ud800"',
    b"\x00",
    b"\t",
    b"---\n",
    b"? ",
    b": ",
    b"<<: *a",
    b"\xff\xfe",
    b"|+\n",
    b"s3://",
    b"{0..9999999999}",
)
_LIST_FRAGMENTS = (
    *(
        b'"',
        b'""',
        b'"""',
        b'"\n"',
        b'x"y',
        b"\n",
        b"\n\n",
        b"\r",
        b"\r\n",
        b"\t",
        b"\t\t",
        b",",
        b",,",
        b" ",
        b"#",
        b"\\",
    ),
    *(b"\x00", b"\x0b", b"\x0c", b"\x1c", b"\xc2\x85", b"\xe2\x80\xa8", b"\xef\xbb\xbf", b"\xff", b"{", b"}", b"null"),
    *(b'\n"b.jpg,\nc.jpg,"\n', b"data:image/png;base64,AAAA", b"https://a.example/b.jpg", b"x" * 200_000),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class FuzzInput:
    """One mutated input; `num_intact_bytes` of its beginning are as in what it was made from, `base`."""

    number: int
    kind: Kind
    base: bytes
    data: bytes

    @property
    def name(self) -> str:
        """File or member name, unlike every other input's."""
        return f"input-{self.number:06}.{self.kind}"

    @property
    def num_intact_bytes(self) -> int:
        """How long a beginning the mutation has left as it was."""
        pairs = zip(self.base, self.data, strict=False)
        return next((i for i, (old, new) in enumerate(pairs) if old != new), min(len(self.base), len(self.data)))


def fuzz_input(seed: int, number: int) -> FuzzInput:
    """The input of this number; the same for the same seed."""
    rng = random.Random(f"{seed}/{number}")
    (kind,) = rng.choices(list(KINDS), weights=list(KINDS.values()))
    base = rng.choice(bases(kind))
    return FuzzInput(number=number, kind=kind, base=base, data=mutated(kind, base, rng))


def mutated(kind: Kind, base: bytes, rng: random.Random) -> bytes:
    """Change `base` in one to four places, as its kind invites to."""
    data = bytearray(base)
    for _ in range(rng.choice((1, 1, 2, 4))):
        more = (_put_job_fragment,) if kind == "job" else (_put_list_fragment,) if kind in LIST_KINDS else ()
        rng.choice(_CHANGES + more * 6)(data, rng, kind)
    if rng.random() < 0.5:
        if kind == "png":
            _repair_png(data)
        elif kind == "tar":
            _repair_tar(data)
    return bytes(data)


@cache
def bases(kind: Kind) -> Sequence[bytes]:
    """Good inputs of a kind, many in their variants."""
    match kind:
        case "jpeg":
            exif = Image.Exif()
            exif[0x0112] = 6
            grey = _saved(_pixels()[..., 0], "JPEG")
            cmyk = _saved(Image.fromarray(_pixels()).convert("CMYK"), "JPEG")
            return (
                jpeg(1),
                jpeg(2, progressive=True),
                jpeg(3, subsampling=0),
                jpeg(4, exif=exif.tobytes()),
                jpeg(5, restart_marker_blocks=4),
                grey,
                cmyk,
            )
        case "png":
            rgba = np.dstack([_pixels(), _pixels()[..., 0]])
            frames = [Image.fromarray(_pixels(seed)) for seed in range(3)]
            return (
                encoded(1, 60, 50, "PNG"),
                _saved(rgba, "PNG"),
                _saved(Image.fromarray(_pixels()).quantize(16), "PNG", transparency=3),
                _saved(_pixels()[..., 0].astype(np.uint16) * 257, "PNG"),
                _saved(Image.fromarray(_pixels()[..., 0]).convert("1"), "PNG"),
                _saved(frames[0], "PNG", save_all=True, append_images=frames[1:]),
            )
        case "webp":
            rgba = np.dstack([_pixels(), _pixels()[..., 0]])
            frames = [Image.fromarray(_pixels(seed)) for seed in range(3)]
            return (
                encoded(1, 70, 50, "WEBP"),
                encoded(2, 70, 50, "WEBP", lossless=True),
                _saved(rgba, "WEBP"),
                _saved(frames[0], "WEBP", save_all=True, append_images=frames[1:]),
            )
        case "tar":
            plain = tar_bytes(photo_members(0, 4))
            long_names = (_long_names(tarfile.GNU_FORMAT), _long_names(tarfile.PAX_FORMAT))
            linked = (_links(tarfile.GNU_FORMAT), _links(tarfile.PAX_FORMAT))
            return (plain, tar_bytes(photo_members(4, 3)), *long_names, *linked, gzip.compress(plain, mtime=0))
        case "parquet":
            return (
                _table(row_group_size=2, compression="none"),
                _table(row_group_size=2, compression="snappy"),
                _table(row_group_size=3, compression="zstd", write_page_checksum=True),
                _table(row_group_size=6, compression="gzip", data_page_version="2.0"),
                _table(row_group_size=2, compression="none", use_dictionary=False, in_struct=True),
                _table(row_group_size=3, compression="lz4", in_struct=True, write_page_index=True),
            )
        case "job":
            folder = ROOT / "jobs"
            return tuple(path.read_bytes() for path in sorted(folder.glob("*.yaml")))
        case "txt":
            return (b"# photos\na.jpg\n\nb.jpg\nhttps://a.example/c.jpg\n", b"a b.jpg\r\nc.png")
        case "csv":
            return (
                b"url,caption,label\r\na.jpg,one,1\r\nb.jpg,two,2\r\nc.jpg,,3\r\n",
                b'key,url,caption\na,a.jpg,"one, with ""quotes"" and\ntwo\n\nlines"\nb,b.jpg,plain\nc,c.jpg,"x"\n',
                b"url\na.jpg\nb.jpg\nc.jpg",
            )
        case "tsv":
            return (
                b'url\tcaption\na.jpg\t6" tall\nb.jpg\t"quoted"\nc.jpg\t"so\nd.jpg\tit\'s"\n',
                b"url\tcaption\r\na.jpg\tone\r\nb.jpg\t\r\n",
            )
        case "jsonl":
            return (
                b'{"url": "a.jpg", "caption": "one"}\n\n{"url": "b.jpg"}\n{"url": "c.jpg", "caption": "\\u2028\\n"}\n',
                '{"url": "ä.jpg", "label": 3}\r\n{"url": "b.jpg", "label": null}'.encode(),
            )


def _pixels(seed: int = 0) -> np.ndarray:
    coarse = np.random.default_rng(seed).integers(0, 256, (4, 4, 3), dtype=np.uint8)
    return np.asarray(Image.fromarray(coarse).resize((48, 40), Image.Resampling.BICUBIC))


def _saved(pixels: np.ndarray | Image.Image, image_format: str, **options: object) -> bytes:
    image = Image.fromarray(pixels) if isinstance(pixels, np.ndarray) else pixels
    buffer = io.BytesIO()
    image.save(buffer, image_format, **options)
    return buffer.getvalue()


def _table(*, in_struct: bool = False, **options: object) -> bytes:
    """Six photos with captions: bytes in a column, or Hugging Face's {bytes, path}."""
    photos = [jpeg(i, 40 + i, 36) for i in range(6)]
    image: Sequence[object] = [{"bytes": photo, "path": f"{i}.jpg"} for i, photo in enumerate(photos)]
    captions = [None if i == 4 else f"caption {i}" for i in range(6)]
    columns = {"image": image if in_struct else photos, "caption": captions, "size": [{"width": 40}] * 6}
    if not in_struct:
        columns["key"] = [f"photo-{i}" for i in range(6)]
    buffer = io.BytesIO()
    pq.write_table(pa.table(columns), buffer, **options)
    return buffer.getvalue()


def _long_names(tar_format: int) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tar_format) as tar:
        for name, data in photo_members(8, 2):
            info = tarfile.TarInfo("folder-with-a-long-name/" * 8 + name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return buffer.getvalue()


def _links(tar_format: int) -> bytes:
    """Photos beside links to them, a folder, and names that are hidden."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tar_format) as tar:
        for name, data in photo_members(20, 2):
            for prefix in ("", "._"):
                info = tarfile.TarInfo(prefix + name)
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))
        for name, kind in (("folder/", tarfile.DIRTYPE), ("a.jpg", tarfile.LNKTYPE), ("b/c.jpg", tarfile.SYMTYPE)):
            info = tarfile.TarInfo(name)
            info.type, info.linkname = kind, ("../" if kind == tarfile.SYMTYPE else "") + "photo-0020.jpg"
            tar.addfile(info)
    return buffer.getvalue()


def _stretch(data: bytearray, rng: random.Random) -> slice:
    start = rng.randrange(len(data) + 1)
    return slice(start, start + int(2 ** rng.uniform(0, 10)))


def _flip_bits(data: bytearray, rng: random.Random, kind: Kind) -> None:
    for _ in range(rng.choice((1, 2, 8, 32))):
        if data:
            data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)


def _set_number(data: bytearray, rng: random.Random, kind: Kind) -> None:
    if len(data) >= 8:
        # Headers are at the beginning (a Parquet file's at its end), and that is where numbers count.
        anywhere, limit = rng.random() < 0.5, len(data) - 4
        at = rng.randrange(limit if anywhere else min(200, limit))
        if kind == "parquet" and not anywhere:
            at = max(0, limit - rng.randrange(1500))
        packed = struct.pack(rng.choice(("<I", ">I")), rng.choice(_NUMBERS))
        data[at : at + 4] = packed if rng.random() < 0.6 else packed[:2] + data[at + 2 : at + 4]


def _cut_out(data: bytearray, rng: random.Random, kind: Kind) -> None:
    del data[_stretch(data, rng)]


def _truncate(data: bytearray, rng: random.Random, kind: Kind) -> None:
    del data[rng.randrange(len(data) + 1) :]


def _repeat(data: bytearray, rng: random.Random, kind: Kind) -> None:
    piece = data[_stretch(data, rng)]
    at = rng.randrange(len(data) + 1)
    data[at:at] = piece * rng.choice((1, 1, 3))


def _zero(data: bytearray, rng: random.Random, kind: Kind) -> None:
    piece = _stretch(data, rng)
    data[piece] = bytes(len(data[piece]))


def _noise(data: bytearray, rng: random.Random, kind: Kind) -> None:
    piece = _stretch(data, rng)
    data[piece] = rng.randbytes(len(data[piece]) if rng.random() < 0.5 else rng.randrange(64))


def _splice(data: bytearray, rng: random.Random, kind: Kind) -> None:
    other = rng.choice(bases(rng.choice(list(KINDS))))
    data[rng.randrange(len(data) + 1) :] = other[rng.randrange(len(other)) :]


def _whole_blocks(data: bytearray, rng: random.Random, kind: Kind) -> None:
    """Take out, double or empty 512 bytes at a multiple of 512: a tar's own measure."""
    at = rng.randrange(len(data) // _BLOCK + 1) * _BLOCK
    block = data[at : at + _BLOCK]
    data[at : at + _BLOCK] = rng.choice((b"", bytes(len(block)), block * 2))


def _put_job_fragment(data: bytearray, rng: random.Random, kind: Kind) -> None:
    lines = data.split(b"\n")
    at = rng.randrange(len(lines))
    key, colon, _ = bytes(lines[at]).partition(b":")
    fragment = rng.choice(_JOB_FRAGMENTS)
    lines[at] = bytearray(key + colon + b" " + fragment if colon and rng.random() < 0.8 else fragment)
    data[:] = b"\n".join(lines)


def _put_list_fragment(data: bytearray, rng: random.Random, kind: Kind) -> None:
    at = rng.randrange(len(data) + 1)
    data[at : at + rng.choice((0, 0, 1))] = rng.choice(_LIST_FRAGMENTS)


Change = Callable[[bytearray, random.Random, Kind], None]
_CHANGES: tuple[Change, ...] = (
    _flip_bits,
    _set_number,
    _cut_out,
    _truncate,
    _repeat,
    _zero,
    _noise,
    _splice,
    _whole_blocks,
)


def _repair_png(data: bytearray) -> None:
    at = 8
    while at + 12 <= len(data):
        (length,) = struct.unpack_from(">I", data, at)
        end = at + 8 + length
        if end + 4 > len(data):
            return
        struct.pack_into(">I", data, end, zlib.crc32(data[at + 4 : end]))
        at = end + 4


def _repair_tar(data: bytearray) -> None:
    """Every block that says it is a header gets a right checksum."""
    for at in range(0, len(data) - _BLOCK + 1, _BLOCK):
        if data[at + 257 : at + 262] == b"ustar":
            header = data[at : at + 148] + b" " * 8 + data[at + 156 : at + _BLOCK]
            data[at + 148 : at + 156] = b"%06o\0 " % sum(header)
