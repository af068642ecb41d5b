"""A dataset that tatok 0.1.0 wrote opens as ever: tests/data/dataset-0.1.0, three demo photos."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import torch
from typer.testing import CliRunner

from tatok import Rows, TokenDataset, Tokenizer, statistics, token_sequences
from tatok.jobs.cli import app
from tatok.jobs.python.opened import open_dataset
from tests.support.places import TESTS

STORED = TESTS / "data" / "dataset-0.1.0"


@pytest.fixture
def dataset(tmp_path: Path) -> str:
    """A copy, which a command may write to."""
    return str(shutil.copytree(STORED, tmp_path / "dataset"))


def tatok(*arguments: str) -> str:
    done = CliRunner().invoke(app, list(arguments))
    assert done.exit_code == 0, done.output
    return done.output


def test_it_is_verified(dataset: str) -> None:
    assert "3 rows" in " ".join(tatok("verify", dataset).split())


def test_figures_and_sql(dataset: str) -> None:
    assert json.loads(tatok("stats", dataset, "--json"))["num_rows"] == 3
    assert statistics.query(dataset, "SELECT sum(num_tokens) AS n FROM tokens").to_pylist() == [{"n": 118}]


def test_it_is_loaded_and_decoded(dataset: str) -> None:
    stream = TokenDataset(dataset).stream(Rows(rows=3), epochs=1)
    [batch] = list(stream)
    assert sum(len(row.tokens) for row in batch.documents) == 118
    sequences = token_sequences(pq.read_table(f"{dataset}/data"))
    pixels = Tokenizer.load(device="cpu").decode(sequences)
    assert pixels.shape == (3, 3, 256, 256)
    assert pixels.dtype == torch.uint8


def test_it_has_the_one_face(dataset: str) -> None:
    opened = open_dataset(dataset, device="cpu")
    assert (len(opened), opened.stats().num_rows, len(opened.dataset())) == (3, 3, 3)
    key, *_ = opened
    picture = opened.decode(key)
    assert picture.size == (256, 256)
    assert opened.show(key).rows[0].sequence.num_tokens == opened.sequences(key)[0].num_tokens
    again = Tokenizer.load(device="cpu").encode(picture, preprocessing=opened.preprocessing)
    assert again.grid == (1, 16, 16)


def test_a_row_is_shown_by_the_checkpoint_that_made_it(dataset: str, tmp_path: Path) -> None:
    key = pq.read_table(f"{dataset}/data").column("key")[0].as_py()
    tatok("show", dataset, key, "-o", str(tmp_path / "shown.png"))
    assert (tmp_path / "shown.png").stat().st_size > 10_000
