"""tatok plan: what there is and what is done, without reading an image."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

from tatok.jobs.cli import app
from tests.support.fake_tokenizer import FakeTokenizer
from tests.support.photos import jpeg, photo_members, tar_bytes
from tests.support.real_data import write_real_data


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """Two tars, a Parquet file of 20 rows, a folder of three files."""
    for i in range(2):
        (tmp_path / f"photos-{i}.tar").write_bytes(tar_bytes(photo_members(4 * i, 4)))
    pq.write_table(pa.table({"image": [jpeg(i) for i in range(20)]}), tmp_path / "photos.parquet")
    (tmp_path / "folder" / "deep").mkdir(parents=True)
    for name in ("a.jpg", "b.png", "deep/c.jpg"):
        (tmp_path / "folder" / name).write_bytes(b"12345")
    return tmp_path


def plan(*arguments: object) -> str:
    result = CliRunner().invoke(app, ["plan", *map(str, arguments)])
    assert result.exit_code == 0, result.output
    return result.output


def test_what_there_is(source: Path) -> None:
    text = plan(source / "photos-*.tar", source / "photos.parquet", source / "folder")
    assert "WebDataset tars: 2 shards, samples unknown" in text
    assert "Parquet files: 1 shard, 20 samples" in text
    assert "1 shard, 3 samples, 15 bytes" in text
    assert "files: 2 jpg, 1 png" in text
    assert "done" not in text


def test_what_is_left(source: Path) -> None:
    output = source / "out"
    photos = source / "growing"
    photos.mkdir()
    for i in range(3):
        (photos / f"{i}.jpg").write_bytes(jpeg(i, 64, 64))
    write_real_data(str(output), (str(photos),), image_size=64, tokenizer=FakeTokenizer())
    (photos / "new.jpg").write_bytes(b"123")
    document = json.loads(plan(photos, "--output", output, "--json"))
    assert document["kinds"]["files"]["num_samples"] == 4
    assert (document["num_shards_done"], document["num_shards_left"], document["num_bytes_left"]) == (1, 1, 3)
    [left] = document["left"]
    assert left["num_samples"] == 1
    assert "done: 1 of 2 shards; left: 3 bytes" in plan(photos, "--output", output)


def test_a_job_file_names_it_all(source: Path) -> None:
    job = source / "job.yaml"
    job.write_text(f"source: {source}/photos-*.tar\noutput: {source}/nothing-yet\n")
    text = plan("--config", job)
    assert "done: 0 of 2 shards" in text
    assert not (source / "nothing-yet").exists(), "nothing is written"


def test_errors_name_the_remedy(tmp_path: Path) -> None:
    for arguments, words in (([], "--config"), ([f"{tmp_path}/none.tar"], "none.tar")):
        result = CliRunner().invoke(app, ["plan", *arguments])
        assert result.exit_code == 1
        assert words in result.output
