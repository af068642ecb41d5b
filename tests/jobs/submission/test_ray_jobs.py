"""What the commands say of a head's answers; a web server stands for the head."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from typer.testing import CliRunner

from tatok.jobs.cli import app
from tatok.jobs.submission.following import SubmittedJob
from tatok.jobs.submission.ray_jobs import Cluster, image_entrypoint
from tatok.schemas.errors import TatokError
from tatok.schemas.job import JobConfig
from tests.support.services.web_server import WebServer, serving

LONG = "tatok-a-job-with-quite-a-long-name-indeed-20261001-120000-000001"


@pytest.fixture(autouse=True)
def _no_address(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RAY_ADDRESS", "RAY_API_SERVER_ADDRESS"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def head(tmp_path: Path) -> Iterator[WebServer]:
    """Its Ray has one job, which runs."""
    (tmp_path / "api").mkdir()
    (tmp_path / "api" / "version").write_text(json.dumps({"ray_version": "2.60.0"}))
    job = {
        "type": "SUBMISSION",
        "submission_id": LONG,
        "status": "RUNNING",
        "entrypoint": "python",
        "start_time": 1_790_000_000_000,
        "metadata": {"tatok.output": f"s3://{'long-' * 30}tokens", "tatok.source": "s3://photos/a.tar"},
    }
    (tmp_path / "api" / "jobs").write_text(json.dumps([job]))
    with serving(tmp_path) as server:
        yield server


def test_an_address_may_lack_its_scheme_and_wins_over_the_environment(
    head: WebServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ray itself would take 127.0.0.1:PORT for its GCS, and RAY_ADDRESS for what was asked for."""
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:9")
    for address in (head.url, head.url.removeprefix("http://")):
        assert [job.id for job in Cluster(address).jobs()] == [LONG]


def test_a_list_into_a_pipe_has_a_job_a_line(head: WebServer) -> None:
    printed = CliRunner().invoke(app, ["jobs", "list", "--address", head.url]).output
    title, job = (line.split("\t") for line in printed.splitlines())
    assert title == ["id", "status", "started", "took", "output"]
    assert (job[0], job[1], job[4]) == (LONG, "RUNNING", f"s3://{'long-' * 30}tokens")


@pytest.mark.parametrize(
    ("status", "message"),
    [
        (401, "does not let us in"),
        (403, "does not let us in"),
        (404, "cannot do that"),
        (500, "cannot do that"),
        (0, "does not answer"),
    ],
)
def test_what_the_head_answers_is_told_by_its_status(head: WebServer, status: int, message: str) -> None:
    head.statuses["/api/version"] = status
    with pytest.raises(TatokError, match=message):
        Cluster(head.url)


@pytest.mark.filterwarnings("ignore:ssl=None is deprecated")  # Ray's
@pytest.mark.parametrize(
    ("status", "message"),
    [(404, "knows no job 'tatok-403'"), (403, "does not let us in"), (500, r"cannot do that: .*\b500\b")],
)
@pytest.mark.parametrize("ask", [Cluster.job, Cluster.logs, lambda *names: Cluster.follow(*names, print)])
def test_what_it_answers_about_a_job(
    head: WebServer, status: int, message: str, ask: Callable[[Cluster, str], object]
) -> None:
    """The number in the job's id is not the status."""
    head.statuses |= {f"/api/jobs/tatok-403{path}": status for path in ("", "/logs", "/logs/tail")}
    with pytest.raises(TatokError, match=message):
        ask(Cluster(head.url), "tatok-403")


def test_names_and_ports_are_no_diagnosis() -> None:
    with pytest.raises(TatokError, match=r"tokenizer-head\.invalid:4010 does not answer.*check that the head runs"):
        Cluster("http://tokenizer-head.invalid:4010")


def test_the_log_goes_with_the_command(tmp_path: Path) -> None:
    job = tmp_path / "job.yaml"
    job.write_text("source: s3://a/b.tar\noutput: s3://c\n")
    for log in ("run.jsonl", "s3://logs/run.jsonl"):
        refused = CliRunner().invoke(app, ["submit", str(job), "--log", log])
        assert (refused.exit_code, "an absolute path on the driver's node" in refused.output) == (1, True)


def test_an_image_is_given_the_job_in_one_line(tmp_path: Path) -> None:
    """The shell's command hands over the very job, also what looks like a variable."""
    job = JobConfig(source=("s3://a/{0..9}.tar", "s3://a/it's ${HOME}.tar"), output="s3://c")
    command, _, rest = image_entrypoint(job).partition(" | ")
    assert rest == "python -m tatok.jobs.cli tokenize --config /dev/stdin"
    assert "\n" not in command
    (tmp_path / "job.yaml").write_bytes(subprocess.run(command, shell=True, capture_output=True, check=True).stdout)
    shown = CliRunner().invoke(app, ["config", "show", str(tmp_path / "job.yaml")]).output
    assert "it's $${HOME}.tar" in shown


@pytest.mark.parametrize(("exit_code", "expected"), [(3, 3), (0, 0), (137, 137), (None, 1)])
def test_a_doctor_elsewhere_ends_as_it_ended_there(
    exit_code: int | None, expected: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class FakeCluster:
        def __init__(self, address: str) -> None: ...

        def submit(self, job: JobConfig, **_: object) -> str:
            return "tatok-doctor"

        def follow(self, job_id: str, say: Callable[[str], None]) -> SubmittedJob:
            status = "SUCCEEDED" if exit_code == 0 else "FAILED"
            return SubmittedJob(
                id=job_id,
                status=status,
                source="",
                output="",
                message="Job entrypoint command failed",
                started_at=None,
                ended_at=None,
                exit_code=exit_code,
            )

    monkeypatch.setattr("tatok.jobs.submission.ray_jobs.Cluster", FakeCluster)
    job = tmp_path / "job.yaml"
    job.write_text("source: s3://a/b.tar\noutput: s3://c\n")
    result = CliRunner().invoke(app, ["doctor", str(job), "--address", "http://head:8265"])
    assert result.exit_code == expected
    assert "committed parts" not in result.output
    assert ("entrypoint command failed" in result.output) == (expected not in (0, 3)), "of findings all has been said"
