"""A job written out again as a job file: the same job, on every machine."""

from __future__ import annotations

from pathlib import Path

import pytest
from typer.testing import CliRunner

from tatok.jobs.cli import app
from tatok.jobs.job_file import job_file_among, job_text
from tatok.schemas.errors import ConfigError
from tatok.schemas.job import JobConfig
from tatok.schemas.settings_file import read_settings

ELSEWHERE = {"X": "of the cluster", "BUCKET": "other"}


def read_elsewhere(text: str, tmp_path: Path) -> JobConfig:
    path = tmp_path / "there.yaml"
    path.write_text(text, encoding="utf-8")
    return read_settings(path, environment=ELSEWHERE).validated(JobConfig)


@pytest.mark.parametrize("one_line", [False, True])
@pytest.mark.parametrize(
    "value",
    ["${X}", "$${X}", "$${", "${X:-y}", "a\n${X}\n", "'${X}' \"é\" # no: comment", "word " * 60, "1e-5", "null"],
)
def test_it_reads_as_the_same_job(value: str, one_line: bool, tmp_path: Path) -> None:
    job = JobConfig.model_validate({
        "source": [f"s3://a/{value}.tar", value],
        "output": value,
        "dtf": {"threshold": 1e-05},
        "storage": {"s3": {"${X}": value, "client_kwargs": {"list": [value]}}},
    })  # fmt: skip
    assert read_elsewhere(job_text(job, one_line=one_line), tmp_path) == job


def test_one_line_is_one_line() -> None:
    job = JobConfig(source="s3://a/" + "b" * 300, output="o", image_field="word " * 60)
    assert job_text(job, one_line=True).count("\n") == 0


def test_config_show_prints_a_job_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BUCKET", "photos")
    job = tmp_path / "job.yaml"
    job.write_text("source: 's3://${BUCKET}/$${BUCKET}.tar'\noutput: s3://c\n")
    result = CliRunner().invoke(app, ["config", "show", str(job)])
    assert read_elsewhere(result.output, tmp_path).source == ("s3://photos/${BUCKET}.tar",)


def test_a_job_file_stands_in_place_of_a_source(tmp_path: Path) -> None:
    path = Path("job.yaml")
    assert job_file_among(["job.yaml"], None) == (None, path)
    assert job_file_among(["a.tar", "tokens.yaml"], None) == (["a.tar", "tokens.yaml"], None)
    assert job_file_among(["a.tar", "out"], path) == (["a.tar", "out"], path)
    assert job_file_among(None, path) == (None, path)
    with pytest.raises(ConfigError, match=r"other\.yml.*job\.yaml are both job files"):
        job_file_among(["job.yaml"], Path("other.yml"))
