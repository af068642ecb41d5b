"""Real servers as child processes: SeaweedFS as an S3 store, Azurite as Azure's, and a Ray head with a token."""

from __future__ import annotations

import base64
import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
import uuid
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

BIN = Path(sys.executable).parent
AZURITE = BIN.parent / "azurite" / "node_modules" / ".bin" / "azurite-blob"
"""From npm, by `make azurite`."""


@dataclass(frozen=True, kw_only=True)
class Store:
    """An S3 server that knows one key."""

    endpoint_url: str
    key: str
    secret: str

    @property
    def options(self) -> dict[str, str]:
        """For fsspec, with the credentials themselves."""
        return {"endpoint_url": self.endpoint_url, "key": self.key, "secret": self.secret}


@dataclass(frozen=True, kw_only=True)
class Head:
    """A Ray head; `environment` lets a client in."""

    address: str
    environment: dict[str, str]
    folder: Path
    pid: int


def free_ports(count: int) -> list[int]:
    with ExitStack() as stack:
        probes = [stack.enter_context(socket.socket()) for _ in range(count)]
        for probe in probes:
            probe.bind(("127.0.0.1", 0))
        return [probe.getsockname()[1] for probe in probes]


@contextmanager
def seaweedfs(folder: Path, *, secret: str) -> Iterator[Store]:
    """SeaweedFS with its S3 gateway; data and log go to `folder`. The key "reader-key" may read, and nothing else."""
    master, master_grpc, volume, volume_grpc, filer, filer_grpc, s3, s3_grpc, iceberg, lance = free_ports(10)
    (folder / "data").mkdir(parents=True)
    credentials = {"accessKey": "photos-key", "secretKey": secret}
    actions = ["Admin", "Read", "Write", "List", "Tagging"]
    identity = {"name": "tests", "credentials": [credentials], "actions": actions}
    reading = {"accessKey": "reader-key", "secretKey": secret}
    reader = {"name": "reader", "credentials": [reading], "actions": ["Read", "List"]}
    (folder / "s3.json").write_text(json.dumps({"identities": [identity, reader]}))
    command = [BIN / "weed", "server", "-ip=127.0.0.1", f"-dir={folder / 'data'}", "-volume.max=0", "-s3"]
    command += [f"-master.port={master}", f"-master.port.grpc={master_grpc}", f"-volume.port={volume}"]
    command += [f"-volume.port.grpc={volume_grpc}", f"-filer.port={filer}", f"-filer.port.grpc={filer_grpc}"]
    command += [f"-s3.port={s3}", f"-s3.port.grpc={s3_grpc}", f"-s3.config={folder / 's3.json'}"]
    command += [f"-s3.port.iceberg={iceberg}", f"-s3.port.lance={lance}"]
    command += ["-master.volumeSizeLimitMB=64", "-volume.index=memory"]
    # Asked to end, it waits for half a minute for clients that are gone; its data is thrown away anyhow.
    with _process(command, folder / "weed.log", os.environ, patience_s=0):
        url = f"http://127.0.0.1:{s3}"
        _await_answer(url, folder / "weed.log")
        yield Store(endpoint_url=url, key="photos-key", secret=secret)


@contextmanager
def azurite(folder: Path) -> Iterator[str]:
    """Azurite's blob service, whose log goes to `folder`; yields the connection string of its one account."""
    [port] = free_ports(1)
    key = base64.b64encode(os.urandom(32)).decode()
    command = [AZURITE, f"--blobPort={port}", "--inMemoryPersistence", "--skipApiVersionCheck", "--disableTelemetry"]
    log = folder / "azurite.log"
    with _process(command, log, os.environ | {"AZURITE_ACCOUNTS": f"photos:{key}"}):
        url = f"http://127.0.0.1:{port}"
        _await_answer(url, log)
        yield f"DefaultEndpointsProtocol=http;AccountName=photos;AccountKey={key};BlobEndpoint={url}/photos;"


@contextmanager
def ray_head(folder: Path, *, environment: Mapping[str, str]) -> Iterator[Head]:
    """A head with token authentication; `folder` must have a short path, for the sockets in it."""
    port, dashboard, agent, client = free_ports(4)
    folder.mkdir(parents=True, exist_ok=True)
    token = folder / "auth_token"
    token.write_text(uuid.uuid4().hex * 2)
    access = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(token), "RAY_USAGE_STATS_ENABLED": "0"}
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    inherited["PATH"] = f"{BIN}{os.pathsep}{inherited['PATH']}"  # a job's `python` is the one on the head's PATH
    command = [BIN / "ray", "start", "--head", "--block", f"--port={port}", f"--dashboard-port={dashboard}"]
    command += [f"--dashboard-agent-listen-port={agent}", f"--ray-client-server-port={client}", "--num-cpus=3"]
    command += ["--object-store-memory=100000000", "--disable-usage-stats", f"--temp-dir={folder / 'ray'}"]
    log = folder / "head.log"
    with _process(command, log, inherited | access | dict(environment)) as pid:
        address = f"http://127.0.0.1:{dashboard}"
        _await_answer(f"{address}/api/version", log)
        yield Head(address=address, environment=access, folder=folder, pid=pid)


@contextmanager
def _process(
    command: list[object], log: Path, environment: Mapping[str, str], *, patience_s: float = 30
) -> Iterator[int]:
    # A group of its own, so that all of it ends by one signal, and nothing else does.
    with log.open("wb") as lines:
        process = subprocess.Popen(
            [str(word) for word in command],
            stdout=lines,
            stderr=subprocess.STDOUT,
            env=dict(environment),
            start_new_session=True,
        )
    try:
        yield process.pid
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(timeout=patience_s)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def _await_answer(url: str, log: Path, *, timeout_s: float = 120) -> None:
    deadline = time.monotonic() + timeout_s
    while True:
        try:
            urllib.request.urlopen(url, timeout=5).close()
            return
        except urllib.error.HTTPError:
            return  # it answers, and refuses us, which is right
        except OSError:
            assert time.monotonic() < deadline, log.read_text(errors="replace")[-3000:]
            time.sleep(0.2)
