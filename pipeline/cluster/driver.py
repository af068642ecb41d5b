"""A job's shards on Ray: starts Ray where none runs, and lets the scheduler work with real actors.

driver --lease(shard, decoder)--> TokenizerWorker <--clips-- DecodeWorker
driver <-------- report --------- TokenizerWorker --> one committed part

On CPUs alone there is no DecodeWorker: tokenizers decode in place.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

# Both must be set before Ray is imported: no calls home, and no warning about GPUs that are hidden from CPU actors.
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")

import ray

from tatok.pipeline.cluster.gpu_wait import size_with_gpus
from tatok.pipeline.cluster.leases import Attempt
from tatok.pipeline.cluster.metrics import RayMetrics
from tatok.pipeline.cluster.probe import refuse_another_tatok, require_head
from tatok.pipeline.cluster.scheduler import Outcome, Scheduler
from tatok.pipeline.cluster.sizes import Sizes, count_pieces, plan_sizes
from tatok.pipeline.cluster.workers.decoder import DecodeWorker
from tatok.pipeline.cluster.workers.tokenizer import TokenizerWorker
from tatok.pipeline.monitoring.events import Event, Notice, OnEvent, ShardsPlanned
from tatok.pipeline.storage.store import OutputStore
from tatok.pipeline.tokenization.fingerprint import decoding_identity
from tatok.pipeline.tokenization.loading import LoadTokenizer
from tatok.pipeline.tokenization.spec import TokenizerSpec
from tatok.schemas.errors import TatokError
from tatok.schemas.job import JobConfig
from tatok.schemas.records import Shard, count_text
from tatok.stopping import handlers_kept

__all__ = ["Outcome", "cluster_address", "run_shards", "start_ray"]


def run_shards(
    config: JobConfig,
    store: OutputStore,
    shards: Sequence[Shard],
    *,
    load_tokenizer: LoadTokenizer,
    claim: Callable[[TokenizerSpec], dict[str, str]],
    on_event: OnEvent,
    planned: ShardsPlanned,
) -> Outcome:
    """Tokenize and commit every shard, on the Ray at RAY_ADDRESS, on the one this process uses, or on a new local one.

    `claim` is called once, here, when the tokenizers are loaded and before any shard goes out; it returns the
    fingerprint for the footers, or raises to refuse. `planned` is the event that `on_event` has seen already. A Ray
    that this call started is gone when it returns or raises.
    """
    started_ray = not ray.is_initialized()
    if started_ray:
        start_ray(config, len(shards))
    calls = _RayCalls(config, store, load_tokenizer)
    try:
        sizes = _planned(config, shards, started_ray=started_ray, on_event=on_event)
        metrics = RayMetrics()
        metrics(planned)

        def tell(event: Event) -> None:
            metrics(event)
            on_event(event)

        return Scheduler(config, shards, sizes, calls, claim, tell).run()
    finally:
        calls.kill_all()
        if started_ray:
            ray.shutdown()


def _planned(config: JobConfig, shards: Sequence[Shard], *, started_ray: bool, on_event: OnEvent) -> Sizes:
    num_shards = len(shards)
    names_cluster = cluster_address() is not None
    may_grow = names_cluster or (config.device == "cuda" and not started_ray)
    found = size_with_gpus(config, most_gpus=num_shards, may_grow=may_grow, on_event=on_event)
    num_gpus = found.num_gpus
    wanted = min(config.resources.num_tokenizers or 1, num_shards)
    if may_grow and 1 <= num_gpus < wanted and config.device in (None, "cuda"):
        on_event(
            Notice(
                message=f"Ray has {count_text(int(num_gpus), 'GPU')} for {wanted} tokenizers; the others wait "
                "for theirs"
            )
        )
        num_gpus = wanted
    return plan_sizes(
        config,
        num_shards=num_shards,
        num_pieces=count_pieces(shards),
        num_cpus=found.num_cpus or 1.0,
        num_gpus=num_gpus,
    )


def cluster_address() -> str | None:
    """The Ray cluster that RAY_ADDRESS names; None where it names none."""
    address = os.environ.get("RAY_ADDRESS")
    return None if address == "local" else address or None


def start_ray(config: JobConfig, num_shards: int) -> None:
    """Connect to the Ray at RAY_ADDRESS, or start one on this machine; raises TatokError if that fails.

    An address where nothing answers is found within seconds. Raises ConfigError if the current folder holds another
    tatok than the one that runs.
    """
    refuse_another_tatok(Path.cwd())
    quiet: dict[str, Any] = {"logging_level": "ERROR", "log_to_driver": False}
    address = cluster_address()
    if address is not None:
        require_head(address)
    try:
        with handlers_kept():
            if address is not None:
                ray.init(address=address, **quiet)
                return
            ray.init(address="local", include_dashboard=False, **quiet)
    except Exception as error:  # Ray raises bare ones, where a machine is too busy to start it in time
        where = "a local Ray" if address is None else f"the Ray at RAY_ADDRESS={address}"
        raise TatokError(f"cannot start {where}: {error}") from error


class _RayCalls:
    """`Calls` of the Ray that this process is connected to."""

    def __init__(self, config: JobConfig, store: OutputStore, load_tokenizer: LoadTokenizer) -> None:
        self._config = config
        self._store = store
        self._load_tokenizer = load_tokenizer
        self._actors: dict[Any, None] = {}  # those that live, in order

    def now(self) -> float:
        return time.monotonic()

    def start_tokenizer(self, sizes: Sizes) -> Any:
        actor = TokenizerWorker.options(  # type: ignore[attr-defined]
            num_cpus=sizes.cpus_per_actor,
            num_gpus=sizes.gpus_per_tokenizer,
            max_concurrency=sizes.shards_per_tokenizer + 2,  # a spare one, and one thread that reports the counts
        ).remote(self._load_tokenizer, self._config, self._store, sizes, decoding_identity(self._config))
        self._actors[actor] = None
        return actor

    def start_decoder(self, sizes: Sizes) -> Any:
        actor = DecodeWorker.options(num_cpus=sizes.cpus_per_actor).remote(self._config, self._store)  # type: ignore[attr-defined]
        self._actors[actor] = None
        return actor

    def ready(self, actor: Any) -> Any:
        return actor.ready.remote()

    def run_shard(self, tokenizer: Any, attempt: Attempt, decoder: Any, fingerprint: Mapping[str, str]) -> Any:
        return tokenizer.run_shard.remote(attempt, decoder, fingerprint)

    def lend(self, tokenizer: Any, attempt: Attempt, tokenizers: Sequence[Any], decoders: Sequence[Any]) -> None:
        tokenizer.lend.remote(attempt, tokenizers, decoders)

    def pulse(self, tokenizer: Any) -> Any:
        return tokenizer.pulse.remote()

    def wait(self, references: Iterable[Any], *, timeout_s: float) -> Sequence[Any]:
        waiting = list(references)
        if not waiting:  # all that died waits for its successor
            time.sleep(timeout_s)
            return ()
        settled, _ = ray.wait(waiting, num_returns=1, timeout=timeout_s)
        if settled:  # and all that have come with it: each call looks at every reference
            settled, _ = ray.wait(waiting, num_returns=len(waiting), timeout=0)
        return list(settled)

    def result(self, reference: Any) -> Any:
        return ray.get(reference)

    def interrupt(self, actor: Any) -> None:
        ray.kill(actor)

    def kill(self, actor: Any) -> None:
        ray.kill(actor)
        self._actors.pop(actor, None)

    def kill_all(self) -> None:
        for actor in list(self._actors):
            self.kill(actor)

    def resources(self) -> Mapping[str, float]:
        return dict(ray.cluster_resources())
