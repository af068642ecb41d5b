"""The driver's loop: leases shards to tokenizers and decoders, and settles what comes back: deaths, limits, growth.

A tokenizer works on several shards at a time, each with a decoder of its own; a decoder reads and decodes one shard.
Any failure of an attempt costs its decoder process and the attempt, never the model: commits are idempotent, so
whatever is in doubt is done again. Where tokenizers decode in place, None stands for a decoder, and what may be the
decoding's fault costs the tokenizer. All state is in the output. Ray is reached through `Calls` alone, so that a
simulation can drive the very same loop (benchmarks/scale.py).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from itertools import chain
from typing import Any, Literal

from ray.exceptions import RayActorError, RayError, RayTaskError

from pipeline.calls import Calls
from pipeline.cluster_actors import Ready, first_line, start_error, was_killed
from pipeline.events import Load, Notice, OnEvent, ShardCommitted, ShardFailed, ShardRetried, Throughput
from pipeline.fingerprint import TokenizerSpec, decoding_identity, require_equal
from pipeline.idle_decoders import Decoder, IdleDecoders
from pipeline.leases import MAX_DEATHS_IN_A_ROW, Attempt, DeathsInARow, Failure, FailureKind, ShardLedger
from pipeline.sizes import Sizes, resize
from pipeline.slots import Lease, Slots, TokenizerSlot
from schemas.errors import ConfigError, TatokError
from schemas.job import JobConfig
from schemas.records import Shard, ShardReport

__all__ = ["Outcome", "Scheduler", "StoppedBy"]

_POLL_S = 1.0
_POLLS_A_SECOND = 100  # of all tokenizers together: thousands are asked less often
_PLACEMENT_NOTICE_S = 30.0
_MIN_SAMPLES_FOR_LIMIT = 100
_RESIZE_S = 5.0  # between looks at what the cluster has now
_ROOM_S = 15.0  # that a tokenizer waits for a place before a decoder makes room

_DEATH_REMEDY = "the machine may be short of memory: try a smaller resources.batch_size or fewer resources.num_decoders"

StoppedBy = Literal["too_many_rejects", "too_many_failed_shards"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What became of the shards; those in neither field were not tried, because the run was stopped."""

    reports: tuple[ShardReport, ...]
    failed: Mapping[Shard, Failure]
    stopped_by: StoppedBy | None


class Scheduler:
    """The driver's loop: keeps every tokenizer supplied with shards and decoders, and settles what comes back."""

    def __init__(
        self,
        config: JobConfig,
        shards: Iterable[Shard],
        sizes: Sizes,
        calls: Calls,
        claim: Callable[[TokenizerSpec], dict[str, str]],
        on_event: OnEvent,
    ) -> None:
        self._config = config
        self._calls = calls
        self._ledger = ShardLedger(shards, clock=calls.now)
        self._sizes = sizes
        self._claim = claim
        self._on_event = on_event
        self._decoding = decoding_identity(config)  # once: it looks up versions
        self._spec: TokenizerSpec | None = None
        self._fingerprint: dict[str, str] = {}
        self._slots = Slots()
        self._idle_decoders = IdleDecoders()
        # Ray object reference -> what it will settle
        self._starting: dict[Any, TokenizerSlot | Any] = {}
        self._running: dict[Any, Lease] = {}
        self._polls: dict[Any, TokenizerSlot] = {}
        self._num_decoders = 0  # those that start, idle and work
        self._deaths = DeathsInARow()
        self._counts = self._ledger.committed
        self._asked_at = -1.0
        self._polled_at = self._resized_at = self._room_wanted_at = 0.0

    def run(self) -> Outcome:
        """Until every shard is committed or given up, or a limit stops the run."""
        for _ in range(self._sizes.num_tokenizers):
            self._start_tokenizer()
        for _ in range(self._sizes.num_decoders):
            self._start_decoder()
        self._resized_at = self._room_wanted_at = started = self._calls.now()
        told_at = started
        while not self._ledger.is_finished:
            self._lease_out()
            references = chain(self._starting, self._running, self._polls)
            for reference in self._calls.wait(references, timeout_s=_POLL_S):
                self._settle(reference)
                stopped_by = self._gone_wrong()
                if stopped_by is not None:
                    return self._outcome(stopped_by)
            now = self._calls.now()
            if now - self._polled_at >= max(_POLL_S, len(self._slots) / _POLLS_A_SECOND):
                self._polled_at = now
                self._poll()
                self._expire_leases(now)
            self._resize(now)
            if self._spec is None and now - told_at > _PLACEMENT_NOTICE_S:
                told_at = now
                self._on_event(Notice(message=self._still_waiting(now - started)))
        self._on_event(self._throughput())
        self._on_event(self._load())
        return self._outcome(None)

    def _outcome(self, stopped_by: StoppedBy | None) -> Outcome:
        return Outcome(reports=tuple(self._ledger.reports), failed=dict(self._ledger.failed), stopped_by=stopped_by)

    def _start_tokenizer(self, predecessor: TokenizerSlot | None = None) -> None:
        sizes = self._sizes
        actor = self._calls.start_tokenizer(sizes)
        spare = 0 if sizes.decodes_in_place or self._config.resources.shards_in_flight else 1
        slot = TokenizerSlot(actor=actor, most_leases=sizes.shards_per_tokenizer, spare_leases=spare)
        if predecessor is not None:
            slot.inherit(predecessor, self._num_commits)
        self._slots.add(slot)
        self._starting[self._calls.ready(actor)] = slot

    def _start_decoder(self) -> None:
        self._num_decoders += 1
        if self._sizes.decodes_in_place:
            self._idle_decoders.add(None)
            return
        actor = self._calls.start_decoder(self._sizes)
        self._starting[self._calls.ready(actor)] = actor

    def _discard_decoder(self, decoder: Decoder | None) -> None:
        self._num_decoders -= 1
        if decoder is not None:
            self._calls.kill(decoder.actor)

    def _lease_out(self) -> None:
        # All specs are compared before the first shard goes out: one foreign checkpoint would spoil the data set.
        if not self._slots or (self._spec is None and self._slots.num_ready < len(self._slots)):
            return
        while self._idle_decoders and (slot := self._slots.best(self._idle_decoders.nodes)) is not None:
            attempt = self._ledger.lease() if self._ledger.has_waiting else self._straggler()
            if attempt is None:
                return
            decoder = self._idle_decoders.take(slot.node, self._slots.nodes)
            lease = Lease(attempt=attempt, slot=slot, decoder=decoder, alive_at=self._calls.now())
            slot.leases[attempt] = lease
            self._slots.note_room(slot)
            actor = None if decoder is None else decoder.actor
            reference = self._calls.run_shard(slot.actor, attempt, actor, self._fingerprint)
            self._running[reference] = lease

    def _still_waiting(self, seconds: float) -> str:
        room = f"{self._sizes.cpus_per_actor:g} CPU"
        if self._sizes.gpus_per_tokenizer:
            room += " and a GPU"
        return f"still waiting, after {seconds:.0f} s, for Ray to find room for a tokenizer ({room}) or for it to load"

    def _straggler(self) -> Attempt | None:
        if self._asked_at == self._polled_at:
            return None  # once a poll: the answer looks at every shard at work
        self._asked_at = self._polled_at
        return self._ledger.lease_straggler()

    def _poll(self) -> None:
        """Ask each tokenizer how far it has come, unless it still owes the last answer."""
        self._on_event(self._throughput())
        self._on_event(self._load())
        for slot in self._slots:
            if slot.is_ready and not slot.is_polled:
                slot.is_polled = True
                self._polls[self._calls.pulse(slot.actor)] = slot

    def _expire_leases(self, now: float) -> None:
        """Kill the tokenizers of which an attempt comes no further; its leases then fail as those of a dead one."""
        resources = self._config.resources
        # A guarded sample may take two deadlines without a sign of life.
        patience_s = max(resources.lease_timeout_s, 4 * resources.decode_timeout_s)
        silent = {lease.slot for lease in self._running.values() if now - lease.alive_at > patience_s}
        for slot in silent:
            self._on_event(Notice(message=f"a tokenizer made no progress for {patience_s:g} s and is replaced"))
            self._calls.interrupt(slot.actor)
            for lease in self._running.values():
                if lease.slot is slot:
                    lease.alive_at = now  # until Ray tells of its death

    def _resize(self, now: float) -> None:
        """Start actors on what has joined the cluster; make room for a tokenizer where none is left."""
        if now - self._resized_at < _RESIZE_S:
            return
        self._resized_at = now
        total = self._calls.resources()
        num_cpus, num_gpus = total.get("CPU", 1.0), total.get("GPU", 0.0)
        if self._spec is not None:
            num_shards = self._ledger.num_unsettled
            sizes = resize(self._sizes, self._config, num_shards=num_shards, num_cpus=num_cpus, num_gpus=num_gpus)
            for _ in range(sizes.num_tokenizers - len(self._slots) - self._slots.num_abandoned):
                self._start_tokenizer()
            for _ in range(sizes.num_decoders - self._num_decoders):
                self._start_decoder()
        # A first tokenizer may take long to load; it lacks a place only where a node was lost meanwhile.
        num_decoders = 0 if self._sizes.decodes_in_place else self._num_decoders
        wanted_cpus = (len(self._slots) + num_decoders) * self._sizes.cpus_per_actor
        if self._slots.num_ready or (self._spec is None and wanted_cpus <= num_cpus):
            self._room_wanted_at = now
        elif now - self._room_wanted_at > _ROOM_S and num_decoders and self._idle_decoders:
            # Decoders have the CPUs that a tokenizer waits for.
            self._room_wanted_at = now
            self._discard_decoder(self._idle_decoders.take(""))

    def _settle(self, reference: Any) -> None:
        if reference in self._starting:
            self._settle_start(reference, self._starting.pop(reference))
        elif reference in self._running:
            self._settle_lease(reference, self._running.pop(reference))
        else:
            self._settle_poll(reference, self._polls.pop(reference))

    def _settle_start(self, reference: Any, started: TokenizerSlot | Any) -> None:
        is_tokenizer = isinstance(started, TokenizerSlot)
        try:
            ready: Ready = self._calls.result(reference)
        except RayError as error:
            # An exception of the constructor is the same on every attempt; a killed process may be chance.
            if not was_killed(error):
                raise start_error("tokenizer" if is_tokenizer else "decoder", error) from error
            self._count_death(f"a process died while it started: {first_line(error)}")
            if is_tokenizer:
                self._replace_tokenizer(started)
            else:
                self._discard_decoder(Decoder(actor=started, node=""))
                self._start_decoder()
            return
        if is_tokenizer and isinstance(ready.told, Failure):
            self._condemn(started, ready.told)
        elif is_tokenizer:
            self._slots.make_ready(started, ready.node)
            self._check_spec(ready.told)
        else:
            require_equal("decoder", self._decoding, ready.told)
            self._idle_decoders.add(Decoder(actor=started, node=ready.node))

    def _check_spec(self, spec: TokenizerSpec) -> None:
        if self._spec is None:
            self._fingerprint = self._claim(spec)
            self._spec = spec
        require_equal("tokenizer", self._spec.identity, spec.identity)

    def _settle_lease(self, reference: Any, lease: Lease) -> None:
        del lease.slot.leases[lease.attempt]
        self._slots.note_room(lease.slot)
        try:
            result: ShardReport | Failure = self._calls.result(reference)
        except RayTaskError as error:
            if isinstance(error.cause, ConfigError):
                raise error.cause from None
            result = Failure(kind="error", message=first_line(error.cause))
        except RayActorError as error:
            result = self._death(lease, error)
            if self._replace_tokenizer(lease.slot) and result.kind == "tokenizer_died":
                self._count_death(result.message)
        if isinstance(result, ShardReport):
            self._deaths.clear()
            lease.slot.note_commit()
            self._idle_decoders.add(lease.decoder)
            if self._ledger.commit(lease.attempt, result):
                self._on_event(ShardCommitted(report=result, attempt=lease.attempt.number))
            return
        result = self._judge(lease, result)
        # Whatever went wrong, the decoder may still be busy with the lost attempt.
        self._discard_decoder(lease.decoder)
        shard = lease.attempt.shard
        match self._ledger.fail(lease.attempt, result):
            case "again":
                self._on_event(ShardRetried(shard=shard, reason=result.message, attempt=lease.attempt.number))
            case "given_up":
                self._on_event(ShardFailed(shard=shard, reason=result.message, attempt=lease.attempt.number))
            case "elsewhere":
                pass  # the straggler's twin has it
        if not self._ledger.is_finished:
            self._start_decoder()

    def _judge(self, lease: Lease, failure: Failure) -> Failure:
        """What the failure is to the lease's shard, once it has been seen what it tells of the slot."""
        slot = lease.slot
        is_lost = failure.kind in ("device_lost", "tokenizer_replaced")
        if slot.is_condemned and not is_lost:
            return Failure(kind="tokenizer_replaced", message=f"its tokenizer is replaced; here: {failure.message}")
        if is_lost or (slot in self._slots and slot.note_failure(lease, failure, self._num_commits)):
            self._condemn(slot, failure)
        return failure

    def _condemn(self, slot: TokenizerSlot, failure: Failure) -> None:
        """Replace a tokenizer that answers, because it can do nothing any more."""
        slot.is_condemned = True
        if not self._replace_tokenizer(slot):
            return
        self._on_event(Notice(message=f"a tokenizer can do nothing any more and is replaced: {failure.message}"))
        if failure.kind in ("device_lost", "tokenizer_replaced"):
            self._count_death(failure.message, "look after the GPUs (nvidia-smi, dmesg), or take those nodes out")

    def _death(self, lease: Lease, error: RayActorError) -> Failure:
        """Why the tokenizer of a lease died; in place, decoding may have done it, unless it was guarded."""
        if lease.is_overdue:
            timeout_s = self._config.resources.decode_timeout_s
            message = f"nothing was read and decoded within {timeout_s:g} s (resources.decode_timeout_s)"
            return Failure(kind="decode_timeout", message=message)
        kind: FailureKind = "decoder_died" if lease.decoder is None and not lease.attempt.guarded else "tokenizer_died"
        return Failure(kind=kind, message=f"the tokenizer process died: {first_line(error)}")

    def _replace_tokenizer(self, slot: TokenizerSlot) -> bool:
        """Whether it was still in its place; of several leases that tell of one death the first does it."""
        if slot not in self._slots:
            return False
        self._slots.remove(slot)
        self._calls.kill(slot.actor)
        if self._slots and slot.is_hopeless(self._num_commits):
            self._slots.num_abandoned += 1
            self._on_event(Notice(message="a tokenizer was replaced again and again and is given up; others go on"))
        else:
            self._start_tokenizer(slot)
        return True

    def _settle_poll(self, reference: Any, slot: TokenizerSlot) -> None:
        slot.is_polled = False
        try:
            slot.pulse = self._calls.result(reference)
        except RayError:
            # The slot's leases fail too, and are settled there.
            slot.pulse = replace(slot.pulse, heartbeats={}, overdue=frozenset())
        for attempt, heartbeat in slot.pulse.heartbeats.items():
            lease = slot.leases.get(attempt)
            if lease is not None and heartbeat != lease.heartbeat:
                lease.heartbeat, lease.alive_at = heartbeat, self._calls.now()
        overdue = [slot.leases[attempt] for attempt in slot.pulse.overdue if attempt in slot.leases]
        for lease in overdue:
            lease.is_overdue = True
        if overdue:
            self._calls.interrupt(slot.actor)

    def _count_death(self, message: str, remedy: str = _DEATH_REMEDY) -> None:
        if self._deaths.add():
            raise TatokError(
                f"processes died {MAX_DEATHS_IN_A_ROW} times without a shard in between, the last one so: {message}\n"
                f"{remedy}"
            )

    @property
    def _num_commits(self) -> int:
        return len(self._ledger.reports)

    def _throughput(self) -> Throughput:
        self._counts = self._slots.throughput(self._ledger)
        return self._counts

    def _load(self) -> Load:
        pulses = self._slots.pulses()
        return Load(
            num_waiting=self._ledger.num_unsettled - len(self._running),
            num_at_work=len(self._running),
            num_tokenizers=self._slots.num_ready,
            num_idle_decoders=len(self._idle_decoders),
            encode_s=sum(pulse.encode_s for pulse in pulses),
            wait_s=sum(pulse.wait_s for pulse in pulses),
            tokenizer_s=sum(pulse.ready_s for pulse in pulses),
        )

    def _gone_wrong(self) -> StoppedBy | None:
        limits, done = self._config.limits, self._ledger.committed
        # As of the last poll, shards at work included; a run of few shards may be over before it.
        counts = max(self._counts, done, key=lambda each: each.num_rows + each.num_rejects)
        num_samples = counts.num_rows + counts.num_rejects
        if num_samples >= _MIN_SAMPLES_FOR_LIMIT and counts.num_rejects / num_samples > limits.max_reject_fraction:
            return "too_many_rejects"
        if len(self._ledger.failed) >= limits.max_failed_shards and not self._ledger.is_finished:
            return "too_many_failed_shards"
        return None
