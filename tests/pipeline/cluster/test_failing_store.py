"""Stores that throttle, hang, drop, cut and refuse, and a full disk: afterwards every sample stands there once."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path

import fsspec
import pytest

from tatok.pipeline.monitoring.progress import Event, ShardRetried
from tatok.pipeline.verify.dataset import verify_output
from tatok.schemas.errors import CommitError
from tatok.schemas.job import JobConfig
from tests.support.photos import photo_members, tar_bytes
from tests.support.runs import job, run
from tests.support.services.faulty_s3 import Fault, FaultyS3

pytestmark = [pytest.mark.usefixtures("local_ray"), pytest.mark.timeout(600)]


def bucket_job(bucket: str, name: str, num_shards: int, **sections: object) -> JobConfig:
    fs = fsspec.filesystem("s3")
    for number in range(num_shards):
        members = photo_members(40 * number, 40)
        fs.pipe_file(f"{bucket}/{name}/source/photos-{number}.tar", tar_bytes(members))
    source = f"s3://{bucket}/{name}/source/photos-{{0..{num_shards - 1}}}.tar"
    config = job(source, Path("to be replaced"), resources={"num_decoders": 2}, **sections)
    return config.model_copy(update={"output": f"s3://{bucket}/{name}/tokens"})


def check_whole(config: JobConfig, num_rows: int) -> None:
    """Every sample of the source is a row exactly once, and nothing else is."""
    verification = verify_output(config.output, config.source)
    assert verification.findings == ()
    assert (verification.num_rows, verification.num_rejects, verification.num_samples) == (num_rows, 0, num_rows)


def test_trouble_that_passes(s3_bucket: str, failing_s3: FaultyS3) -> None:
    config = bucket_job(s3_bucket, "passing", num_shards=5)
    faults = (
        Fault(kind="slow_down", method="GET", path="passing/source/photos-0", times=2),
        Fault(kind="drop", method="GET", path="passing/source/photos-1", times=1),
        Fault(kind="truncate", method="GET", path="passing/source/photos-2", times=1),
        Fault(kind="hang", method="GET", path="passing/source/photos-3", times=1),
        Fault(kind="lose_answer", method="PUT", path="passing/tokens/data", times=2),
        Fault(kind="slow_down", method="PUT", path="passing/tokens/data", times=2),
        Fault(kind="drop", method="PUT", path="passing/tokens/_rejects", times=1),
        Fault(kind="slow_down", method="PUT", path="passing/tokens/_manifest", times=1),
    )
    failing_s3.set(*faults)
    summary = run(config)
    assert failing_s3.num_served == {fault: fault.times for fault in faults}
    assert (summary.status, summary.num_rows, summary.num_parts) == ("complete", 200, 5)
    check_whole(config, 200)


@pytest.mark.long  # test_faults.py has a file that is cut on its way and read again
@pytest.mark.parametrize("kind", ["slow_down", "drop"])
def test_trouble_that_outlasts_the_client(s3_bucket: str, failing_s3: FaultyS3, kind: str) -> None:
    config = bucket_job(s3_bucket, kind, num_shards=2)
    fault = Fault(kind=kind, method="GET", path=f"{kind}/source/photos-1", times=14)  # type: ignore[arg-type]
    failing_s3.set(fault)
    events: list[Event] = []
    summary = run(config, events)
    assert failing_s3.num_served == {fault: 14}
    retried = [event for event in events if isinstance(event, ShardRetried)]
    assert retried
    assert all("photos-1.tar" in event.reason for event in retried)
    assert summary.status == "complete"
    check_whole(config, 80)


def test_what_is_forbidden_is_not_tried_again(s3_bucket: str, failing_s3: FaultyS3) -> None:
    config = bucket_job(s3_bucket, "forbidden", num_shards=3)
    fault = Fault(kind="forbid", method="GET", path="forbidden/source/photos-1", times=1000)
    failing_s3.set(fault)
    events: list[Event] = []
    summary = run(config, events)
    assert (summary.status, summary.num_rows) == ("shards_failed", 80)
    assert [shard.uri.rpartition("/")[2] for shard in summary.failed] == ["photos-1.tar"]
    assert not any(isinstance(event, ShardRetried) for event in events)
    failing_s3.set()
    assert run(config).status == "complete"
    check_whole(config, 120)


@pytest.mark.long
def test_an_output_that_cannot_be_written_for_long(s3_bucket: str, failing_s3: FaultyS3) -> None:
    config = bucket_job(s3_bucket, "unwritable", num_shards=1)
    failing_s3.set(Fault(kind="slow_down", method="PUT", path="unwritable/tokens/data", times=1000))
    summary = run(config)
    assert (summary.status, summary.num_rows) == ("shards_failed", 0)
    (failure,) = summary.failed.values()
    assert failure.kind == "commit"
    failing_s3.set()
    assert run(config).status == "complete"
    check_whole(config, 40)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of a few hundred kilobytes."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=400k", "tmpfs", folder], capture_output=True)
    if mounted.returncode:
        pytest.skip("needs the right to mount a small disk")
    yield folder
    subprocess.run(["umount", "--lazy", folder], check=True)


def test_a_full_disk(small_disk: Path, tmp_path: Path) -> None:
    (tmp_path / "source").mkdir()
    for number in range(3):
        (tmp_path / "source" / f"photos-{number}.tar").write_bytes(tar_bytes(photo_members(40 * number, 40)))
    config = job(str(tmp_path / "source"), small_disk / "tokens")
    filler = small_disk / "filler"
    filler.write_bytes(bytes(340_000))
    messages = []
    try:
        messages = [failure.message for failure in run(config).failed.values()]
    except CommitError as error:  # where not even the manifest has room
        messages = [str(error)]
    assert messages
    assert all("No space left" in message for message in messages)
    assert not (small_disk / "tokens" / "_SUCCESS").exists()
    filler.unlink()
    assert run(config).status == "complete"
    check_whole(config, 120)
