"""Inputs that once went wrong, each by plan, tokenize and verify --source: nothing is lost, nothing left out unsaid."""

from __future__ import annotations

import base64
import os
import struct
import tarfile
import zlib
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from io import BytesIO
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tatok.pipeline.planning.survey import survey_source
from tatok.pipeline.run import RunSummary
from tatok.pipeline.verify.dataset import verify_output
from tests.support.photos import jpeg, png_chunk, saved, tar_bytes
from tests.support.runs import job, rejects, rows, run


@dataclass(frozen=True, kw_only=True)
class Case:
    """`make` writes the input into a folder and returns the source; what a job must come to, as fixed by hand."""

    make: Callable[[Path], Path | str]
    num_rows: int
    rejects: dict[str, int] = field(default_factory=dict)
    left_out: dict[str, int] = field(default_factory=dict)
    captions: dict[str, str] = field(default_factory=dict)  # by key


def _photos(folder: Path, *names: str) -> Path:
    for number, name in enumerate(names):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(jpeg(number))
    return folder


def _linked(*links: tuple[str, str, bytes]) -> Callable[[Path], Path]:
    """Three photos in a tar, and links: (name, target, type)."""

    def make(folder: Path) -> Path:
        with tarfile.open(folder / "links.tar", "w") as tar:
            for number in range(3):
                info = tarfile.TarInfo(f"{number}.jpg")
                info.size = len(jpeg(number))
                tar.addfile(info, BytesIO(jpeg(number)))
            for name, target, kind in links:
                info = tarfile.TarInfo(name)
                info.type, info.linkname = kind, target
                tar.addfile(info)
        return folder / "links.tar"

    return make


def _companions(folder: Path) -> Path:
    members = []
    for number in range(3):
        for extension, data in (("jpg", jpeg(number)), ("txt", f"photo {number}".encode())):
            members += [(f"./set/._{number}.{extension}", b"\0\5\x16\7"), (f"./set/{number}.{extension}", data)]
    (folder / "mac.tar").write_bytes(tar_bytes(members))
    return folder / "mac.tar"


def _lone_zero_block(folder: Path) -> Path:
    first, second = tar_bytes([("0.jpg", jpeg(0))]), tar_bytes([("1.jpg", jpeg(1))])
    end = len(first.rstrip(b"\0"))
    (folder / "hole.tar").write_bytes(first[: -(-end // 512) * 512] + bytes(512) + second)
    return folder / "hole.tar"


def _tsv(folder: Path) -> Path:
    captions = (
        "a plain one",
        '"Mind the gap" sign',
        '"Hello, she said',
        "five",
        'six 5" pipe',
        '"seven',
        "eight",
        "nine",
    )
    _photos(folder, *(f"img/{number}.jpg" for number in range(8)))
    lines = [f"img/{number}.jpg\t{caption}" for number, caption in enumerate(captions)]
    (folder / "list.tsv").write_text("\n".join(["file_name\tcaption", *lines]) + "\n")
    return folder / "list.tsv"


def _multi_line_csv(folder: Path) -> Path:
    _photos(folder, "0.jpg", "1.jpg")
    (folder / "list.csv").write_text(
        'file_name,caption\r\n0.jpg,"two\r\nlines, ""quoted"""\r\n1.jpg,"a, b"\r\n', newline=""
    )
    return folder / "list.csv"


def _text_beside_pixels(folder: Path) -> Path:
    """1.4 MB of text, which packs to little, in a zTXt and in an iTXt chunk; a third file has a broken one."""
    text = zlib.compress(b"tatok " * 240_000)
    chunks = (
        png_chunk(b"zTXt", b"prompt\0\0" + text),
        png_chunk(b"iTXt", b"prompt\0\1\0\0\0" + text),
        struct.pack(">I", 9) + b"tEXt" + b"broken\0xy" + b"\0\0\0\0",
    )
    for number, chunk in enumerate(chunks):
        data = saved_png(number)
        (folder / f"{number}.png").write_bytes(data[:33] + chunk + data[33:])  # behind the header
    return folder


def saved_png(seed: int) -> bytes:
    from PIL import Image

    return saved(Image.open(BytesIO(jpeg(seed))), "PNG")


def _inline(folder: Path) -> Path:
    cells = [base64.b64encode(jpeg(0)).decode(), f"data:image/jpeg;base64,{base64.b64encode(jpeg(1)).decode()}"]
    cells += ["data:image/png;base64,@@@@"]
    pq.write_table(pa.table({"image": cells}), folder / "inline.parquet")
    return folder / "inline.parquet"


def _dictionary(folder: Path) -> Path:
    column = pa.array([jpeg(0), jpeg(1), jpeg(0)], pa.binary()).dictionary_encode()
    pq.write_table(pa.table({"image": column, "caption": ["a", "b", "c"]}), folder / "dict.parquet")
    return folder / "dict.parquet"


def _fixed_size(folder: Path) -> Path:
    data = saved_png(0)
    column = pa.array([data, data], pa.binary(len(data)))
    pq.write_table(pa.table({"image": column}), folder / "fixed.parquet")
    return folder / "fixed.parquet"


def _tar_among_photos(folder: Path) -> Path:
    _photos(folder, "a.jpg", "b.jpg", "deep/c.jpg")
    (folder / "d.tar").write_bytes(tar_bytes([("1.jpg", jpeg(1)), ("2.jpg", jpeg(2))]))
    return folder


def _archives_below(folder: Path) -> Path:
    for number in range(2):
        (folder / f"{number}").mkdir()
        (folder / f"{number}" / "photos.tar").write_bytes(tar_bytes([("1.jpg", jpeg(number))]))
        pq.write_table(pa.table({"image": [jpeg(number)]}), folder / f"{number}" / "photos.parquet")
    return folder


def _odd_folder(name: str) -> Callable[[Path], Path]:
    def make(folder: Path) -> Path:
        _photos(folder, "set/x.jpg", "seta/x.jpg", "photos 2/x.jpg")
        return _photos(folder / name, "1.jpg", "2.jpg")

    return make


def _no_utf8(folder: Path) -> Path:
    for name in (b"caf\xe9.jpg", b"d\xe9p/\xff.jpg", b"plain.jpg"):
        path = Path(os.fsdecode(os.fsencode(folder) + b"/" + name))
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(jpeg(len(name)))
    return folder


def _things(folder: Path) -> Path:
    _photos(folder, "a.jpg", "b", "c.docx", ".d.jpg")
    (folder / "e.jpg").symlink_to(folder / "nothing")
    return folder


def _tga(folder: Path) -> Path:
    from PIL import Image

    Image.open(BytesIO(jpeg(0))).save(folder / "photo.tga")
    (folder / "text.tga").write_bytes(b"no picture at all")
    return folder


HARD, SOFT = tarfile.LNKTYPE, tarfile.SYMTYPE
CASES = {
    "links": Case(
        make=_linked(("3.jpg", "0.jpg", HARD), ("4.jpg", "1.jpg", HARD), ("5.jpg", "2.jpg", SOFT)), num_rows=6
    ),
    "links that lead nowhere": Case(
        make=_linked(("3.jpg", "../0.jpg", SOFT), ("4.jpg", "4.jpg", SOFT), ("5.jpg", "/etc/hostname", SOFT)),
        num_rows=3,
        rejects={"dangling_link": 3},
    ),
    "a chain of links": Case(make=_linked(("3.jpg", "4.jpg", SOFT), ("4.jpg", "0.jpg", SOFT)), num_rows=5),
    "macOS companions": Case(make=_companions, num_rows=3, left_out={"hidden": 6}, captions={"./set/1": "photo 1"}),
    "a lone zero block": Case(make=_lone_zero_block, num_rows=1, rejects={"corrupt_archive": 1}),
    "lone quotes": Case(
        make=_tsv,
        num_rows=8,
        captions={"img/1.jpg": '"Mind the gap" sign', "img/2.jpg": '"Hello, she said', "img/5.jpg": '"seven'},
    ),
    "quotes by the rules": Case(
        make=_multi_line_csv, num_rows=2, captions={"0.jpg": 'two\r\nlines, "quoted"', "1.jpg": "a, b"}
    ),
    "text beside the pixels": Case(make=_text_beside_pixels, num_rows=3),
    "inline images": Case(make=_inline, num_rows=2, rejects={"inline_data": 1}),
    "dictionary": Case(make=_dictionary, num_rows=3, captions={"dict/00000002": "c"}),
    "fixed size": Case(make=_fixed_size, num_rows=2),
    "a tar among photos": Case(make=_tar_among_photos, num_rows=5),
    "archives below": Case(make=_archives_below, num_rows=4),
    "brackets": Case(make=_odd_folder("photos [2023]"), num_rows=2),
    "signs": Case(make=_odd_folder("100%?"), num_rows=2),
    "braces": Case(make=_odd_folder("set{a,b}"), num_rows=2),
    "names that are no UTF-8": Case(make=_no_utf8, num_rows=3),
    "things that are no images": Case(
        make=_things,
        num_rows=1,
        left_out={
            "no image, video, tar or table": 1,
            ".docx (no image, video, tar or table)": 1,
            "hidden": 1,
            "broken link": 1,
        },
    ),
    "TGA by its name": Case(make=_tga, num_rows=1, rejects={"not_an_image": 1}),
}


OF_OTHERS = {
    "links.tar": Case(make=Path, num_rows=6),
    "dot-underscore.tar": Case(make=Path, num_rows=4, left_out={"hidden": 4}),
    "open-quote.tsv": Case(make=Path, num_rows=8, captions={"img/5.jpg": '"seven'}),
    "png-text": Case(make=Path, num_rows=2),
    "b64.parquet": Case(make=Path, num_rows=2),
    "dict.parquet": Case(make=Path, num_rows=4),
}
"""The inputs as they were reported, which lie outside the project."""


@dataclass(frozen=True, kw_only=True)
class Done:
    """All cases as one job: the source of each and where its samples lie, the output, and what the run said."""

    sources: dict[str, str]
    places: dict[str, str]
    output: Path
    summary: RunSummary


@pytest.fixture(scope="module")
def done(local_ray: None, tmp_path_factory: pytest.TempPathFactory) -> Done:
    folder = tmp_path_factory.mktemp("cases")
    sources: dict[str, str] = {}
    places: dict[str, str] = {}
    for number, (name, case) in enumerate(CASES.items()):
        places[name] = f"{folder}/{number:02}/"
        os.mkdir(places[name])
        sources[name] = str(case.make(Path(places[name])))
    shared = Path(__file__).parents[3] / "shared" / "cases"
    for name in OF_OTHERS:
        if (shared / name).exists():
            sources[name] = str(shared / name)
            places[name] = f"{shared}/img/" if name.endswith(".tsv") else sources[name]
    config = job("x", folder / "out", resources={"num_decoders": 0}, limits={"max_reject_fraction": 1.0})
    summary = run(config.model_copy(update={"source": tuple(sources.values())}))
    return Done(sources=sources, places=places, output=folder / "out", summary=summary)


def test_together_they_are_complete_and_verified(done: Done) -> None:
    cases = [(CASES | OF_OTHERS)[name] for name in done.sources]
    assert (done.summary.status, done.summary.num_rows) == ("complete", sum(case.num_rows for case in cases))
    left_out = Counter[str]()
    for case in cases:
        left_out.update(case.left_out)
    assert {str(each): count for each, count in done.summary.left_out.items()} == left_out
    verified = verify_output(str(done.output), list(done.sources.values()))
    assert verified.findings == ()
    assert verified.num_samples == sum(case.num_rows + sum(case.rejects.values()) for case in cases)


@pytest.mark.parametrize("name", [*CASES, *OF_OTHERS])
def test_a_case(name: str, done: Done) -> None:
    if name not in done.sources:
        pytest.skip("needs ../shared/cases")
    case, source, place = (CASES | OF_OTHERS)[name], done.sources[name], done.places[name]
    planned = survey_source([source])
    known = [counts.num_samples for counts in planned.kinds.values()]
    if None not in known:  # a tar's samples, and what it leaves out, are known when it has been read
        assert sum(map(int, known)) == case.num_rows + sum(case.rejects.values())  # type: ignore[arg-type]
        assert {str(each): count for each, count in planned.left_out.items()} == case.left_out
    taken = [row for row in rows(done.output) if str(row["source_uri"]).startswith(place)]
    rejected = [row for row in rejects(done.output) if str(row["source_uri"]).startswith(place)]
    assert (len(taken), Counter(row["reason"] for row in rejected)) == (case.num_rows, case.rejects), rejected
    by_key = {str(row["key"]): row for row in taken}
    assert {key: by_key[key]["caption"] for key in case.captions} == case.captions
    assert max(len(str(row["key"])) for row in (*taken, *rejected)) <= 40, "data is no key"
