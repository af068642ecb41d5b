"""What the job's processes report to the driver."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import ray

from tatok.pipeline.cluster.leases import Attempt
from tatok.pipeline.monitoring.events import Throughput

__all__ = ["Heartbeat", "Pulse", "Ready", "this_node"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Heartbeat:
    """How far an attempt has come; one that comes no further for too long has lost its lease."""

    num_chunks: int
    counts: Throughput


@dataclass(frozen=True, slots=True, kw_only=True)
class Pulse:
    """What a tokenizer reports when it is asked: its attempts, and where its seconds since it was ready went.

    `overdue` are attempts that it decodes itself and of which nothing has been decoded for too long. `broken` is what
    its device said when it ceased to work; the process is then to be replaced.
    """

    heartbeats: Mapping[Attempt, Heartbeat]
    overdue: frozenset[Attempt] = frozenset()
    encode_s: float = 0.0
    wait_s: float = 0.0
    ready_s: float = 0.0
    broken: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Ready:
    """What an actor reports once it can work: its node, and a tokenizer's spec (or Failure) or a decoder's identity."""

    node: str
    told: Any


def this_node() -> str:
    """Where this process runs, by Ray's name."""
    return str(ray.get_runtime_context().get_node_id())
