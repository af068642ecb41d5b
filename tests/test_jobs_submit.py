"""Jobs through a Ray head with authentication, from bucket to bucket on SeaweedFS, all by the command line."""

from __future__ import annotations

import functools
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import fsspec
import pytest
import yaml
from conftest import TESTS, photo_members, tar_bytes
from fsspec.spec import AbstractFileSystem
from real_services import Head, Store, ray_head, seaweedfs
from tiny_checkpoint import tiny_checkpoint
from typer.testing import CliRunner

from jobs.cli import app
from jobs.job_package import for_the_cluster, pack, pinned_requirements, refuse_credentials
from schemas.errors import ConfigError
from schemas.job import JobConfig

SECRET = "planted-a8f5f167f44f4964e6c998dee827110c"
NUM_SHARDS, PHOTOS_A_SHARD = 24, 4


@dataclass(frozen=True, kw_only=True)
class Place:
    """A head, a store with a source in it, and a job file."""

    head: Head
    store: Store
    job: Path
    source: str
    output: str

    @functools.cached_property
    def fs(self) -> AbstractFileSystem:
        return fsspec.filesystem("s3", **self.store.options, skip_instance_cache=True, use_listings_cache=False)

    @property
    def environment(self) -> dict[str, str]:
        """Of the user's shell, which has the credentials too."""
        return os.environ | self.head.environment | {"PHOTOS_KEY": self.store.key, "PHOTOS_SECRET": self.store.secret}

    def start(self, *arguments: object) -> subprocess.Popen[str]:
        command = [sys.executable, "-m", "jobs.cli", *map(str, arguments)]
        return subprocess.Popen(
            command, cwd=TESTS.parent, env=self.environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
        )

    def tatok(self, *arguments: object) -> tuple[int, str]:
        process = self.start(*arguments)
        printed, _ = process.communicate(timeout=300)
        return process.returncode, printed

    def num_parts(self) -> int:
        return len(self.fs.glob(f"{self.output.removeprefix('s3://')}/data/*.parquet"))


@pytest.fixture(scope="module")
def place() -> Iterator[Place]:
    """Everything that the module's tests share; starting it takes some ten seconds."""
    folder = Path(tempfile.mkdtemp(prefix="tk-", dir="/tmp"))  # sockets need short paths
    try:
        with (
            seaweedfs(folder / "weed", secret=SECRET) as store,
            ray_head(folder / "h", environment={"PHOTOS_KEY": store.key, "PHOTOS_SECRET": store.secret}) as head,
        ):
            tiny_checkpoint(folder / "tiny")
            source, output = f"s3://photos-in/photos-{{000..{NUM_SHARDS - 1:03}}}.tar", "s3://photos-out/tokens"
            document = {
                "source": source,
                "output": output,
                "checkpoint": str(folder / "tiny"),
                "device": "cpu",
                "preprocessing": {"image_size": 32},
                "resources": {"batch_size": 4, "num_tokenizers": 1, "num_decoders": 1},
                "storage": {
                    "s3": {
                        "endpoint_url": store.endpoint_url,
                        "key": {"env": "PHOTOS_KEY"},
                        "secret": {"env": "PHOTOS_SECRET"},
                    }
                },
            }
            job = folder / "photos.yaml"
            job.write_text(yaml.safe_dump(document))
            place = Place(head=head, store=store, job=job, source=source, output=output)
            for bucket in ("photos-in", "photos-out"):
                place.fs.mkdir(bucket)
            for number in range(NUM_SHARDS):
                members = photo_members(PHOTOS_A_SHARD * number, PHOTOS_A_SHARD)
                place.fs.pipe_file(f"photos-in/photos-{number:03}.tar", tar_bytes(members))
            yield place
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def driver_of(head: Head) -> list[int]:
    """The processes below the head that run `tatok tokenize`."""
    parents, drivers = {}, []
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            stat, command = (entry / "stat").read_text(), (entry / "cmdline").read_bytes().split(b"\0")
        except OSError:
            continue
        parents[int(entry.name)] = int(stat.rpartition(")")[2].split()[1])
        if b"jobs.cli" in command and b"tokenize" in command:
            drivers.append(int(entry.name))

    def is_below(pid: int) -> bool:
        while pid > 1:
            if pid == head.pid:
                return True
            pid = parents.get(pid, 0)
        return False

    return [pid for pid in drivers if is_below(pid)]


@pytest.mark.timeout(900)  # half a minute where the machine is free
def test_a_driver_killed_in_the_middle_then_the_same_command_again(place: Place) -> None:
    first = place.start("submit", place.job, "--address", place.head.address, "--dependencies", "installed")
    deadline = time.monotonic() + 300
    while place.num_parts() < 2:
        assert first.poll() is None, first.communicate()[0]
        assert time.monotonic() < deadline, "no part was committed"
        time.sleep(0.02)
    for pid in driver_of(place.head):
        os.kill(pid, signal.SIGKILL)
    printed, _ = first.communicate(timeout=300)
    assert first.returncode == 128 + signal.SIGKILL, printed
    assert "submit the same job again" in printed
    committed = place.num_parts()
    assert 2 <= committed < NUM_SHARDS
    assert not place.fs.exists("photos-out/tokens/_SUCCESS")

    again = place.tatok("submit", place.job, "--address", place.head.address, "--dependencies", "installed")
    assert again[0] == 0, again[1]
    assert f" of {NUM_SHARDS} shards are committed already" in again[1]
    assert f"{NUM_SHARDS} parts, {NUM_SHARDS * PHOTOS_A_SHARD} images" in again[1]

    verified = place.tatok("verify", place.output, "--source", place.source, "--job", place.job)
    assert verified[0] == 0, verified[1]
    assert f"the source: {NUM_SHARDS * PHOTOS_A_SHARD} samples" in verified[1]

    listed = place.tatok("jobs", "list", "--address", place.head.address)[1]
    assert ("SUCCEEDED" in listed, "FAILED" in listed) == (True, True), listed
    for text in (printed, again[1], verified[1], listed):
        assert SECRET not in text


def test_no_secret_in_anything_that_was_written(place: Place) -> None:
    """Runs after the test above, whose jobs left everything that a job leaves."""
    assert SECRET in str(place.store.options), "the planted one is in use"
    script = (
        "import sys; from ray.job_submission import JobSubmissionClient as C; c = C(sys.argv[1])\n"
        "for job in c.list_jobs(): print(job.json(), c.get_job_logs(job.submission_id) if job.submission_id else '')"
    )
    metadata = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", script, place.head.address],
        env=place.environment,
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    assert "tatok.output" in metadata
    assert SECRET not in metadata
    objects = place.fs.find("photos-out")
    assert any(name.endswith("run.json") for name in objects)
    for name in objects:
        assert SECRET.encode() not in place.fs.cat_file(name), name
    written = [path for path in (place.head.folder / "ray").rglob("*") if path.is_file() and not path.is_symlink()]
    assert any(path.name == "job.yaml" for path in written), "the package that travelled is among the files"
    assert any("job-driver" in path.name for path in written), "and so are the logs"
    assert [str(path) for path in written if SECRET.encode() in path.read_bytes()] == []
    assert SECRET.encode() not in (place.head.folder / "head.log").read_bytes()


def test_detach_status_logs_stop(place: Place) -> None:
    at = ("--address", place.head.address)
    code, printed = place.tatok("submit", place.job, *at, "--detach", "--dependencies", "installed")
    assert code == 0, printed
    job_id = printed.split()[-1]
    code, printed = place.tatok("jobs", "stop", job_id, *at)
    assert code == 0, printed
    assert printed.strip() in ("stopped", "the job was over already")
    code, printed = place.tatok("jobs", "status", job_id, *at)
    assert code == 0
    assert f"output: {place.output}" in printed
    code, printed = place.tatok("jobs", "logs", "no-such-job", *at)
    assert (code, "knows no job 'no-such-job'" in printed) == (1, True), printed


def test_a_wrong_token_and_an_absent_head_are_told_apart(place: Place, tmp_path: Path) -> None:
    wrong = tmp_path / "token"
    wrong.write_text("0" * 64)
    stranger = Place(
        head=Head(
            address=place.head.address,
            environment=place.head.environment | {"RAY_AUTH_TOKEN_PATH": str(wrong)},
            folder=tmp_path,
            pid=0,
        ),
        store=place.store,
        job=place.job,
        source=place.source,
        output=place.output,
    )
    code, printed = stranger.tatok("jobs", "list", "--address", place.head.address)
    assert (code, "does not let us in" in printed) == (1, True), printed
    code, printed = stranger.tatok("jobs", "list", "--address", "http://127.0.0.1:9")
    assert (code, "does not answer" in printed) == (1, True), printed


def test_pack_takes_what_is_needed_and_nothing_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    (tmp_path / "here" / ".env").write_text(SECRET)
    tiny_checkpoint(tmp_path / "tiny")
    folder = tmp_path / "package"
    folder.mkdir()
    packed = pack(JobConfig(source="s3://a/b.tar", output="s3://c", checkpoint=str(tmp_path / "tiny")), folder)
    assert packed.checkpoint == "checkpoint"
    assert {path.name for path in folder.iterdir()} == {
        "checkpoint",
        "job.yaml",
        "jobs",
        "pipeline",
        "schemas",
        "tatok",
    }
    assert JobConfig.model_validate(yaml.safe_load((folder / "job.yaml").read_text())) == packed
    assert sum(path.stat().st_size for path in folder.rglob("*")) < 4 << 20, "the default checkpoint stays here"


@pytest.mark.parametrize("name", ["source", "output"])
def test_relative_paths_stay_here(name: str) -> None:
    paths = {"source": "s3://a/b.tar", "output": "s3://c"} | {name: "data/x"}
    with pytest.raises(ConfigError, match=f"{name} 'data/x' is relative"):
        for_the_cluster(JobConfig.model_validate(paths), packs_checkpoint=True)


def test_a_credential_of_this_shell_cannot_travel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MY_SECRET", SECRET)
    with pytest.raises(ConfigError, match="MY_SECRET") as caught:
        pack(JobConfig(source=f"s3://a/{SECRET}.tar", output="s3://c"), tmp_path)
    assert SECRET not in str(caught.value)
    refuse_credentials("nothing here", os.environ)


def test_requirements_are_pinned_and_go_with_the_schemes() -> None:
    plain, s3 = pinned_requirements(["/data/a.tar"]), pinned_requirements(["s3://a/b.tar"])
    assert all("==" in line and "+" not in line for line in s3)
    names = {line.partition("==")[0] for line in s3}
    assert {"torch", "pyarrow", "s3fs", "aiobotocore"} <= names
    assert not names & {"ray", "tatok", "moto", "pytest"}
    assert "s3fs" not in {line.partition("==")[0] for line in plain}


def test_submit_needs_a_job_that_validates(tmp_path: Path) -> None:
    job = tmp_path / "job.yaml"
    job.write_text("source: s3://a/b.tar\noutput: s3://c\nresources: {bath_size: 1}\n")
    result = CliRunner().invoke(app, ["config", "show", str(job)])
    assert result.exit_code == 1
    assert "line 3: resources.bath_size: no such setting; did you mean resources.batch_size?" in result.output
