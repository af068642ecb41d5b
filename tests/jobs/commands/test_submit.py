"""Jobs through a Ray head with authentication, from bucket to bucket on SeaweedFS, all by the command line."""

from __future__ import annotations

import functools
import io
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from fsspec.spec import AbstractFileSystem
from typer.testing import CliRunner

from tatok.jobs.cli import app
from tests.support.photos import photo_members, tar_bytes
from tests.support.places import ROOT
from tests.support.runs import write_gated_filters
from tests.support.services.planted_secret import holds
from tests.support.services.real_services import Head, Store, ray_head, seaweedfs
from tests.support.tiny_checkpoint import tiny_checkpoint
from tests.support.tokenizers import own

SECRET = "planted-a8f5f167f44f4964e6c998dee827110c"
NUM_SHARDS, PHOTOS_A_SHARD = 24, 4
LAST = f"-{NUM_SHARDS - 1:03}.tar"


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

    def start(self, *arguments: object, cwd: Path = ROOT) -> subprocess.Popen[str]:
        command = [sys.executable, "-m", "tatok.jobs.cli", *map(str, arguments)]
        environment = self.environment | {"PYTHONPATH": str(ROOT)}
        return subprocess.Popen(
            command, cwd=cwd, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
        )

    def tatok(self, *arguments: object, cwd: Path = ROOT) -> tuple[int, str]:
        process = self.start(*arguments, cwd=cwd)
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
        if b"tatok.jobs.cli" in command and b"tokenize" in command:
            drivers.append(int(entry.name))

    def is_below(pid: int) -> bool:
        while pid > 1:
            if pid == head.pid:
                return True
            pid = parents.get(pid, 0)
        return False

    return [pid for pid in drivers if is_below(pid)]


@pytest.mark.timeout(900)  # half a minute where the machine is free
def test_a_driver_killed_in_the_middle_then_the_same_command_again(place: Place, tmp_path: Path) -> None:
    gate = write_gated_filters(tmp_path, LAST)
    at = ("--address", place.head.address)
    submit = ("submit", place.job, *at, "--dependencies", "installed", "--set", "filter=my_filters:everything")
    first = place.start(*submit, cwd=tmp_path)
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

    gate.touch()
    again = place.tatok(*submit, cwd=tmp_path)
    assert again[0] == 0, again[1]
    assert f" of {NUM_SHARDS} shards are committed already" in again[1]
    assert f"{NUM_SHARDS} parts, {NUM_SHARDS * PHOTOS_A_SHARD} images" in again[1]

    verified = place.tatok("verify", place.output, "--source", place.source, "--job", place.job)
    assert verified[0] == 0, verified[1]
    assert f"the source: {NUM_SHARDS * PHOTOS_A_SHARD} samples" in verified[1]

    listed = place.tatok("jobs", "list", *at)[1]
    assert ("SUCCEEDED" in listed, "FAILED" in listed) == (True, True), listed
    for text in (printed, again[1], verified[1], listed):
        assert SECRET not in text


def parquet(column: pa.Array, *, metadata: dict[str, str] | None = None) -> bytes:
    """As parts are written: compressed, so that no value stands there as it is."""
    table = pa.table({"a": column}).replace_schema_metadata(metadata)
    sink = io.BytesIO()
    pq.write_table(table, sink, compression="zstd", write_statistics=False, use_dictionary=False)
    return sink.getvalue()


def test_a_secret_would_be_found() -> None:
    noise = [str(number) * 40 for number in range(200)]
    struct = pa.array([{"b": [text.encode()]} for text in (*noise, f"x{SECRET}y")])
    hidden = parquet(struct)
    assert SECRET.encode() not in hidden, "compression hides it"
    assert holds("data/a.parquet", hidden, SECRET)
    assert holds("data/a.parquet", parquet(pa.array([*noise, SECRET])), SECRET)
    assert holds("data/a.parquet", parquet(pa.array(noise), metadata={"tatok": f"{{{SECRET}}}"}), SECRET)
    assert not holds("data/a.parquet", parquet(pa.array(noise), metadata={"tatok": "{}"}), SECRET)
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as package:
        package.writestr("part.parquet", hidden)
    assert holds("package.zip", archive.getvalue(), SECRET)


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
    assert any(name.endswith("_run.json") for name in objects)
    assert any(name.endswith(".parquet") for name in objects)
    assert [name for name in objects if holds(name, place.fs.cat_file(name), SECRET)] == []
    written = [path for path in (place.head.folder / "ray").rglob("*") if path.is_file() and not path.is_symlink()]
    assert any(path.name == "job.yaml" for path in written), "the package that travelled is among the files"
    assert any("job-driver" in path.name for path in written), "and so are the logs"
    assert [str(path) for path in written if holds(path.name, path.read_bytes(), SECRET)] == []
    assert SECRET.encode() not in (place.head.folder / "head.log").read_bytes()


@pytest.mark.long  # test_package.py says what travels, test_own_tokenizer.py tokenizes without a head
def test_a_tokenizer_of_the_users_folder_travels(place: Place, tmp_path: Path) -> None:
    text = Path(own.__file__).read_text(encoding="utf-8")
    (tmp_path / "mine.py").write_text(text)
    settings = ("output=s3://photos-out/own", "checkpoint=null", "tokenizer=mine.py:load")
    options = [word for setting in settings for word in ("--set", setting)]
    arguments = ("submit", place.job, "--address", place.head.address, *options, "--dependencies", "installed")
    submitted = place.start(*arguments, cwd=tmp_path)
    printed, _ = submitted.communicate(timeout=300)
    assert submitted.returncode == 0, printed
    parts = place.fs.glob("photos-out/own/data/*.parquet")
    assert len(parts) == NUM_SHARDS
    rows = pq.read_table(io.BytesIO(place.fs.cat_file(parts[0])))
    assert set(rows["num_tokens"].to_pylist()) == {16}
    assert rows["entropy_bits"].null_count == PHOTOS_A_SHARD
    run = json.loads(place.fs.cat_file("photos-out/own/_run.json"))
    assert run["config"]["tokenizer"] == "mine.py:load"
    assert run["fingerprint"]["tokenizer.code"].startswith("mine.py:load (")


def test_a_running_job_is_detached_from_and_stopped(place: Place, tmp_path: Path) -> None:
    """With a filter of the user's folder, which the driver and the workers must find where they run."""
    write_gated_filters(tmp_path, LAST)
    at, log = ("--address", place.head.address), place.head.folder / "_run.jsonl"
    settings = (
        "output=s3://photos-out/stopped",
        "filter=my_filters:odd",
        "resources.decode_timeout_s=900",  # the last shard is not to be given up
    )
    options = [word for setting in settings for word in ("--set", setting)]
    arguments = ("submit", place.job, *at, *options, "--log", log, "--detach", "--dependencies", "installed")
    submitted = place.start(*arguments, cwd=tmp_path)
    printed, _ = submitted.communicate(timeout=300)
    assert submitted.returncode == 0, printed
    job_id = printed.split()[-1]

    deadline = time.monotonic() + 300
    while not (parts := place.fs.glob("photos-out/stopped/data/*.parquet")):
        assert time.monotonic() < deadline, place.tatok("jobs", "logs", job_id, *at)[1]
        time.sleep(0.05)
    rows = pq.read_table(io.BytesIO(place.fs.cat_file(parts[0])))
    assert {int(label) % 2 for label in rows["label"].to_pylist()} == {1}, "the filter was asked"
    code, printed = place.tatok("jobs", "status", job_id, *at)
    assert (code, printed.splitlines()[0]) == (0, f"{job_id}: RUNNING")
    assert "output: s3://photos-out/stopped" in printed

    code, printed = place.tatok("jobs", "stop", job_id, *at)
    assert (code, printed.strip()) == (0, "stopped")
    while "RUNNING" in (printed := place.tatok("jobs", "status", job_id, *at)[1]).splitlines()[0]:
        assert time.monotonic() < deadline, printed
    assert printed.startswith(f"{job_id}: STOPPED"), printed
    assert 1 <= len(place.fs.glob("photos-out/stopped/data/*.parquet")) < NUM_SHARDS
    assert not place.fs.exists("photos-out/stopped/_SUCCESS")
    events = [json.loads(line)["event"] for line in log.read_text().splitlines()]
    assert events[0] == "planned"
    assert "committed" in events


@pytest.mark.long
def test_a_doctor_on_the_cluster_passes_its_findings_on(place: Place) -> None:
    missing = ("--set", "source=s3://photos-in/none-{0..3}.tar", "--samples", "1")
    code, printed = place.tatok("doctor", place.job, "--address", place.head.address, *missing)
    assert (code, "FAILED   source" in printed) == (3, True), printed
    assert "committed parts" not in printed


def test_a_job_that_is_not_there(place: Place) -> None:
    code, printed = place.tatok("jobs", "logs", "no-such-job", "--address", place.head.address)
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


def test_submit_needs_a_job_that_validates(tmp_path: Path) -> None:
    job = tmp_path / "job.yaml"
    job.write_text("source: s3://a/b.tar\noutput: s3://c\nresources: {bath_size: 1}\n")
    result = CliRunner().invoke(app, ["config", "show", str(job)])
    assert result.exit_code == 1
    assert "line 3: resources.bath_size: no such setting; did you mean resources.batch_size?" in result.output
