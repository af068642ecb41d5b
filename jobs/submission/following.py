"""A submitted job as people watch it: what is known of it, what its driver prints, how following it ends."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from typing import Protocol

import typer

from tatok.jobs.exit_codes import EXIT_ERROR, exit_code_of

__all__ = ["Followed", "SubmittedJob", "exit_as", "follow"]

_OVER = ("SUCCEEDED", "FAILED", "STOPPED")  # of Ray's states of a job


@dataclass(frozen=True, slots=True, kw_only=True)
class SubmittedJob:
    """One tatok job on a cluster; `exit_code` is the driver's, as `tatok tokenize` gives it."""

    id: str
    status: str
    source: str
    output: str
    message: str
    started_at: datetime | None
    ended_at: datetime | None
    exit_code: int | None

    @property
    def is_over(self) -> bool:
        """Whether nothing more will come of it."""
        return self.status in _OVER

    @property
    def duration(self) -> str:
        """How long it took, such as 1:02:03; empty until it is over."""
        if self.started_at is None or self.ended_at is None:
            return ""
        return str(self.ended_at - self.started_at).partition(".")[0]


class Followed(Protocol):
    """A cluster, as far as following needs it."""

    def follow(self, job_id: str, say: Callable[[str], None]) -> SubmittedJob:
        """Pass on what the driver prints until the job is over."""


def follow(cluster: Followed, job_id: str, address: str) -> SubmittedJob:
    """Print what the driver prints until the job is over.

    Ctrl-C and SIGTERM leave the job running, say so and exit with 130 or 143.
    """

    def say(text: str) -> None:
        sys.stdout.write(text)
        sys.stdout.flush()

    try:
        return cluster.follow(job_id, say)
    except KeyboardInterrupt as interrupt:
        typer.secho(
            f"the job continues; `tatok jobs logs -f {job_id} --address {address}` follows it, "
            "`tatok jobs stop` ends it",
            fg="yellow",
            err=True,
        )
        raise typer.Exit(exit_code_of(interrupt)) from None


def exit_as(job: SubmittedJob, remedy: str = "submit the same job again to resume from its committed parts") -> None:
    """Exit as the driver did; where it failed, with its message and the remedy."""
    if job.status != "SUCCEEDED":
        typer.secho(f"{job.status}: {job.message.strip()}", fg="red", err=True)
        typer.secho(remedy, err=True)
        raise typer.Exit(job.exit_code if job.exit_code and job.exit_code > 0 else EXIT_ERROR)
