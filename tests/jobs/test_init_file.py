"""tatok config init: a file that is the job with its defaults, says every setting, and replaces none that is there."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from typer.testing import CliRunner, Result

from tatok.jobs.cli import app
from tatok.jobs.job_file import read_job
from tatok.schemas.job import JobConfig
from tatok.schemas.settings import Section
from tests.support.photos import jpeg, photo_members, tar_bytes


def init(*arguments: object) -> Result:
    return CliRunner().invoke(app, ["config", "init", *map(str, arguments)])


@pytest.fixture(params=["tar", "parquet", "folder", "list", "odd name"])
def source(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    folder = tmp_path / "photos"
    folder.mkdir()
    match request.param:
        case "tar":
            (folder / "a.tar").write_bytes(tar_bytes(photo_members(0, 4)))
        case "parquet":
            pq.write_table(pa.table({"image": [jpeg(i) for i in range(3)]}), folder / "a.parquet")
            return f"{folder}/*.parquet"
        case "list":
            (folder / "a.jpg").write_bytes(jpeg(1))
            (folder / "list.csv").write_text("url,caption\na.jpg,A photo\n")
            return f"{folder}/list.csv"
        case "folder":
            (folder / "cats").mkdir()
            (folder / "cats" / "a.jpg").write_bytes(jpeg(1))
        case _:
            odd = folder / "${HOME}: #1 'é"
            odd.mkdir()
            (odd / "a.jpg").write_bytes(jpeg(1))
            return str(odd)
    return str(folder)


def test_it_is_the_job_with_its_defaults(source: str, tmp_path: Path) -> None:
    file = tmp_path / "job.yaml"
    result = init(source, tmp_path / "out", "-o", file)
    assert result.exit_code == 0, result.output
    assert f"tatok tokenize {file} --dry-run" in result.output
    assert read_job(file) == JobConfig(source=source, output=str(tmp_path / "out"))
    assert "1 shard, " in file.read_text(encoding="utf-8"), "what was found is said"


def test_what_stands_behind_a_mark_is_the_default(tmp_path: Path) -> None:
    """With every setting's mark taken away it is still the same job, and no setting is missing."""
    (tmp_path / "a.tar").write_bytes(tar_bytes(photo_members(0, 2)))
    text = init(tmp_path / "a.tar", "tokens").output
    bare = re.sub(r"^#(?=(  )*\w+:( |$))", "", text, flags=re.M)
    assert JobConfig.model_validate(yaml.safe_load(bare)) == JobConfig(source=f"{tmp_path}/a.tar", output="tokens")
    names = {name for name, _ in _names(yaml.safe_load(bare))}
    assert names == {name for name, _ in _fields(JobConfig)}


def _names(document: dict, prefix: str = "") -> Iterator[tuple[str, object]]:
    for name, value in document.items():
        yield f"{prefix}{name}", value
        if isinstance(value, dict):
            yield from _names(value, f"{prefix}{name}.")


def _fields(kind: type[Section], prefix: str = "") -> Iterator[tuple[str, object]]:
    for name, field in kind.model_fields.items():
        yield f"{prefix}{name}", field
        if isinstance(field.default, Section):
            yield from _fields(type(field.default), f"{prefix}{name}.")


def test_every_setting_says_what_it_is_for(tmp_path: Path) -> None:
    assert [name for name, field in _fields(JobConfig) if not _purpose(field)] == []


def _purpose(field: object) -> str | None:
    return field.description or field.default.__doc__ if isinstance(field.default, Section) else field.description  # type: ignore[attr-defined]


def test_settings_that_are_asked_for_are_set(tmp_path: Path) -> None:
    (tmp_path / "a.tar").write_bytes(tar_bytes(photo_members(0, 2)))
    file = tmp_path / "job.yaml"
    file.write_text(
        init(tmp_path / "a.tar", "--set", "preprocessing.buckets.max_aspect_ratio=2", "--set", "image_field=jpg").output
    )
    job = read_job(file)
    assert (job.output, job.image_field, job.preprocessing.buckets.max_aspect_ratio) == ("tokens", "jpg", 2.0)


def test_a_file_that_is_there_stays(tmp_path: Path) -> None:
    (tmp_path / "a.tar").write_bytes(tar_bytes(photo_members(0, 2)))
    file = tmp_path / "job.yaml"
    file.write_text("mine")
    result = init(tmp_path / "a.tar", "-o", file)
    assert (result.exit_code, file.read_text()) == (1, "mine")
    assert f"{file} is there already" in result.output


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("{0}/none.tar",), "none.tar"),
        (("{0}", "{0}/out"), "lies inside of the source"),
        (("{0}", "--set", "bath_size=3"), "did you mean"),
        (("{0}", "{0}-out", "-o", "{0}/no/such/folder.yaml"), "cannot write"),
    ],
)
def test_errors_name_the_remedy(arguments: tuple[str, ...], words: str, tmp_path: Path) -> None:
    (tmp_path / "a.tar").write_bytes(tar_bytes(photo_members(0, 2)))
    result = init(*(argument.format(tmp_path) for argument in arguments))
    assert result.exit_code == 1
    assert words in result.output
