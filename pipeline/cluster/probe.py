"""What a Ray cluster has, asked without starting a job: nodes, CPUs, GPUs, and each node's versions."""

from __future__ import annotations

import logging
import os
import platform
import socket
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # before Ray is imported

import ray
from ray.exceptions import GetTimeoutError, RayError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

import tatok
from tatok.schemas.errors import ConfigError, TatokError

__all__ = [
    "ClusterSize",
    "ClusterView",
    "cluster_size",
    "connected",
    "on_a_gpu",
    "refuse_another_tatok",
    "versions",
    "view_cluster",
]

_PACKAGES = ("tatok", "ray", "torch", "pyarrow", "pillow", "numpy", "fsspec", "webdataset", "safetensors")
_CONNECT_S = 5.0


@dataclass(frozen=True, slots=True, kw_only=True)
class ClusterSize:
    """What a Ray has now, all nodes together."""

    num_nodes: int
    num_cpus: float
    num_gpus: float


def cluster_size() -> ClusterSize:
    """Of the connected Ray."""
    total = ray.cluster_resources()
    return ClusterSize(
        num_nodes=sum(bool(node["Alive"]) for node in ray.nodes()),
        num_cpus=total.get("CPU", 0.0),
        num_gpus=total.get("GPU", 0.0),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class ClusterView:
    """Totals over the nodes, and the versions of each node by its address; None where a node did not answer in time."""

    num_cpus: float
    num_gpus: float
    versions: Mapping[str, Mapping[str, str] | None]


def versions() -> dict[str, str]:
    """Of this process: Python's and those of the packages on which tokens or the protocol between processes depend."""
    found = {"python": platform.python_version()}
    for name in _PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            found[name] = "from the working directory" if name == "tatok" else "not installed"
    return found


def refuse_another_tatok(folder: Path) -> None:
    """Raise ConfigError if Ray's workers, which look into this current folder first, would import another tatok there.

    A checkout is such a folder for a tatok that is installed: its tatok/ is a part of the package only.
    """
    found = folder / "tatok" / "__init__.py"
    if found.exists() and not found.samefile(tatok.__file__):
        raise ConfigError(
            f"the current folder holds another tatok, {found.parent}, which Ray's workers would import instead of "
            f"{Path(tatok.__file__).parent}; change into another folder"
        )


@contextmanager
def connected(address: str) -> Iterator[None]:
    """Use the Ray at `address` for the time of the block.

    Raises TatokError, quickly, where nothing listens there or we are not let in, and as `refuse_another_tatok`.
    """
    refuse_another_tatok(Path.cwd())
    _require_listener(address)
    was_initialized = ray.is_initialized()
    try:
        if not was_initialized:
            ray.init(address=address, logging_level=logging.ERROR, log_to_driver=False)
    except (RayError, OSError, RuntimeError, ValueError) as error:
        said = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise TatokError(f"the Ray at {address} does not take us: {said}") from error
    try:
        yield
    finally:
        if not was_initialized:
            ray.shutdown()


def view_cluster(*, timeout_s: float = 20.0) -> ClusterView:
    """Ask every node of the connected Ray for its versions."""
    ask = ray.remote(num_cpus=0)(versions)
    alive = [node for node in ray.nodes() if node["Alive"]]
    asked = {
        str(node["NodeManagerAddress"]): ask.options(
            scheduling_strategy=NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
        ).remote()
        for node in alive
    }
    ray.wait(list(asked.values()), num_returns=len(asked), timeout=timeout_s)
    total = ray.cluster_resources()
    return ClusterView(
        num_cpus=total.get("CPU", 0.0),
        num_gpus=total.get("GPU", 0.0),
        versions={address: _answer(reference) for address, reference in asked.items()},
    )


def on_a_gpu(work: Callable[[], Any], *, timeout_s: float) -> Any:
    """The result of `work`, done in a process that has one of the cluster's GPUs. Raises TatokError."""
    try:
        return ray.get(ray.remote(num_gpus=1)(work).remote(), timeout=timeout_s)
    except GetTimeoutError as error:
        raise TatokError(f"no GPU of the cluster was free for {timeout_s:g} s") from error


def _answer(reference: Any) -> dict[str, str] | None:
    try:
        return dict(ray.get(reference, timeout=0.1))
    except (RayError, GetTimeoutError):
        return None


def _require_listener(address: str) -> None:
    host, _, port = address.rpartition("://")[2].rpartition(":")
    if address in ("auto", "local") or not port.isdigit():
        return
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=_CONNECT_S).close()
    except OSError as error:
        raise TatokError(f"nothing answers at {address}, where Ray's head should be: {error}") from error
