"""The WebDataset export, read by webdataset itself."""

from __future__ import annotations

import dataclasses
import gc
import json
import tarfile
import warnings
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import webdataset

from tatok.dataset.parts import TokenizedData
from tatok.pipeline.export.base import Export, open_export
from tatok.pipeline.export.webdataset import export_webdataset
from tatok.pipeline.storage.store import OutputStore
from tatok.schemas.errors import CommitError
from tests.support.synthetic_tokens import write_synthetic


@pytest.fixture
def source(tmp_path: Path) -> TokenizedData:
    write_synthetic(str(tmp_path / "source"), 130, rows_per_part=50, row_group_rows=20, patch_entropy=True)
    return TokenizedData.open(tmp_path / "source")


def replace_column(data: TokenizedData, name: str, values: list[object]) -> TokenizedData:
    """The first part with other values in one column."""
    path = Path(data.path(data.parts[0].name))
    metadata, table = pq.read_metadata(path).metadata, pq.read_table(path)
    index = table.schema.get_field_index(name)
    field = table.schema.field(name)
    table = table.set_column(index, field, [pa.array(values, type=field.type)])
    pq.write_table(table.replace_schema_metadata(metadata), path, row_group_size=20)
    return TokenizedData.open(data.url)


def samples(folder: Path) -> list[dict]:
    """What webdataset makes of the tars, with its own decoders of .npy and .json."""
    shards = json.loads((folder / "index.json").read_text())["shardlist"]
    urls = [str(folder / shard["url"]) for shard in shards]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)  # webdataset leaves its files to the garbage collector
        found = list(webdataset.WebDataset(urls, shardshuffle=False, empty_check=False).decode())
        gc.collect()
    return found


def test_webdataset_loads_it(source: TokenizedData, tmp_path: Path) -> None:
    told: list[int] = []
    summary = export_webdataset(open_export(source.url, str(tmp_path / "wds")), shard_rows=60, on_rows=told.append)
    index = json.loads((tmp_path / "wds" / "index.json").read_text())
    assert [shard["nsamples"] for shard in index["shardlist"]] == [60, 60, 10]
    assert summary.num_files == 4
    assert sum(told) == summary.num_rows == 130
    for shard in index["shardlist"]:
        assert (tmp_path / "wds" / shard["url"]).stat().st_size == shard["filesize"]
    assert index["tatok"]["fingerprint"] == dict(source.run.fingerprint)
    rows = source.read_all().to_pylist()
    found = samples(tmp_path / "wds")
    assert len(found) == len(rows)
    for number, (sample, row) in enumerate(zip(found, rows, strict=True)):
        assert sample["__key__"] == f"{number:09}-{row['key']}"
        assert sample["tokens.npy"].dtype == sample["positions.npy"].dtype == np.uint16
        assert sample["tokens.npy"].tolist() == row.pop("tokens")
        assert sample["positions.npy"].tolist() == row.pop("positions")
        del row["patch_entropy_bits"]
        assert sample["json"] == row


def test_tars_close_at_their_size(source: TokenizedData, tmp_path: Path) -> None:
    export_webdataset(open_export(source.url, str(tmp_path / "wds")), shard_bytes=100_000)
    tars = sorted((tmp_path / "wds").glob("*.tar"))
    assert len(tars) >= 3
    for tar in tars[:-1]:
        assert 100_000 <= tar.stat().st_size < 120_000
    assert len(samples(tmp_path / "wds")) == 130
    export_webdataset(open_export(source.url, str(tmp_path / "one")), shard_bytes=1)
    assert len(list((tmp_path / "one").glob("*.tar"))) == 130


def test_keys_that_tars_cannot_hold(source: TokenizedData, tmp_path: Path) -> None:
    keys = ["same", "same", "a.b/c.d", "../../etc/passwd", "ключ", "", "x" * 300, "a\nb", "-"] + ["k"] * 41
    data = replace_column(source, "key", list(keys))
    export_webdataset(open_export(data.url, str(tmp_path / "wds")))
    found = samples(tmp_path / "wds")
    assert len(found) == 130
    assert [sample["json"]["key"] for sample in found[:50]] == keys
    assert len({sample["__key__"] for sample in found}) == 130
    assert found[2]["__key__"] == "000000002-a_b_c_d"
    with tarfile.open(tmp_path / "wds" / "tokens-000000.tar") as tar:
        for name in tar.getnames():
            assert "/" not in name
            assert len(name) < 100
            assert name.isascii()
        members = tar.getmembers()
    assert len(members) == 3 * 130
    for member in members:
        assert (member.mode, member.uid, member.gid, member.mtime, member.type) == (0o644, 0, 0, 0, tarfile.REGTYPE)


def test_json_has_no_nan(source: TokenizedData, tmp_path: Path) -> None:
    data = replace_column(source, "entropy_bits", [float("nan"), float("inf"), 1.5] + [0.0] * 47)
    export_webdataset(open_export(data.url, str(tmp_path / "wds")))
    with tarfile.open(tmp_path / "wds" / "tokens-000000.tar") as tar:
        texts = [tar.extractfile(member).read() for member in tar if member.name.endswith(".json")]  # type: ignore[union-attr]

    def refuse(name: str) -> None:
        raise AssertionError(name)

    documents = [json.loads(text, parse_constant=refuse) for text in texts]
    assert [document["entropy_bits"] for document in documents[:3]] == [None, None, 1.5]


def test_the_same_rows_give_the_same_bytes(source: TokenizedData, tmp_path: Path) -> None:
    for name in ("a", "b"):
        export_webdataset(open_export(source.url, str(tmp_path / name)), shard_rows=60)
    for path in (tmp_path / "a").iterdir():
        assert path.read_bytes() == (tmp_path / "b" / path.name).read_bytes()


def test_two_exports_into_one_place(source: TokenizedData, tmp_path: Path) -> None:
    first = open_export(source.url, str(tmp_path / "wds"))
    second = open_export(source.url, str(tmp_path / "wds"))
    export_webdataset(first)
    with pytest.raises(CommitError, match=r"tokens-000000\.tar appeared meanwhile"):
        export_webdataset(second)


def test_a_data_set_of_rejects_only(source: TokenizedData, tmp_path: Path) -> None:
    """An empty part is exported to an index without tars."""
    path = Path(source.path(source.parts[0].name))
    metadata = pq.read_metadata(path).metadata
    pq.write_table(pq.read_table(path).slice(0, 0).replace_schema_metadata(metadata), path)
    part = dataclasses.replace(source.parts[0], num_rows=0, num_tokens=0, row_group_rows=())
    export = Export(
        data=dataclasses.replace(source, parts=(part,)), store=OutputStore.open(str(tmp_path / "wds")).probe()
    )
    assert export_webdataset(export).num_files == 1
    assert json.loads((tmp_path / "wds" / "index.json").read_text())["shardlist"] == []


def test_buckets(source: TokenizedData, s3_bucket: str, tmp_path: Path) -> None:
    url = f"s3://{s3_bucket}/wds"
    export_webdataset(open_export(source.url, url), shard_rows=60)
    export_webdataset(open_export(source.url, str(tmp_path / "wds")), shard_rows=60)
    store = OutputStore.open(url)
    assert sorted(store.list_files("")) == ["index.json", *(f"tokens-{i:06}.tar" for i in range(3))]
    for path in (tmp_path / "wds").iterdir():
        with store.open_input(path.name) as file:
            assert file.read() == path.read_bytes()
