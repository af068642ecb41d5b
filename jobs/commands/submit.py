"""The commands that run a job on a cluster: submit, and jobs list, status, logs, stop."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Literal

import typer

from tatok.jobs.job_file import JobFile, SetOption, read_job
from tatok.jobs.verbosity import Quiet, Verbose, Verbosity
from tatok.schemas.errors import ConfigError

__all__ = ["jobs", "submit"]

Address = Annotated[
    str,
    typer.Option(envvar="RAY_API_SERVER_ADDRESS", help="The head's dashboard, where Ray takes jobs."),
]
JobId = Annotated[str, typer.Argument(metavar="ID", help="The job's id, as `submit` prints it.")]
_LOCAL = "http://127.0.0.1:8265"

jobs = typer.Typer(no_args_is_help=True, help="Submitted jobs: list, status, logs, stop.")


def submit(
    job: JobFile,
    address: Address = _LOCAL,
    assignments: SetOption = None,
    image: Annotated[
        str | None, typer.Option(help="Run in this container image, which has tatok, instead of packing it.")
    ] = None,
    dependencies: Annotated[
        Literal["pinned", "installed"],
        typer.Option(
            help="Install tatok's requirements in the versions of this machine, or take what the `python` on the "
            "PATH of the cluster's head has."
        ),
    ] = "pinned",
    kuberay: Annotated[
        Path | None,
        typer.Option(help="Write a RayJob for Kubernetes to this file instead of submitting; needs --image."),
    ] = None,
    namespace: Annotated[str, typer.Option(help="With --kuberay: the namespace.")] = "default",
    service_account: Annotated[
        str | None, typer.Option(help="With --kuberay: the pods' service account, which may use the buckets.")
    ] = None,
    secret: Annotated[
        str | None, typer.Option(help="With --kuberay: a Secret whose entries become the pods' environment.")
    ] = None,
    num_gpus: Annotated[
        int,
        typer.Option(
            min=1, help="With --kuberay: GPU pods (CPU pods, with device: cpu), where the job's resources do not say."
        ),
    ] = 1,
    spot: Annotated[
        bool, typer.Option("--spot/--no-spot", help="With --kuberay: workers may run on spot nodes.")
    ] = True,
    log: Annotated[
        str | None,
        typer.Option(
            help="Also write the run's events as JSON lines, to this absolute path on the driver's node; "
            "-: among what the driver prints."
        ),
    ] = None,
    detach: Annotated[bool, typer.Option("--detach", help="Return at once instead of following the log.")] = False,
    quiet: Quiet = False,
    verbose: Verbose = 0,
) -> None:
    """Run a job on a Ray cluster by its Job Submission; the same command again resumes where the last run stopped.

    tatok's packages, the job's settings and a local checkpoint travel; credentials do not: the cluster's nodes must
    have their own, by a role, a mounted secret or the environment that `ray start` had.

    Exit codes: those of `tatok tokenize`, or of the signal that killed the driver; 1 also where
    the job was stopped or lost; 130 where following was interrupted, which leaves the job running.
    """
    from tatok.jobs.submission.package import tokenize_command

    config, command = read_job(job, assignments), tokenize_command(log, Verbosity.of(quiet, verbose))
    if kuberay is not None:
        if image is None:
            raise ConfigError("--kuberay needs --image, the container image that the pods run; see Dockerfile")
        from importlib.metadata import version

        from tatok.jobs.submission.kuberay import Kubernetes, rendered

        kubernetes = Kubernetes(
            image=image,
            ray_version=version("ray"),
            namespace=namespace,
            service_account=service_account,
            secret=secret,
            num_gpus=num_gpus,
            spot=spot,
        )
        kuberay.write_text(rendered(config, job.stem, kubernetes, command=command), encoding="utf-8")
        print(f"{kuberay}: run it with `kubectl create -f {kuberay}`")
        return
    from tatok.jobs.submission.following import exit_as, follow
    from tatok.jobs.submission.ray_jobs import Cluster

    cluster = Cluster(address)
    job_id = cluster.submit(config, name=job.stem, image=image, dependencies=dependencies, command=command)
    print(job_id)
    if not detach:
        exit_as(follow(cluster, job_id, address))


@jobs.command("list")
def list_jobs(address: Address = _LOCAL) -> None:
    """List the cluster's tatok jobs, the latest first; into a pipe or file with tabs between the columns."""
    from rich import print as print_rich
    from rich.table import Table

    from tatok.jobs.submission.ray_jobs import Cluster

    rows = [("id", "status", "started", "took", "output")]
    for job in Cluster(address).jobs():
        started = job.started_at.isoformat(sep=" ", timespec="seconds") if job.started_at else ""
        rows.append((job.id, job.status, started, job.duration, job.output))
    if not sys.stdout.isatty():
        for row in rows:
            print("\t".join(row))
        return
    table = Table(box=None, pad_edge=False)
    for title in rows[0]:
        table.add_column(title, overflow="fold")
    for row in rows[1:]:
        table.add_row(*row)
    print_rich(table)


@jobs.command()
def status(job_id: JobId, address: Address = _LOCAL) -> None:
    """Say what a job is doing, or what became of it."""
    from tatok.jobs.submission.ray_jobs import Cluster

    job = Cluster(address).job(job_id)
    print(f"{job.id}: {job.status}\nsource: {job.source}\noutput: {job.output}")
    if took := job.duration:
        print(f"took: {took}")
    if job.exit_code is not None:
        print(f"exit code: {job.exit_code}")
    if job.message:
        print(job.message.strip())


@jobs.command()
def logs(
    job_id: JobId,
    address: Address = _LOCAL,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Continue until the job is over.")] = False,
) -> None:
    """Print what a job's driver has said."""
    from tatok.jobs.submission.following import exit_as
    from tatok.jobs.submission.following import follow as follow_job
    from tatok.jobs.submission.ray_jobs import Cluster

    cluster = Cluster(address)
    if follow:
        exit_as(follow_job(cluster, job_id, address))
    else:
        print(cluster.logs(job_id), end="")


@jobs.command()
def stop(job_id: JobId, address: Address = _LOCAL) -> None:
    """End a job; its committed parts stay, and submitting it again resumes from them."""
    from tatok.jobs.submission.ray_jobs import Cluster

    print("stopped" if Cluster(address).stop(job_id) else "the job was over already")
