"""Parquet files in the shapes that people have: columns, nulls, damage, row groups."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tatok.pipeline.planning.parquet import split_parquet
from tatok.pipeline.planning.plan import ShardSizes, plan_shards
from tatok.pipeline.readers.columns import parquet_columns
from tatok.pipeline.readers.read import ReadOptions, read_samples
from tatok.schemas.errors import ConfigError
from tatok.schemas.records import LeftOut, Reject, Sample
from tests.support.photos import jpeg


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "photos.parquet"


def read(path: Path, image_field: str | None = None, **sizes: int) -> list[Sample | Reject]:
    shards = plan_shards([str(path)], image_field=image_field, sizes=ShardSizes(**sizes))
    return [
        item
        for shard in shards
        for item in read_samples(shard, ReadOptions(max_sample_bytes=1 << 20, image_field=image_field))
    ]


def chosen(**types: Any) -> Any:
    return parquet_columns(pa.schema(list(types.items())), None, "x.parquet")


STRUCT = pa.struct([("bytes", pa.binary()), ("path", pa.string())])


def test_columns_are_found_by_type_and_name() -> None:
    found = chosen(id=pa.int64(), picture=STRUCT, text=pa.string(), label=pa.int64(), size=pa.int32())
    assert (found.media, found.holds_bytes, found.key) == ("picture", True, "id")
    assert (found.caption, found.label, found.metadata) == ("text", "label", ("size",))
    assert chosen(mask=pa.binary(), image=pa.large_binary()).media == "image"
    assert chosen(jpg=pa.binary(), embedding=pa.binary()).media == "jpg"
    uris = chosen(URL=pa.string(), caption=pa.dictionary(pa.int32(), pa.string()))
    assert (uris.media, uris.holds_bytes, uris.caption) == ("URL", False, "caption")
    assert chosen(url=pa.string(), blob=pa.binary()).media == "blob", "bytes that are there before bytes elsewhere"


@pytest.mark.parametrize("types", [{"a": pa.binary(), "b": pa.binary()}, {"words": pa.string()}, {"n": pa.int32()}])
def test_a_table_without_a_clear_image_is_refused(types: dict[str, Any], path: Path) -> None:
    pq.write_table(pa.table({name: pa.array([], kind) for name, kind in types.items()}), path)
    with pytest.raises(ConfigError, match="image_field") as caught:
        plan_shards([str(path)])
    assert str(path) in str(caught.value)
    for name in types:
        assert name in str(caught.value)


BYTES: dict[str, pa.DataType] = {
    "binary": pa.binary(),
    "large": pa.large_binary(),
    "view": pa.binary_view(),
    "fixed size": pa.binary(len(jpeg(1))),
    "dictionary": pa.dictionary(pa.int32(), pa.binary()),
    "dictionary of large ones": pa.dictionary(pa.int8(), pa.large_binary()),
    "list": pa.list_(pa.uint8()),
    "large list": pa.large_list(pa.uint8()),
    "list of a fixed size": pa.list_(pa.uint8(), len(jpeg(1))),
}


def as_kind(cells: list[bytes | None], kind: pa.DataType) -> pa.Array:
    if pa.types.is_dictionary(kind):
        return pa.array(cells, kind.value_type).dictionary_encode().cast(kind)
    return pa.array(cells, kind)


@pytest.mark.parametrize("name", BYTES)
def test_bytes_of_every_type(name: str, path: Path) -> None:
    photo = jpeg(1)
    cells = as_kind([photo, None, photo, photo], BYTES[name])
    pq.write_table(pa.table({"image": cells, "caption": list("abcd")}), path, row_group_size=3)
    items = read(path)
    assert [item.payload if isinstance(item, Sample) else item.reason for item in items] == [
        photo, "no_image", photo, photo
    ]  # fmt: skip
    assert next(item.attachments for item in items if isinstance(item, Sample)) == {"txt": b"a"}


@pytest.mark.parametrize("name", ["binary", "large", "view", "fixed size", "dictionary", "dictionary of large ones"])
def test_bytes_of_every_type_in_the_struct(name: str, path: Path) -> None:
    photo = jpeg(1)
    paths = pa.array(["a.jpg", "b.jpg", "c.jpg"])
    structs = pa.StructArray.from_arrays([as_kind([photo, photo, None], BYTES[name]), paths], ["bytes", "path"])
    pq.write_table(pa.table({"picture": structs}), path)
    first, second, third = read(path)
    assert [item.payload for item in (first, second) if isinstance(item, Sample)] == [photo, photo]
    assert [item.key for item in (first, second, third)] == ["a.jpg", "b.jpg", "c.jpg"]
    assert isinstance(third, Reject)
    assert third.reason == "missing"


def test_a_list_with_nulls_is_no_image(path: Path) -> None:
    pq.write_table(pa.table({"image": pa.array([[1, None, 2]], pa.list_(pa.uint8()))}), path)
    [item] = read(path)
    assert isinstance(item, Reject)
    assert item.reason == "no_image"


def test_hashes_and_vectors_are_no_images_unless_they_are_named_so() -> None:
    small, vector = pa.binary(16), pa.list_(pa.uint8())
    assert chosen(url=pa.string(), md5=small, codes=vector).media == "url"
    assert chosen(jpg=pa.binary(), content=small).media == "jpg"
    assert chosen(embedding=pa.binary(), image=small).media == "image"
    assert chosen(picture=STRUCT, image=vector).media == "picture"
    found = chosen(image=pa.binary(), md5=small, mask=pa.dictionary(pa.int32(), pa.binary()))
    assert (found.media, found.metadata) == ("image", ("md5",))


@pytest.mark.parametrize(
    ("types", "left_out"),
    [
        ({"words": pa.string(), "embedding": pa.list_(pa.float32())}, "no column of images"),
        ({"url": pa.string(), "caption": pa.string()}, "a table of URIs: name it by itself"),
        ({"image": pa.binary()}, None),
    ],
)
def test_a_table_in_a_folder_without_images_is_left_out(
    types: dict[str, Any], left_out: str | None, tmp_path: Path
) -> None:
    path = tmp_path / "table.pq"
    pq.write_table(pa.table({name: pa.array([], kind) for name, kind in types.items()}), path)
    found = split_parquet(
        str(path), file_bytes=1, etag="", image_field=None, range_bytes=1, range_rows=1, in_folder=True
    )
    assert found == LeftOut(left_out, "pq") if left_out else isinstance(found, list)


def test_a_table_in_a_folder_with_two_images_is_refused_all_the_same(tmp_path: Path) -> None:
    path = tmp_path / "table.parquet"
    pq.write_table(pa.table({"a": [b"x"], "b": [b"y"]}), path)
    options = {"file_bytes": 1, "etag": "", "range_bytes": 1, "range_rows": 1, "in_folder": True}
    with pytest.raises(ConfigError, match="image_field"):
        split_parquet(str(path), image_field=None, **options)
    assert isinstance(split_parquet(str(path), image_field="b", **options), list)
    assert split_parquet(str(path), image_field="c", **options) == LeftOut("no column of images", "parquet")


def test_image_field_names_the_column(path: Path) -> None:
    pq.write_table(pa.table({"a": [jpeg(1)], "b": [jpeg(2)]}), path)
    [sample] = read(path, "b")
    assert isinstance(sample, Sample)
    assert sample.payload == jpeg(2)
    with pytest.raises(ConfigError, match="nothing"):
        read(path, "nothing")


def test_keys_media_and_metadata(path: Path) -> None:
    rows = [
        {"image": {"bytes": jpeg(1), "path": "deep/a.jpg"}, "score": 0.5, "tags": ["x", "y"]},
        {"image": {"bytes": b"....ftypisom", "path": None}, "score": float("nan"), "tags": None},
        {"image": {"bytes": jpeg(2), "path": "b.mp4"}, "score": None, "tags": []},
    ]
    pq.write_table(pa.Table.from_pylist(rows), path)
    samples = [item for item in read(path) if isinstance(item, Sample)]
    assert [sample.key for sample in samples] == ["deep/a.jpg", "photos/00000001", "b.mp4"]
    assert [sample.media for sample in samples] == ["image", "video", "video"]
    assert [sample.extension for sample in samples] == ["jpg", "image", "mp4"]
    assert json.loads(samples[0].attachments["json"]) == {"score": 0.5, "tags": ["x", "y"]}
    assert json.loads(samples[1].attachments["json"]) == {"score": None}


def test_what_is_unreadable_is_rejected(path: Path) -> None:
    images = [jpeg(1), None, b"x" * (2 << 20), jpeg(2)]
    pq.write_table(pa.table({"key": ["a", "b", "c", None], "image": images}), path)
    items = read(path)
    assert [item.reason if isinstance(item, Reject) else "" for item in items] == ["", "no_image", "too_large", ""]
    assert [item.key for item in items] == ["a", "b", "c", "photos/00000003"]


def test_a_path_without_bytes_is_an_address(path: Path) -> None:
    """Hugging Face stores a dataset of file names so."""
    (path.parent / "a.jpg").write_bytes(jpeg(3))
    images = [{"bytes": None, "path": "a.jpg"}, {"bytes": None, "path": "b.jpg"}]
    pq.write_table(pa.table({"image": pa.array(images, STRUCT)}), path)
    found, missing = read(path)
    assert isinstance(found, Sample)
    assert found.payload == jpeg(3)
    assert isinstance(missing, Reject)
    assert missing.reason == "missing"


def test_a_signed_url_is_neither_read_nor_kept(path: Path) -> None:
    signed = "https://h/a.jpg?AWSAccessKeyId=PLANTED&Signature=PLANTED"
    pq.write_table(pa.table({"url": [signed]}), path)
    [reject] = read(path)
    assert isinstance(reject, Reject)
    assert (reject.key, reject.reason) == ("https://h/a.jpg", "signed_uri")
    assert "PLANTED" not in str(reject)
    pq.write_table(pa.table({"image": pa.array([{"bytes": jpeg(1), "path": signed}], STRUCT)}), path)
    [sample] = read(path)
    assert isinstance(sample, Sample)
    assert (sample.key, "PLANTED" in str(sample)) == ("https://h/a.jpg", False)


def test_what_is_no_parquet(path: Path) -> None:
    path.write_bytes(b"PAR1 hello PAR1")
    [item] = read(path)
    assert isinstance(item, Reject)
    assert (item.reason, item.key) == ("not_parquet", "photos.parquet")


def test_texts_that_are_no_utf8(path: Path) -> None:
    def texts(*values: bytes) -> pa.Array:
        return pa.array(values).view(pa.string())

    table = {
        "key": texts(b"a\xff", b"b"),
        "caption": texts(b"caf\xe9", b"tea"),
        "tags": pa.ListArray.from_arrays([0, 2, 3], texts(b"x", b"\xfe", b"y")),
        "place": pa.StructArray.from_arrays([texts(b"\xfd", b"z")], ["name"]),
        "image": [jpeg(0), jpeg(1)],
    }
    pq.write_table(pa.table(table), path)
    samples = read(path)
    assert all(isinstance(sample, Sample) for sample in samples)
    assert [sample.key for sample in samples] == [r"a\xff", "b"]
    assert [sample.attachments["txt"] for sample in samples if isinstance(sample, Sample)] == [rb"caf\xe9", b"tea"]
    assert [json.loads(sample.attachments["json"]) for sample in samples if isinstance(sample, Sample)] == [
        {"tags": ["x", r"\xfe"], "place": {"name": r"\xfd"}},
        {"tags": ["y"], "place": {"name": "z"}},
    ]


def test_a_column_whose_name_is_no_utf8(path: Path) -> None:
    pq.write_table(pa.table({"caption": ["a"], "image": [jpeg(0)]}), path)
    path.write_bytes(path.read_bytes().replace(b"caption", b"capti\xffn"))
    (reject,) = read(path)
    assert isinstance(reject, Reject)
    assert (reject.reason, reject.stage) == ("not_parquet", "read")


def test_a_footer_that_ends_the_process_when_its_columns_are_asked_for(path: Path) -> None:
    """Found by `make fuzz`: an exception in C++ that pyarrow does not catch."""
    pq.write_table(pa.table({"image": [jpeg(0)], "size": [{"width": 40}]}), path)
    # The struct becomes required, and so has one definition level fewer than its size statistics count.
    optional, required = b"\x35\x02\x18\x04size", b"\x35\x00\x18\x04size"
    assert optional in path.read_bytes()
    path.write_bytes(path.read_bytes().replace(optional, required))
    asked = "import sys, pyarrow.parquet as pq; pq.read_metadata(sys.argv[1]).row_group(0).column(1)"
    ended = subprocess.run([sys.executable, "-c", asked, str(path)], capture_output=True, text=True)
    if ended.returncode != -signal.SIGABRT:
        pytest.skip("this pyarrow raises, or takes it")
    assert "histogram size mismatch" in ended.stderr
    [item] = read(path)
    assert isinstance(item, Reject)


def test_a_row_group_that_ends_early_is_damaged(path: Path) -> None:
    """pyarrow gives no batch of this one, and no error."""
    table = pa.table({"key": list("abcdefghi"), "image": [jpeg(i) for i in range(9)]})
    pq.write_table(table, path, row_group_size=3, compression="zstd", use_dictionary=False)
    key = pq.read_metadata(path).row_group(0).column(0)
    data = bytearray(path.read_bytes())
    assert data[key.data_page_offset : key.data_page_offset + 2] == b"\x15\x00", "a page header: its type, a data page"
    data[key.data_page_offset + 1] = 0x20  # a type that nobody knows, which is skipped
    path.write_bytes(data)
    assert not list(pq.ParquetFile(path).iter_batches(2, row_groups=[0], use_threads=False)), "the fault of this test"
    reject, *samples = read(path)
    assert isinstance(reject, Reject)
    assert (reject.reason, reject.index) == ("corrupt_parquet", 0)
    assert "3 rows fewer than the footer says" in reject.detail
    assert [sample.key for sample in samples] == list("defghi")


def test_damage_costs_its_row_group(path: Path) -> None:
    pq.write_table(
        pa.table({"key": list("abcdefghi"), "image": [jpeg(i) for i in range(9)]}),
        path, row_group_size=3, compression="zstd", use_dictionary=False,
    )  # fmt: skip
    chunk = pq.read_metadata(path).row_group(1).column(1)
    data = bytearray(path.read_bytes())
    data[chunk.data_page_offset + 5 : chunk.data_page_offset + chunk.total_compressed_size] = b"\xff" * (
        chunk.total_compressed_size - 5
    )
    path.write_bytes(data)
    items = read(path)
    assert [item.key for item in items if isinstance(item, Sample)] == list("abcghi")
    [reject] = [item for item in items if isinstance(item, Reject)]
    assert (reject.reason, reject.index) == ("corrupt_parquet", 3)
    assert "rows 3 to 5" in reject.detail


@settings(max_examples=30, deadline=None)
@given(
    counts=st.lists(st.integers(1, 150), min_size=1, max_size=6),
    rows=st.integers(1, 400),
)
def test_each_row_is_in_one_shard(counts: list[int], rows: int, tmp_path_factory: pytest.TempPathFactory) -> None:
    path = tmp_path_factory.mktemp("rows") / "photos.parquet"
    names = [str(i) for i in range(sum(counts))]
    schema = pa.schema([("key", pa.string()), ("image", pa.binary())])
    with pq.ParquetWriter(path, schema) as writer:
        for group, count in enumerate(counts):
            first = sum(counts[:group])
            part = names[first : first + count]
            writer.write_table(pa.table({"key": part, "image": [name.encode() for name in part]}, schema))
    shards = plan_shards([str(path)], sizes=ShardSizes(parquet_rows=rows))
    assert all((shard.num_samples or 0) <= max(rows, *counts) for shard in shards)
    items = [item for shard in shards for item in read_samples(shard, ReadOptions(max_sample_bytes=100))]
    assert [(item.index, item.key, item.payload.decode()) for item in items if isinstance(item, Sample)] == [
        (i, name, name) for i, name in enumerate(names)
    ]


def test_a_large_row_group_is_not_held_in_memory(path: Path) -> None:
    """200 MB in one row group; Arrow holds a page and a batch of it."""
    rng_bytes = [bytes([i]) * (1 << 20) for i in range(100)] * 2
    pq.write_table(
        pa.table({"image": rng_bytes}), path, row_group_size=1000, compression="none",
        use_dictionary=False, data_page_size=1 << 20, write_statistics=False,
    )  # fmt: skip
    del rng_bytes
    [shard] = plan_shards([str(path)])
    before, highest = pa.total_allocated_bytes(), 0
    num_read = 0
    for _ in read_samples(shard, ReadOptions(max_sample_bytes=1 << 21)):
        num_read += 1
        highest = max(highest, pa.total_allocated_bytes() - before)
    assert num_read == 200
    assert highest < 64 << 20
