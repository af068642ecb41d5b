"""Calls: what the scheduler asks of the cluster; Ray answers them, or a simulation."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Protocol

from pipeline.leases import Attempt
from pipeline.sizes import Sizes

__all__ = ["Calls"]


class Calls(Protocol):
    """What the loop asks of the cluster. References are whatever hashes; `result` raises Ray's exceptions."""

    def now(self) -> float:
        """Seconds on a clock that never goes back."""

    def start_tokenizer(self, sizes: Sizes) -> Any:
        """A new tokenizer actor, which may still wait for a place."""

    def start_decoder(self, sizes: Sizes) -> Any:
        """A new decoder actor."""

    def ready(self, actor: Any) -> Any:
        """Reference to what the actor tells once it can work, a `Ready`."""

    def run_shard(self, tokenizer: Any, attempt: Attempt, decoder: Any, fingerprint: Mapping[str, str]) -> Any:
        """Reference to the attempt's ShardReport or Failure."""

    def pulse(self, tokenizer: Any) -> Any:
        """Reference to the tokenizer's Pulse."""

    def wait(self, references: Iterable[Any], *, timeout_s: float) -> Sequence[Any]:
        """Those that can be settled now, once there is one or the time is over."""

    def result(self, reference: Any) -> Any:
        """What a settled reference holds."""

    def interrupt(self, actor: Any) -> None:
        """End the actor's process; its references fail."""

    def kill(self, actor: Any) -> None:
        """End the actor for good."""

    def resources(self) -> Mapping[str, float]:
        """What the cluster has now, by Ray's names: CPU, GPU."""
