"""An S3 server on this machine for as long as the bench needs it: SeaweedFS, a process of its own."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import s3fs

__all__ = ["BUCKET", "s3_server", "upload"]

BUCKET = "tokens"
SECONDS_TO_START = 60
_GRPC_OFFSET = 10_000  # each of its services takes a second port


@contextmanager
def s3_server(folder: Path) -> Iterator[str]:
    """Run `weed server` with its data in a folder; yields the endpoint's URL.

    Its keys are in the environment as long, for every client. Raises RuntimeError, with its log, where it does not
    start.
    """
    weed = shutil.which("weed", path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}")
    if weed is None:
        raise RuntimeError("no `weed`: install benchmarks/requirements-loader.txt, or leave S3 out with --no-s3")
    folder.mkdir(parents=True, exist_ok=True)
    master, volume, filer, s3 = _free_ports(4)
    endpoint = f"http://127.0.0.1:{s3}"
    keys = {
        "AWS_ACCESS_KEY_ID": "bench",
        "AWS_SECRET_ACCESS_KEY": "bench-secret",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_ENDPOINT_URL": endpoint,
        "S3_ENDPOINT_URL": endpoint,  # MosaicML Streaming's name for it
    }
    command = [
        weed,
        "server",
        "-s3",
        "-ip=127.0.0.1",
        "-ip.bind=127.0.0.1",
        f"-dir={folder}",
        "-master.telemetry=false",
    ]
    command += [f"-master.port={master}", f"-volume.port={volume}", f"-filer.port={filer}", f"-s3.port={s3}"]
    command += ["-s3.port.iceberg=0", "-s3.port.lance=0", "-master.telemetry=false"]
    before = {name: os.environ.get(name) for name in keys}
    log = folder / "weed.log"
    with ExitStack() as stack:
        os.environ.update(keys)
        stack.callback(_restore, before)
        process = subprocess.Popen(command, stdout=stack.enter_context(log.open("wb")), stderr=subprocess.STDOUT)
        stack.callback(_stop, process)
        _wait(process, endpoint, log)
        s3fs.S3FileSystem(endpoint_url=endpoint).mkdir(BUCKET)
        yield endpoint


def upload(folder: Path, endpoint: str, bucket: str = BUCKET) -> str:
    """Put a folder into a bucket; returns its URL."""
    url = f"s3://{bucket}/{folder.name}"
    s3fs.S3FileSystem(endpoint_url=endpoint).put(f"{folder}/", url, recursive=True)
    return url


def _wait(process: subprocess.Popen[bytes], endpoint: str, log: Path) -> None:
    deadline = time.monotonic() + SECONDS_TO_START
    while time.monotonic() < deadline and process.poll() is None:
        try:
            urllib.request.urlopen(endpoint, timeout=1)
        except urllib.error.HTTPError:
            return  # it answers that we may not list: it is there
        except OSError:
            time.sleep(0.2)
        else:
            return
    raise RuntimeError(f"the S3 server did not start: {log.read_text(errors='replace')[-2000:]}")


def _stop(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    try:
        process.wait(20)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def _restore(before: dict[str, str | None]) -> None:
    for name, value in before.items():
        if value is None:
            os.environ.pop(name, None)
        else:
            os.environ[name] = value


def _free_ports(count: int) -> list[int]:
    """Ports that are free, with the port 10,000 above."""
    found: list[int] = []
    with ExitStack() as stack:
        while len(found) < count:
            probe = stack.enter_context(socket.socket())
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1] % 30_000 + 20_000
            try:
                for number in (port, port + _GRPC_OFFSET):
                    stack.enter_context(socket.socket()).bind(("127.0.0.1", number))
            except OSError:
                continue
            found.append(port)
    return found
