"""Shards -> committed parts on Ray, the driver's side: starts actors, leases shards to them, settles what comes back.

    driver --lease(shard, decoder)--> TokenizerWorker <--clips-- DecodeWorker
    driver <-------- report --------- TokenizerWorker --> one committed part

A tokenizer works on several shards at a time, each with a decoder of its own; a decoder reads and decodes one shard.
Any failure of an attempt costs its decoder process and the attempt, never the model: commits are idempotent, so
whatever is in doubt is done again. All state is in the output.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

# Both must be set before Ray is imported: no calls home, and no warning about GPUs that are hidden from CPU actors.
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")

import ray
from ray.exceptions import RayActorError, RayError, RayTaskError

from pipeline.cluster_actors import DecodeWorker, Heartbeat, TokenizerWorker, first_line, start_error, was_killed
from pipeline.filters import filter_identity
from pipeline.fingerprint import TokenizerSpec, decoder_identity, require_equal
from pipeline.leases import MAX_DEATHS_IN_A_ROW, Attempt, DeathsInARow, Failure, ShardLedger
from pipeline.progress import Notice, OnEvent, ShardCommitted, ShardFailed, ShardRetried, Throughput
from pipeline.sizes import Sizes, plan_sizes, resize
from pipeline.store import OutputStore
from schemas.errors import ConfigError, TatokError
from schemas.job import JobConfig
from schemas.records import Shard, ShardReport

if TYPE_CHECKING:
    from tatok.tokenizer import Tokenizer

__all__ = ["Outcome", "run_shards", "start_ray"]

_POLL_S = 1.0
_PLACEMENT_NOTICE_S = 30.0
_MIN_SAMPLES_FOR_LIMIT = 100
_RESIZE_S = 5.0  # between looks at what the cluster has now
_ROOM_S = 15.0  # that a tokenizer waits for a place before a decoder makes room

StoppedBy = Literal["too_many_rejects", "too_many_failed_shards"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What became of the shards; those in neither field were not tried, because the run was stopped."""

    reports: tuple[ShardReport, ...]
    failed: Mapping[Shard, Failure]
    stopped_by: StoppedBy | None


def run_shards(
    config: JobConfig,
    store: OutputStore,
    shards: Sequence[Shard],
    *,
    load_tokenizer: Callable[[], Tokenizer],
    claim: Callable[[TokenizerSpec], dict[str, str]],
    on_event: OnEvent,
) -> Outcome:
    """Tokenize and commit every shard, on the Ray at RAY_ADDRESS, on the one this process uses, or on a new local one.

    `claim` is called once, here, when the tokenizers are loaded and before any shard goes out; it returns the
    fingerprint for the footers, or raises to refuse. A Ray that this call started is gone when it returns or raises.
    """
    started_ray = not ray.is_initialized()
    if started_ray:
        start_ray(config, len(shards))
    actors: list[Any] = []
    try:
        total = ray.cluster_resources()
        sizes = plan_sizes(
            config, num_shards=len(shards), num_cpus=total.get("CPU", 1.0), num_gpus=total.get("GPU", 0.0)
        )
        return _Scheduler(config, store, shards, sizes, load_tokenizer, claim, on_event, actors).run()
    finally:
        for actor in actors:
            ray.kill(actor)
        if started_ray:
            ray.shutdown()


def start_ray(config: JobConfig, num_shards: int) -> None:
    """Connect to the Ray at RAY_ADDRESS, or start one on this machine; raises TatokError where that fails."""
    quiet: dict[str, Any] = {"logging_level": "ERROR", "log_to_driver": False}
    address = os.environ.get("RAY_ADDRESS")
    try:
        if address and address != "local":
            ray.init(address=address, **quiet)
            return
        ray.init(address="local", include_dashboard=False, **quiet)
    except Exception as error:  # Ray raises bare ones, where a machine is too busy to start it in time
        where = f"the Ray at RAY_ADDRESS={address}" if address and address != "local" else "a local Ray"
        raise TatokError(f"cannot start {where}: {error}") from error


@dataclass(slots=True, kw_only=True, eq=False)
class _TokenizerSlot:
    """One tokenizer actor, or the successor of one that died."""

    actor: Any
    most_leases: int
    is_ready: bool = False
    is_polled: bool = False
    num_leases: int = 0
    heartbeats: Mapping[Attempt, Heartbeat] = field(default_factory=dict)


@dataclass(slots=True, kw_only=True, eq=False)
class _Lease:
    """An attempt at work; it is lost when no heartbeat differs from `heartbeat` for `resources.lease_timeout_s`."""

    attempt: Attempt
    slot: _TokenizerSlot
    decoder: Any
    alive_at: float
    heartbeat: Heartbeat | None = None


class _Scheduler:
    """The driver's loop: keeps every tokenizer supplied with shards and decoders, and settles what comes back."""

    def __init__(
        self,
        config: JobConfig,
        store: OutputStore,
        shards: Sequence[Shard],
        sizes: Sizes,
        load_tokenizer: Callable[[], Tokenizer],
        claim: Callable[[TokenizerSpec], dict[str, str]],
        on_event: OnEvent,
        actors: list[Any],
    ) -> None:
        self._config = config
        self._store = store
        self._ledger = ShardLedger(shards)
        self._sizes = sizes
        self._load_tokenizer = load_tokenizer
        self._claim = claim
        self._on_event = on_event
        self._actors = actors  # the caller kills what is left in it
        self._spec: TokenizerSpec | None = None
        self._fingerprint: dict[str, str] = {}
        self._slots: list[_TokenizerSlot] = []
        self._idle_decoders: list[Any] = []
        # Ray object reference -> what it will settle
        self._starting: dict[Any, _TokenizerSlot | Any] = {}
        self._running: dict[Any, _Lease] = {}
        self._polls: dict[Any, _TokenizerSlot] = {}
        self._num_decoders = 0  # those that start, idle and work
        self._deaths = DeathsInARow()
        self._polled_at = self._resized_at = self._room_wanted_at = 0.0

    def run(self) -> Outcome:
        for _ in range(self._sizes.num_tokenizers):
            self._start_tokenizer()
        for _ in range(self._sizes.num_decoders):
            self._start_decoder()
        self._resized_at = self._room_wanted_at = started = time.monotonic()
        told_placement = False
        while not self._ledger.is_finished:
            self._lease_out()
            references = [*self._starting, *self._running, *self._polls]
            settled, _ = ray.wait(references, num_returns=1, timeout=_POLL_S)
            for reference in settled:
                self._settle(reference)
            stopped_by = self._gone_wrong()
            if stopped_by is not None:
                return self._outcome(stopped_by)
            now = time.monotonic()
            self._poll(now)
            self._expire_leases(now)
            self._resize(now)
            if not told_placement and self._spec is None and now - started > _PLACEMENT_NOTICE_S:
                told_placement = True
                self._on_event(Notice(message="still waiting for the tokenizer to load or for Ray to find room for it"))
        self._on_event(self._throughput())
        return self._outcome(None)

    def _outcome(self, stopped_by: StoppedBy | None) -> Outcome:
        return Outcome(reports=tuple(self._ledger.reports), failed=dict(self._ledger.failed), stopped_by=stopped_by)

    def _start_tokenizer(self) -> None:
        sizes = self._sizes
        actor = TokenizerWorker.options(  # type: ignore[attr-defined]
            num_cpus=sizes.cpus_per_actor,
            num_gpus=sizes.gpus_per_tokenizer,
            max_concurrency=sizes.shards_per_tokenizer + 1,  # and one thread that tells the counts
        ).remote(self._load_tokenizer, self._config, self._store, sizes.torch_threads)
        slot = _TokenizerSlot(actor=actor, most_leases=sizes.shards_per_tokenizer)
        self._slots.append(slot)
        self._actors.append(actor)
        self._starting[actor.ready.remote()] = slot

    def _start_decoder(self) -> None:
        self._num_decoders += 1
        actor = DecodeWorker.options(num_cpus=self._sizes.cpus_per_actor).remote(self._config, self._store)  # type: ignore[attr-defined]
        self._actors.append(actor)
        self._starting[actor.ready.remote()] = actor

    def _discard(self, actor: Any) -> None:
        ray.kill(actor)
        self._actors.remove(actor)

    def _discard_decoder(self, actor: Any) -> None:
        self._num_decoders -= 1
        self._discard(actor)

    def _lease_out(self) -> None:
        # All specs are compared before the first shard goes out: one foreign checkpoint would spoil the data set.
        if not self._slots or (self._spec is None and not all(slot.is_ready for slot in self._slots)):
            return
        while self._idle_decoders:
            free = [slot for slot in self._slots if slot.is_ready and slot.num_leases < slot.most_leases]
            if not free:
                return
            attempt = self._ledger.lease() if self._ledger.has_waiting else self._ledger.lease_straggler()
            if attempt is None:
                return
            slot = min(free, key=lambda slot: slot.num_leases)
            lease = _Lease(attempt=attempt, slot=slot, decoder=self._idle_decoders.pop(0), alive_at=time.monotonic())
            slot.num_leases += 1
            reference = slot.actor.run_shard.remote(attempt, lease.decoder, self._fingerprint)
            self._running[reference] = lease

    def _poll(self, now: float) -> None:
        """Ask each tokenizer how far it has come, once a second unless it still owes the last answer."""
        if now - self._polled_at < _POLL_S:
            return
        self._polled_at = now
        self._on_event(self._throughput())
        for slot in self._slots:
            if slot.is_ready and not slot.is_polled:
                slot.is_polled = True
                self._polls[slot.actor.heartbeats.remote()] = slot

    def _expire_leases(self, now: float) -> None:
        """Kill the tokenizers of which an attempt comes no further; its leases then fail as those of a dead one."""
        resources = self._config.resources
        # A guarded sample may take two deadlines without a sign of life.
        patience_s = max(resources.lease_timeout_s, 4 * resources.decode_timeout_s)
        silent = {lease.slot for lease in self._running.values() if now - lease.alive_at > patience_s}
        for slot in silent:
            self._on_event(Notice(message=f"a tokenizer made no progress for {patience_s:g} s and is replaced"))
            ray.kill(slot.actor)
            for lease in self._running.values():
                if lease.slot is slot:
                    lease.alive_at = now  # until Ray tells of its death

    def _resize(self, now: float) -> None:
        """Start actors on what has joined the cluster; make room for a tokenizer where none is left."""
        if now - self._resized_at < _RESIZE_S:
            return
        self._resized_at = now
        total = ray.cluster_resources()
        num_cpus, num_gpus = total.get("CPU", 1.0), total.get("GPU", 0.0)
        if self._spec is not None:
            num_shards = self._ledger.num_unsettled
            sizes = resize(self._sizes, self._config, num_shards=num_shards, num_cpus=num_cpus, num_gpus=num_gpus)
            for _ in range(sizes.num_tokenizers - len(self._slots)):
                self._start_tokenizer()
            for _ in range(sizes.num_decoders - self._num_decoders):
                self._start_decoder()
        # A first tokenizer may take long to load; it lacks a place only where a node was lost meanwhile.
        wanted_cpus = (len(self._slots) + self._num_decoders) * self._sizes.cpus_per_actor
        if any(slot.is_ready for slot in self._slots) or (self._spec is None and wanted_cpus <= num_cpus):
            self._room_wanted_at = now
        elif now - self._room_wanted_at > _ROOM_S and self._idle_decoders:
            # Decoders have the CPUs that a tokenizer waits for.
            self._room_wanted_at = now
            self._discard_decoder(self._idle_decoders.pop())

    def _settle(self, reference: Any) -> None:
        if reference in self._starting:
            self._settle_start(reference, self._starting.pop(reference))
        elif reference in self._running:
            self._settle_lease(reference, self._running.pop(reference))
        else:
            self._settle_poll(reference, self._polls.pop(reference))

    def _settle_start(self, reference: Any, started: _TokenizerSlot | Any) -> None:
        is_tokenizer = isinstance(started, _TokenizerSlot)
        try:
            told = ray.get(reference)
        except RayError as error:
            # An exception of the constructor is the same on every attempt; a killed process may be chance.
            if not was_killed(error):
                raise start_error("tokenizer" if is_tokenizer else "decoder", error) from error
            self._count_death(f"a process died while it started: {first_line(error)}")
            if is_tokenizer:
                self._slots.remove(started)
                self._discard(started.actor)
                self._start_tokenizer()
            else:
                self._discard_decoder(started)
                self._start_decoder()
            return
        if is_tokenizer:
            started.is_ready = True
            self._check_spec(told)
        else:
            expected = decoder_identity(self._config.preprocessing.decoder) | filter_identity(self._config.filter)
            require_equal("decoder", expected, told)
            self._idle_decoders.append(started)

    def _check_spec(self, spec: TokenizerSpec) -> None:
        if self._spec is None:
            self._fingerprint = self._claim(spec)
            self._spec = spec
        require_equal("tokenizer", self._spec.identity, spec.identity)

    def _settle_lease(self, reference: Any, lease: _Lease) -> None:
        lease.slot.num_leases -= 1
        try:
            result: ShardReport | Failure = ray.get(reference)
        except RayTaskError as error:
            if isinstance(error.cause, ConfigError):
                raise error.cause from None
            result = Failure(kind="error", message=first_line(error.cause))
        except RayActorError as error:
            result = Failure(kind="tokenizer_died", message=f"the tokenizer process died: {first_line(error)}")
            if lease.slot in self._slots:  # the first of its leases that tells
                self._slots.remove(lease.slot)
                self._discard(lease.slot.actor)
                self._count_death(result.message)
                self._start_tokenizer()
        if isinstance(result, ShardReport):
            self._deaths.clear()
            self._idle_decoders.append(lease.decoder)
            if self._ledger.commit(lease.attempt, result):
                self._on_event(ShardCommitted(report=result))
                self._on_event(self._throughput())
            return
        # Whatever went wrong, the decoder may still be busy with the lost attempt.
        self._discard_decoder(lease.decoder)
        shard = lease.attempt.shard
        match self._ledger.fail(lease.attempt, result):
            case "again":
                self._on_event(ShardRetried(shard=shard, reason=result.message))
            case "given_up":
                self._on_event(ShardFailed(shard=shard, reason=result.message))
            case "elsewhere":
                pass  # the straggler's twin has it
        if not self._ledger.is_finished:
            self._start_decoder()

    def _settle_poll(self, reference: Any, slot: _TokenizerSlot) -> None:
        slot.is_polled = False
        try:
            slot.heartbeats = ray.get(reference)
        except RayError:
            slot.heartbeats = {}  # the slot's leases fail too, and are settled there
        for lease in self._running.values():
            heartbeat = slot.heartbeats.get(lease.attempt)
            if heartbeat is not None and heartbeat != lease.heartbeat:
                lease.heartbeat, lease.alive_at = heartbeat, time.monotonic()

    def _count_death(self, message: str) -> None:
        if self._deaths.add():
            raise TatokError(
                f"processes died {MAX_DEATHS_IN_A_ROW} times without a shard in between, the last one so: {message}\n"
                "the machine may be short of memory: try a smaller resources.batch_size or fewer resources.num_decoders"
            )

    def _throughput(self) -> Throughput:
        reports = self._ledger.reports
        # The last poll may still count a shard that has since been committed; of twins only one counts.
        by_shard = {
            attempt.shard.shard_id: heartbeat.counts
            for slot in self._slots
            for attempt, heartbeat in slot.heartbeats.items()
            if self._ledger.is_open(attempt)
        }
        at_work = by_shard.values()
        return Throughput(
            num_rows=sum(report.num_rows for report in reports) + sum(counts.num_rows for counts in at_work),
            num_tokens=sum(report.num_tokens for report in reports) + sum(counts.num_tokens for counts in at_work),
            num_rejects=sum(report.num_faults for report in reports) + sum(counts.num_rejects for counts in at_work),
        )

    def _gone_wrong(self) -> StoppedBy | None:
        limits, counts = self._config.limits, self._throughput()
        num_samples = counts.num_rows + counts.num_rejects
        if num_samples >= _MIN_SAMPLES_FOR_LIMIT and counts.num_rejects / num_samples > limits.max_reject_fraction:
            return "too_many_rejects"
        if len(self._ledger.failed) >= limits.max_failed_shards and not self._ledger.is_finished:
            return "too_many_failed_shards"
        return None
