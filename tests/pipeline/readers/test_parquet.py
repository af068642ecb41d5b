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

from tatok.pipeline.planning.plan import ShardSizes, plan_shards
from tatok.pipeline.readers.columns import parquet_columns
from tatok.pipeline.readers.read import ReadOptions, read_samples
from tatok.schemas.errors import ConfigError
from tatok.schemas.records import Reject, Sample
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
