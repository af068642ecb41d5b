"""The same photos through the Parquet source and through a tar: the same samples, the same rows."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from benchmarks.robustness.parquet_rows import compare, differing_columns, rows_of, write_tar
from tatok.pipeline.planning.plan import plan_shards
from tatok.pipeline.readers.read import ReadOptions, read_samples
from tatok.schemas.records import Sample
from tatok.tokenizer.tokenizer import Tokenizer
from tests.support.fake_tokenizer import load_fake
from tests.support.real_data import write_real_data

pytestmark = pytest.mark.corpus


def test_all_samples_are_the_same(corpus: Path, tmp_path: Path) -> None:
    table = pq.read_table(corpus / "cifar10-test.parquet")
    sources = (corpus / "cifar10-test.parquet", write_tar(table, tmp_path / "cifar.tar"))
    of_parquet, of_tar = (
        [
            (sample.index, sample.key, sample.media, sample.extension, sample.payload, dict(sample.attachments))
            for shard in plan_shards([str(source)])
            for sample in read_samples(shard, ReadOptions(max_sample_bytes=1 << 20))
            if isinstance(sample, Sample)
        ]
        for source in sources
    )
    assert len(of_parquet) == 10_000
    assert of_parquet == of_tar


@pytest.mark.usefixtures("local_ray")
def test_all_rows_are_the_same(corpus: Path, tmp_path: Path) -> None:
    """The tiny twin of `make check-parquet`."""
    table = pq.read_table(corpus / "cifar10-test.parquet").slice(0, 1000)
    report = compare(table, tmp_path, image_size=64, load_tokenizer=load_fake, row_group_rows=250)
    assert report.num_rows == (1000, 1000)
    assert report.differing == ()
    assert report.is_equal
    assert {"tokens", "positions", "key", "label", "metadata", "sha256", "entropy_bits"} <= set(report.columns)


def test_rows_of_the_real_model_are_the_same(corpus: Path, tmp_path: Path) -> None:
    table = pq.read_table(corpus / "cifar10-test.parquet").slice(0, 64)
    pq.write_table(table, tmp_path / "cifar.parquet", row_group_size=16)
    write_tar(table, tmp_path / "cifar.tar")
    tokenizer = Tokenizer.load(device="cpu")
    for name in ("parquet", "tar"):
        write_real_data(str(tmp_path / name), (f"{tmp_path}/cifar.{name}",), image_size=64, tokenizer=tokenizer)
    of_parquet, of_tar = rows_of(tmp_path / "parquet"), rows_of(tmp_path / "tar")
    assert len(of_parquet) == 64
    assert differing_columns(of_parquet, of_tar) == ()


def test_a_difference_is_found() -> None:
    table = pa.table({"key": ["a", "b"], "tokens": [[1, 2], [3]], "label": ["x", None]})
    other = pa.table({"key": ["a", "b"], "tokens": [[1, 2], [4]], "caption": ["x", None]})
    assert differing_columns(table, table) == ()
    assert differing_columns(table, other) == ("tokens", "label", "caption")
    assert differing_columns(table, table.slice(0, 1)) == ("key", "tokens", "label")
