"""A job through Ray's Job Submission: submit, follow, list, stop."""

from __future__ import annotations

import asyncio
import http.client
import os
import re
import shlex
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # before Ray is imported

import aiohttp
from ray.exceptions import AuthenticationError
from ray.job_submission import JobDetails, JobSubmissionClient

from tatok.jobs.job_file import job_text
from tatok.jobs.submission.following import SubmittedJob
from tatok.jobs.submission.package import (
    JOB,
    for_the_cluster,
    pack,
    pinned_requirements,
    refuse_credentials,
    tokenize_command,
    tokenizer_file,
)
from tatok.schemas.errors import ConfigError, TatokError
from tatok.schemas.job import JobConfig

__all__ = ["Cluster", "Dependencies"]

Dependencies = Literal["pinned", "installed"]
_OUTPUT, _SOURCE = "tatok.output", "tatok.source"  # in Ray's metadata of a job
_PYTHON = "python -m tatok.jobs.cli"
_POLL_S = 1.0
_ANSWER_S = 10.0
_REFUSED = re.compile(r"Request failed with status code (\d+)\b")  # how Ray's client begins its RuntimeError


class Cluster:
    """The Ray cluster at `address`, such as http://head:8265 or head:8265, as far as its jobs go.

    Token authentication is Ray's: RAY_AUTH_MODE=token with RAY_AUTH_TOKEN_PATH, here and on the head. Every method
    raises TatokError where the cluster does not answer or does not let us in.
    """

    def __init__(self, address: str) -> None:
        # Without a scheme Ray takes it for the address of its GCS, and waits for that in vain.
        self._address = address if "://" in address or address == "auto" else f"http://{address}"
        with self._answering(), _asked_for(self._address):
            _require_answer(self._address)
            self._client = JobSubmissionClient(self._address)

    def submit(
        self,
        job: JobConfig,
        *,
        name: str,
        image: str | None,
        dependencies: Dependencies,
        command: str = tokenize_command(),
    ) -> str:
        """Start tatok's `command` on the job there, with what `pack` takes along or within an image; returns the id.

        `dependencies`: "pinned" installs tatok's requirements in this machine's versions, "installed" takes what the
        cluster has. Raises ConfigError where the job cannot run elsewhere or holds a credential.
        """
        metadata = {_OUTPUT: job.output, _SOURCE: ", ".join(job.source)}
        if image is not None:
            entrypoint = image_entrypoint(job, command)
            self._refuse_credentials(entrypoint, metadata)
            return self._submit(entrypoint, {"image_uri": image}, metadata, name)
        with tempfile.TemporaryDirectory(prefix="tatok-submit-") as folder:
            pack(job, Path(folder), cluster_has_code=dependencies == "installed")
            environment: dict[str, Any] = {"working_dir": folder}
            if dependencies == "pinned":
                environment["pip"] = pinned_requirements(job)
            entrypoint = f"{_PYTHON} {command} {JOB}"
            self._refuse_credentials(entrypoint, metadata)
            return self._submit(entrypoint, environment, metadata, name)

    def jobs(self) -> list[SubmittedJob]:
        """The cluster's tatok jobs, the latest first."""
        with self._answering():
            found = [_job(each) for each in self._client.list_jobs() if _OUTPUT in (each.metadata or {})]
        return sorted(found, key=lambda job: job.started_at or datetime.max.replace(tzinfo=UTC), reverse=True)

    def job(self, job_id: str) -> SubmittedJob:
        """One job; raises ConfigError where there is none of that id."""
        with self._answering(job_id):
            return _job(self._client.get_job_info(job_id))

    def logs(self, job_id: str) -> str:
        """What the driver has printed so far."""
        with self._answering(job_id):
            return str(self._client.get_job_logs(job_id))

    def follow(self, job_id: str, say: Callable[[str], None]) -> SubmittedJob:
        """Pass on what the driver prints until the job is over; returns what became of it."""

        async def tail() -> None:
            async for text in self._client.tail_job_logs(job_id):
                say(text)

        with self._answering(job_id):
            asyncio.run(tail())
            while not (job := self.job(job_id)).is_over:
                time.sleep(_POLL_S)
        return job

    def stop(self, job_id: str) -> bool:
        """End the driver, and with it the job; False where it was over already. Committed parts stay."""
        with self._answering(job_id):
            return bool(self._client.stop_job(job_id))

    def _submit(self, entrypoint: str, environment: dict[str, Any], metadata: dict[str, str], name: str) -> str:
        stamp = datetime.now(UTC).strftime("%Y%m%d-%H%M%S-%f")[:-3]
        job_id = f"tatok-{re.sub(r'[^A-Za-z0-9]+', '-', name).strip('-')}-{stamp}"
        with self._answering():
            return str(
                self._client.submit_job(
                    entrypoint=entrypoint, runtime_env=environment, metadata=metadata, submission_id=job_id
                )
            )

    def _refuse_credentials(self, entrypoint: str, metadata: dict[str, str]) -> None:
        refuse_credentials("\n".join((entrypoint, *metadata.values())), os.environ)

    @contextmanager
    def _answering(self, job_id: str | None = None) -> Iterator[None]:
        try:
            yield
        except TatokError:
            raise
        except Exception as error:  # Ray raises RuntimeError, ConnectionError, its own and aiohttp's
            status = _http_status(error)
            if job_id is not None and status == 404:
                raise ConfigError(f"{self._address} knows no job {job_id!r}; see `tatok jobs list`") from error
            said = f"the Ray at {self._address} %s: {_telling_line(error)}"
            if status in (401, 403):
                remedy = "; set RAY_AUTH_MODE=token and RAY_AUTH_TOKEN_PATH to the cluster's token"
                raise TatokError(said % "does not let us in" + remedy) from error
            if status is None and isinstance(error, (OSError, aiohttp.ClientError)):
                remedy = "; check that the head runs, and the address of its dashboard, such as http://HEAD:8265"
                raise TatokError(said % "does not answer" + remedy) from error
            raise TatokError(said % "cannot do that") from error


def image_entrypoint(job: JobConfig, command: str = tokenize_command()) -> str:
    """The driver's command where tatok comes with a container image; the job is on the command line.

    So is the file of its tokenizer, which the driver writes into its folder.
    """
    document = job_text(for_the_cluster(job, packs_checkpoint=False), one_line=True)
    found = tokenizer_file(job)
    beside = "" if found is None else f"printf %s {shlex.quote(found[1])} > {shlex.quote(found[0])} && "
    return f"{beside}printf %s {shlex.quote(document)} | {_PYTHON} {command} /dev/stdin"


def _require_answer(address: str) -> None:
    """Raise an OSError if no web server answers there in time: Ray's client would wait without end."""
    if address == "auto":
        return
    try:
        urllib.request.urlopen(f"{address}/api/version", timeout=_ANSWER_S).close()
    except urllib.error.HTTPError as error:
        error.close()  # whatever it says, it answers: what comes of it is the client's business
    except http.client.HTTPException as error:
        raise ConnectionError(f"what listens there is no web server ({error!r})") from error


@contextmanager
def _asked_for(address: str) -> Iterator[None]:
    """Ray prefers RAY_API_SERVER_ADDRESS and RAY_ADDRESS to the address that its client is given."""
    name = "RAY_API_SERVER_ADDRESS"
    before = os.environ.get(name)
    os.environ[name] = address
    try:
        yield
    finally:
        if before is None:
            del os.environ[name]
        else:
            os.environ[name] = before


def _http_status(error: Exception) -> int | None:
    """The status that the head answered with; None where it did not answer, or the error is of another kind."""
    if isinstance(error, AuthenticationError):
        return 401  # or 403: Ray does not distinguish them
    if isinstance(error, aiohttp.WSServerHandshakeError):
        return error.status
    if isinstance(error, RuntimeError) and (refused := _REFUSED.match(str(error))):
        return int(refused[1])
    response = getattr(error, "response", None)  # of requests' HTTPError
    return getattr(response, "status_code", None)


def _telling_line(error: Exception) -> str:
    """The line of an error that says most: the first, or of the head's traceback the last."""
    lines = [line for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
    return lines[-1 if "Traceback" in lines[0] else 0].strip()


def _job(details: JobDetails) -> SubmittedJob:
    metadata = details.metadata or {}
    return SubmittedJob(
        id=str(details.submission_id),
        status=str(details.status.value),
        source=metadata.get(_SOURCE, ""),
        output=metadata.get(_OUTPUT, ""),
        message=details.message or "",
        started_at=_moment(details.start_time),
        ended_at=_moment(details.end_time),
        exit_code=details.driver_exit_code,
    )


def _moment(milliseconds: int | None) -> datetime | None:
    return datetime.fromtimestamp(milliseconds / 1000, tz=UTC) if milliseconds else None
