"""Images that are texts: as data URIs and base64, in tables and lists."""

from __future__ import annotations

import base64
from pathlib import Path
from urllib.parse import quote_from_bytes

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tatok.pipeline.planning.plan import plan_shards
from tatok.pipeline.readers.inline_data import InlineData, inline_data, is_inline
from tatok.pipeline.readers.read import ReadOptions, read_places, read_samples
from tatok.pipeline.readers.unreadable import Unreadable
from tatok.schemas.records import Reject, Sample
from tests.support.photos import encoded, jpeg

JPEG = jpeg(1)
TEXT = base64.b64encode(JPEG).decode()
LINES = base64.encodebytes(JPEG).decode()
DATA = f"data:image/jpeg;base64,{TEXT}"


def read(path: Path, image_field: str | None = None, max_sample_bytes: int = 1 << 20) -> list[Sample | Reject]:
    options = ReadOptions(max_sample_bytes=max_sample_bytes, image_field=image_field)
    shards = plan_shards([str(path)], image_field=image_field)
    items = [item for shard in shards for item in read_samples(shard, options)]
    places = [place for shard in shards for place in read_places(shard, options)]
    assert [(place.index, place.key) for place in places] == [(item.index, item.key) for item in items]
    return items


@pytest.mark.parametrize(
    ("text", "extension"),
    [
        (TEXT, ""),
        (TEXT.rstrip("="), ""),
        (base64.urlsafe_b64encode(JPEG).decode(), ""),
        (LINES, ""),
        (DATA, "jpeg"),
        (f"DATA:IMAGE/JPEG;charset=x;BASE64,{TEXT}", "jpeg"),
        (f"data:;base64,{LINES}", ""),
        (f"data:image/x-unknown;base64,{TEXT}", ""),
        (f"data:image/jpeg,{quote_from_bytes(JPEG)}", "jpeg"),
        (f"data:image/jpeg;base64,{TEXT.replace('+', '%2B').replace('/', '%2F').replace('=', '%3D')}", "jpeg"),
    ],
)
def test_texts_that_are_images(text: str, extension: str) -> None:
    assert inline_data(text) == InlineData(JPEG, extension)


@pytest.mark.parametrize("image_format", ["JPEG", "PNG", "GIF", "WEBP", "AVIF", "TIFF", "BMP", "JPEG2000"])
def test_every_format_as_bare_base64(image_format: str) -> None:
    image = encoded(1, 32, 24, image_format)
    assert inline_data(base64.b64encode(image).decode()) == InlineData(image, "")


@pytest.mark.parametrize(
    "text",
    [
        "a.jpg", "deep/a.jpg", "/worth/photos/2023/a.jpg", "/9/4AAQ/a.jpg", "iVBORw0KGgo.png", "https://h/a.jpg?x=1",
        "s3://bucket/key", "data/a.jpg", "data", "BM/a", "/worth/" + "a" * 90, "Qk" + "a" * 100, "", " ", "a", "ab==",
        "https://h/" + "a" * 4000,
    ],
)  # fmt: skip
def test_addresses_are_addresses(text: str) -> None:
    assert not is_inline(text)
    assert inline_data(text) is None


@pytest.mark.parametrize(
    "text",
    [
        "data:image/png;base64,###" + TEXT,
        f"data:image/jpeg;base64,{TEXT[:41]}",
        f"data:image/jpeg;base64{TEXT}",
        "data:",
        TEXT[:400] + "#" + TEXT[400:],
        base64.b64encode(b"no image at all, " * 40).decode(),
        "x y" * 4000,
    ],
)
def test_what_cannot_be_decoded_is_said_in_short(text: str) -> None:
    got = inline_data(text)
    assert isinstance(got, Unreadable)
    assert got.reason == "inline_data"
    assert len(got.detail) < 100
    assert text[30:60] not in got.detail or len(text) < 60


@given(st.binary(min_size=1, max_size=40))
def test_short_base64_is_data_only_as_an_image(data: bytes) -> None:
    text = base64.b64encode(data).decode()
    assert isinstance(inline_data(text), InlineData | None)


@pytest.mark.parametrize("column", ["image", "img", "image_bytes", "url", "photo"])
def test_a_column_of_a_table(column: str, tmp_path: Path) -> None:
    """Beside addresses of files, as they come."""
    (tmp_path / "b.jpg").write_bytes(jpeg(2))
    path = tmp_path / "photos.parquet"
    cells = [TEXT, "b.jpg", DATA, "data:image/jpeg;base64,@@@", None, "none.jpg"]
    pq.write_table(pa.table({column: cells, "caption": list("abcdef")}), path)
    items = read(path, column if column == "photo" else None)
    assert [(item.key, item.reason if isinstance(item, Reject) else item.payload) for item in items] == [
        ("photos/00000000", JPEG),
        ("b.jpg", jpeg(2)),
        ("photos/00000002", JPEG),
        ("photos/00000003", "inline_data"),
        ("photos/00000004", "no_image"),
        ("none.jpg", "missing"),
    ]
    assert [item.media for item in items if isinstance(item, Sample)] == ["image"] * 3
    assert all(TEXT[:100] not in str(item) for item in items)


def test_the_key_column_and_limits(tmp_path: Path) -> None:
    path = tmp_path / "photos.parquet"
    pq.write_table(pa.table({"id": [7, 8], "image": pa.array([DATA, TEXT]).dictionary_encode()}), path)
    assert [item.key for item in read(path)] == ["7", "8"]
    assert [item.reason for item in read(path, max_sample_bytes=100) if isinstance(item, Reject)] == ["too_large"] * 2


def test_the_path_beside_the_bytes(tmp_path: Path) -> None:
    path = tmp_path / "photos.parquet"
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    cells = [{"bytes": None, "path": DATA}, {"bytes": JPEG, "path": DATA}, {"bytes": None, "path": "data:image/png,"}]
    pq.write_table(pa.table({"image": pa.array(cells, kind)}), path)
    items = read(path)
    assert [(item.key, item.payload) for item in items if isinstance(item, Sample)] == [
        ("photos/00000000", JPEG),
        ("photos/00000001", JPEG),
        ("photos/00000002", b""),
    ]
    assert all(DATA not in str(item) for item in items)


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("l.txt", "a.jpg\n{}\nb.jpg\n"),
        ("l.csv", 'url,caption\na.jpg,x\n"{}",y\nb.jpg,z\n'),
        ("l.tsv", "image\tcaption\na.jpg\tx\n{}\ty\nb.jpg\tz\n"),
        ("l.jsonl", '{{"uri": "a.jpg"}}\n{{"uri": "{}"}}\n{{"uri": "b.jpg"}}\n'),
    ],
)
@pytest.mark.parametrize("data", [TEXT, DATA])
def test_a_list_names_files(data: str, name: str, text: str, tmp_path: Path) -> None:
    for file in ("a.jpg", "b.jpg"):
        (tmp_path / file).write_bytes(JPEG)
    (tmp_path / name).write_text(text.format(data))
    first, reject, last = read(tmp_path / name)
    assert (first.key, reject.key, last.key) == ("a.jpg", "row 1", "b.jpg")
    assert isinstance(reject, Reject)
    assert reject.reason == "inline_data"
    assert TEXT[:40] not in str(reject)
