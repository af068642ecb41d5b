"""Characters of patterns, URLs and chains in the names of real folders and files: they mean themselves."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

from tatok import Rows, TokenDataset, statistics
from tatok.jobs.cli import app
from tatok.pipeline.planning.plan import plan_shards
from tatok.pipeline.readers.read import ReadOptions, read_samples
from tatok.pipeline.run import refuse_output_in_source
from tatok.schemas.errors import ConfigError
from tatok.schemas.job import JobConfig
from tatok.schemas.records import Sample
from tests.support.photos import jpeg, photo_members, tar_bytes
from tests.support.places import TESTS

NAMES = ("[v1]", "a{0,1}b", "x#y", "50%20off", "what?", "a::b", "st*r", "ünï cödé", "a&b;c", "~home", "-o")


@pytest.fixture(params=NAMES)
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """A folder of that name, with others beside it that it would match if it were a pattern."""
    folder = tmp_path / request.param
    folder.mkdir()
    for other in ("v", "a0b", "starr", "whatx"):
        (tmp_path / other).mkdir()
    return folder


def tatok(*arguments: object) -> str:
    done = CliRunner().invoke(app, [str(argument) for argument in arguments])
    assert done.exit_code == 0, done.output
    return done.output


def test_an_output_is_opened(place: Path) -> None:
    output = shutil.copytree(TESTS / "data" / "dataset-0.1.0", place / "out")
    assert statistics.summarize(output).num_rows == 3
    [batch] = list(TokenDataset(output).stream(Rows(rows=3), epochs=1))
    assert len(batch.documents) == 3


def test_an_output_is_read_by_every_command(tmp_path: Path) -> None:
    place = tmp_path.joinpath(*NAMES)
    place.mkdir(parents=True)
    output = shutil.copytree(TESTS / "data" / "dataset-0.1.0", place / "out")
    assert "3 rows" in tatok("stats", output)
    assert tatok("query", output, "SELECT count(*) AS n FROM tokens", "--format", "csv").split() == ["n", "3"]
    tatok("verify", output)
    tatok("report", output, "-o", place / "report.html", "--no-pictures")
    tatok("export", "webdataset", output, place / "tars")
    tatok("compact", output, place / "compact")
    assert pq.read_table(place / "compact" / "data").num_rows == 3
    assert statistics.query(output, "SELECT sum(num_tokens) AS n FROM tokens").to_pylist() == [{"n": 118}]


@pytest.mark.parametrize("kind", ["tar", "folder", "photo", "list"])
def test_a_source_is_what_is_there_under_its_name(place: Path, kind: str) -> None:
    if kind == "tar":
        source, count = place / "photos.tar", 3
        source.write_bytes(tar_bytes(photo_members(0, 3)))
    elif kind == "list":
        source, count = place / "list.txt", 1
        (place / f"{place.name}.jpg").write_bytes(jpeg(0))
        source.write_text(f"{place / place.name}.jpg\n")
    else:
        for number in range(2):
            (place / f"{place.name}-{number}.jpg").write_bytes(jpeg(number))
        source, count = (place, 2) if kind == "folder" else (place / f"{place.name}-1.jpg", 1)
    options = ReadOptions.of(JobConfig(source=(str(source),), output="o"))
    samples = [sample for shard in plan_shards([str(source)]) for sample in read_samples(shard, options)]
    assert [isinstance(sample, Sample) for sample in samples] == [True] * count


@pytest.mark.parametrize("output", ["file", "file/below", "file/far/below"])
def test_an_output_that_is_a_file_is_named(output: str, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("somebody's")
    (tmp_path / "photos.tar").write_bytes(tar_bytes(photo_members(0, 1)))
    done = CliRunner().invoke(app, ["tokenize", str(tmp_path / "photos.tar"), str(tmp_path / output)])
    assert done.exit_code == 1
    assert f"{tmp_path / 'file'} is a file" in " ".join(done.output.split())
    assert (tmp_path / "file").read_text() == "somebody's"


@pytest.mark.parametrize(
    ("source", "output"),
    [
        ("photos", "photos/tokens"),
        ("photos/", "photos"),
        ("photos", "photos/../photos/tokens"),
        ("s3://bucket/photos", "s3://bucket/photos/tokens"),
        ("photos/**", "photos/tokens"),
        ("photos/*/*/*.parquet", "photos/tokens"),
        ("{photos,more}/**/*.parquet", "photos/deep/tokens"),
        ("photos/tokens/data/*", "photos/tokens"),
    ],
)
def test_an_output_inside_a_source_is_refused(
    source: str, output: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "a.jpg").write_bytes(jpeg(0))
    done = CliRunner().invoke(app, ["tokenize", source, output])
    assert done.exit_code == 1
    assert "lies inside of the source" in " ".join(done.output.split())
    assert [path.name for path in (tmp_path / "photos").iterdir()] == ["a.jpg"]


@pytest.mark.parametrize("name", ["photos [2023]", "set{a,b}"])
def test_an_output_inside_a_glob_in_a_folder_of_an_odd_name_is_refused(name: str, tmp_path: Path) -> None:
    (tmp_path / name).mkdir()
    for glob in ("**", "*/*/*.parquet", "tokens/{data,runs}/*"):
        with pytest.raises(ConfigError, match="lies inside of the source"):
            refuse_output_in_source(
                JobConfig(source=(f"{tmp_path}/{name}/{glob}",), output=f"{tmp_path}/{name}/tokens")
            )
    refuse_output_in_source(JobConfig(source=(f"{tmp_path}/{name}/*.jpg",), output=f"{tmp_path}/{name}/tokens"))


def test_an_output_beside_a_source_of_a_like_name_is_fine() -> None:
    refuse_output_in_source(JobConfig(source=("/data/photos", "s3://b/photos"), output="/data/photos-tokens"))
    refuse_output_in_source(JobConfig(source=("s3://b/photos",), output="s3://b/photos-tokens"))
    refuse_output_in_source(JobConfig(source=("/data/*.tar", "/data/{a,b}/*.jpg"), output="/data/tokens"))


@pytest.mark.parametrize("arguments", [["--help"], ["stats", str(TESTS / "data" / "dataset-0.1.0")]])
def test_a_terminal_that_lacks_characters_is_no_error(arguments: list[str]) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "tatok", *arguments],
        env=os.environ | {"PYTHONIOENCODING": "ascii", "PYTHONUTF8": "0", "LC_ALL": "C"},
        capture_output=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    done.stdout.decode("ascii")
