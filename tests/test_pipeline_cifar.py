"""The same photos through the Parquet source and through a tar: the same samples, the same rows."""

from __future__ import annotations

import io
import json
import tarfile
from pathlib import Path

import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.parquet as pq
import pytest
from fake_tokenizer import FakeTokenizer
from real_data import write_real_data

from pipeline.plan import plan_shards
from pipeline.read import read_samples
from schemas.records import Sample
from tatok.tokenizer import Tokenizer

pytestmark = pytest.mark.corpus


def as_tar(table: pa.Table, path: Path) -> Path:
    """Each row as a .jpg with its .cls and .json."""
    with tarfile.open(path, "w") as tar:
        for row in table.to_pylist():
            texts = {"cls": str(row["label"]), "json": json.dumps({"class_name": row["class_name"]})}
            content = {"jpg": row["image"]["bytes"]} | {name: text.encode() for name, text in texts.items()}
            for extension, data in content.items():
                info = tarfile.TarInfo(f"{row['key']}.{extension}")
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))
    return path


def test_all_samples_are_the_same(corpus: Path, tmp_path: Path) -> None:
    table = pq.read_table(corpus / "cifar10-test.parquet")
    sources = (corpus / "cifar10-test.parquet", as_tar(table, tmp_path / "cifar.tar"))
    of_parquet, of_tar = (
        [
            (sample.index, sample.key, sample.media, sample.extension, sample.payload, dict(sample.attachments))
            for shard in plan_shards([str(source)])
            for sample in read_samples(shard, max_sample_bytes=1 << 20)
            if isinstance(sample, Sample)
        ]
        for source in sources
    )
    assert len(of_parquet) == 10_000
    assert of_parquet == of_tar


@pytest.mark.parametrize(("num_rows", "image_size", "fake"), [(1000, 32, True), (64, 64, False)], ids=["fake", "real"])
def test_all_rows_are_the_same(corpus: Path, tmp_path: Path, num_rows: int, image_size: int, fake: bool) -> None:
    table = pq.read_table(corpus / "cifar10-test.parquet").slice(0, num_rows)
    pq.write_table(table, tmp_path / "cifar.parquet", row_group_size=num_rows // 4)
    as_tar(table, tmp_path / "cifar.tar")
    tokenizer = FakeTokenizer() if fake else Tokenizer.load(device="cpu")
    rows = []
    for name in ("parquet", "tar"):
        output = tmp_path / name
        write_real_data(str(output), (f"{tmp_path}/cifar.{name}",), image_size=image_size, tokenizer=tokenizer)
        table = ds.dataset(output / "data").to_table().sort_by("source_index")
        rows.append(table.drop_columns(["source_uri", "sample_id"]))  # the id is of the place
    assert len(rows[0]) == num_rows
    assert rows[0].equals(rows[1])
