"""Other people's readers open data/ as it is."""

from __future__ import annotations

from pathlib import Path

import pytest

from tatok.pipeline.storage.store import OutputStore
from tests.support.parts import commit


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Two parts with rows and one without."""
    store = OutputStore.open(str(tmp_path / "out"))
    commit(store, "s0")
    commit(store, "s1", first=50)
    commit(store, "s2", count=0)
    return tmp_path / "out" / "data"


def test_pyarrow(data: Path) -> None:
    import pyarrow.dataset as ds

    table = ds.dataset(data).to_table(filter=ds.field("num_tokens") > 0)
    assert table.num_rows == 14
    assert table["num_tokens"].to_pylist() == [len(tokens) for tokens in table["tokens"].to_pylist()]


def test_datasets(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    datasets = pytest.importorskip("datasets")
    # Not the variable: huggingface_hub, imported while it is set, would stay offline for the tests that follow.
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    datasets.disable_progress_bars()
    loaded = datasets.load_dataset(
        "parquet", data_files=f"{data}/*.parquet", split="train", cache_dir=str(tmp_path / "cache")
    )
    assert len(loaded) == 14
    row = loaded[0]
    assert row["num_tokens"] == len(row["tokens"])
    assert len(row["patch_entropy_bits"]) == row["grid_height"] * row["grid_width"]


def test_duckdb(data: Path) -> None:
    duckdb = pytest.importorskip("duckdb")
    with duckdb.connect() as connection:
        count, wrong, mean = connection.execute(
            f"SELECT count(*), count(*) FILTER (num_tokens != len(tokens)), avg(num_tokens) "
            f"FROM read_parquet('{data}/*.parquet')"
        ).fetchone()
        assert (count, wrong) == (14, 0)
        assert mean > 4
        key = connection.execute(
            f"SELECT key FROM read_parquet('{data}/*.parquet') WHERE key = 'k53' AND len(patch_entropy_bits) = 4"
        ).fetchall()
        assert key == [("k53",)]


def test_pandas(data: Path) -> None:
    pandas = pytest.importorskip("pandas")
    frame = pandas.read_parquet(data)
    assert (frame["num_tokens"] == frame["tokens"].map(len)).all()
