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

import grpc
import ray
from ray.exceptions import GetTimeoutError, RayError, RayTaskError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

import tatok
from tatok.pipeline.storage.background import Unanswered, within
from tatok.schemas.errors import ConfigError, TatokError
from tatok.stopping import handlers_kept

__all__ = [
    "ClusterSize",
    "ClusterView",
    "cluster_size",
    "connected",
    "on_a_gpu",
    "refuse_another_tatok",
    "require_head",
    "versions",
    "view_cluster",
]

_PACKAGES = ("tatok", "ray", "torch", "pyarrow", "pillow", "numpy", "fsspec", "webdataset", "safetensors")
_CONNECT_S = 5.0
_ANSWER_S = 10.0
_REFUSALS = (grpc.StatusCode.UNAUTHENTICATED, grpc.StatusCode.PERMISSION_DENIED)
_HEAD_REMEDY = (
    "check RAY_ADDRESS and that the head runs; with token authentication also RAY_AUTH_MODE and RAY_AUTH_TOKEN_PATH"
)


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
    require_head(address)
    was_initialized = ray.is_initialized()
    try:
        if not was_initialized:
            with handlers_kept():
                ray.init(address=address, logging_level=logging.ERROR, log_to_driver=False)
    except (RayError, OSError, RuntimeError, ValueError) as error:
        said = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise TatokError(f"the Ray at {address} does not take us: {said}", remedy=_HEAD_REMEDY) from error
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
    """The result of `work`, done in a process that has one of the cluster's GPUs.

    Raises TatokError if there is none, or the process dies; whatever `work` raises.
    """
    try:
        return ray.get(ray.remote(num_gpus=1)(work).remote(), timeout=timeout_s)
    except GetTimeoutError as error:
        raise TatokError(f"no GPU of the cluster was free for {timeout_s:g} s") from error
    except RayTaskError:
        raise
    except RayError as error:
        raise TatokError(f"the process on a GPU died: {str(error).strip()}") from error


def _answer(reference: Any) -> dict[str, str] | None:
    try:
        return dict(ray.get(reference, timeout=0.1))
    except (RayError, GetTimeoutError):
        return None


def require_head(address: str) -> None:
    """Raise TatokError, within seconds, if no Ray answers at the address; "auto" and "local" are Ray's to find.

    Ray itself would try for minutes, in silence.
    """
    if address in ("auto", "local"):
        return
    target = address.rpartition("://")[2]
    host, _, port = target.rpartition(":")
    if not host or not port.isdigit():
        raise ConfigError(f"the address of Ray's head, {address!r}, names no port", remedy="write it as HOST:6379")
    try:
        # A name may take longer to be looked up than a connection may.
        within(_ANSWER_S, lambda: socket.create_connection((host.strip("[]"), int(port)), _CONNECT_S).close())
        if os.environ.get("RAY_USE_TLS", "0") == "0":
            _require_grpc(target, is_client_server=address.startswith("ray://"))
    except (OSError, Unanswered, grpc.FutureTimeoutError, grpc.RpcError) as error:
        said = error.details() if isinstance(error, grpc.Call) else str(error) or f"no answer within {_ANSWER_S:g} s"
        raise TatokError(
            f"nothing answers at {address}, where Ray's head should be: {said}", remedy=_HEAD_REMEDY
        ) from error


def _require_grpc(target: str, *, is_client_server: bool) -> None:
    """Raise an error of gRPC's if what listens there is silent, or something else than a Ray."""
    with grpc.insecure_channel(target) as channel:
        if is_client_server:  # which knows nothing of health
            grpc.channel_ready_future(channel).result(timeout=_ANSWER_S)
            return
        try:
            channel.unary_unary("/grpc.health.v1.Health/Check")(b"", timeout=_ANSWER_S)
        except grpc.RpcError as error:
            if error.code() not in _REFUSALS:  # which ray.init words better
                raise
