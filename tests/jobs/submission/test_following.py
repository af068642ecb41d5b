"""Following a submitted job: what is printed, and how the command ends."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime, timedelta

import pytest
import typer

from tatok.jobs.exit_codes import EXIT_ERROR, EXIT_INTERRUPTED
from tatok.jobs.submission.following import SubmittedJob, exit_as, follow

STARTED = datetime(2026, 11, 1, tzinfo=UTC)


def job(status: str = "SUCCEEDED", exit_code: int | None = 0, took: timedelta | None = None) -> SubmittedJob:
    return SubmittedJob(
        id="tatok-photos",
        status=status,
        source="s3://a.tar",
        output="s3://b",
        message="the driver's last words\n",
        started_at=STARTED,
        ended_at=None if took is None else STARTED + took,
        exit_code=exit_code,
    )


class FakeCluster:
    def __init__(self, interrupted: bool = False) -> None:
        self.interrupted = interrupted

    def follow(self, job_id: str, say: Callable[[str], None]) -> SubmittedJob:
        say("one line\n")
        if self.interrupted:
            raise KeyboardInterrupt
        return job()


def test_what_the_driver_prints_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    exit_as(follow(FakeCluster(), "tatok-photos", "http://head:8265"))
    assert capsys.readouterr().out == "one line\n"


def test_an_interruption_leaves_the_job_running_and_says_how_to_follow_it(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(typer.Exit) as exited:
        follow(FakeCluster(interrupted=True), "tatok-photos", "http://head:8265")
    assert exited.value.exit_code == EXIT_INTERRUPTED
    assert "tatok jobs logs -f tatok-photos --address http://head:8265" in capsys.readouterr().err


@pytest.mark.parametrize(("exit_code", "expected"), [(3, 3), (137, 137), (-9, EXIT_ERROR), (None, EXIT_ERROR)])
def test_a_failed_job_ends_as_its_driver_did(
    exit_code: int | None, expected: int, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(typer.Exit) as exited:
        exit_as(job("FAILED", exit_code), remedy="do this")
    assert exited.value.exit_code == expected
    assert capsys.readouterr().err.splitlines() == ["FAILED: the driver's last words", "do this"]


def test_a_job_is_over_when_ray_says_so() -> None:
    from ray.job_submission import JobStatus

    for status in JobStatus:
        assert job(status.value).is_over == status.is_terminal()
    assert (job().duration, job(took=timedelta(hours=1, minutes=2, seconds=3.5)).duration) == ("", "1:02:03")
