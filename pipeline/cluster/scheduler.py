"""The driver's loop: leases shards to tokenizers and decoders, and settles what comes back.

A tokenizer works on several shards at a time, each with a decoder of its own; a decoder reads and decodes one shard.
Any failure of an attempt costs its decoder process and the attempt, never the model: commits are idempotent, so
whatever is in doubt is done again. Where tokenizers decode in place, None stands for a decoder, and what may be the
decoding's fault costs the tokenizer. Once no shard waits, processes without work are lent to those at work (`Loans`).
All state is in the output. The processes themselves are `Crew`'s.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from itertools import chain
from typing import Any, Literal

from ray.exceptions import RayError, RayTaskError

from tatok.pipeline.cluster.crew import Calls, Crew
from tatok.pipeline.cluster.leases import Attempt, Failure, FailureKind, ShardLedger
from tatok.pipeline.cluster.loans import Loans
from tatok.pipeline.cluster.sizes import Sizes
from tatok.pipeline.cluster.slots import Lease, TokenizerSlot
from tatok.pipeline.cluster.workers.deaths import death_text, first_line, is_blameless
from tatok.pipeline.monitoring.events import (
    Load,
    Notice,
    OnEvent,
    ShardCommitted,
    ShardFailed,
    ShardRetried,
    Throughput,
)
from tatok.pipeline.tokenization.spec import TokenizerSpec
from tatok.schemas.errors import ConfigError
from tatok.schemas.job import JobConfig
from tatok.schemas.records import Shard, ShardReport

__all__ = ["Outcome", "Scheduler", "StoppedBy"]

_POLL_S = 1.0
_POLLS_A_SECOND = 100  # of all tokenizers together: thousands are asked less often
_PLACEMENT_NOTICE_S = 30.0
_MIN_SAMPLES_FOR_LIMIT = 100

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
        self._crew = Crew(config, self._ledger, sizes, calls, claim, on_event)
        self._slots, self._idle_decoders = self._crew.slots, self._crew.idle_decoders
        self._loans = Loans(self._crew, calls)
        self._on_event = on_event
        # Ray object reference -> what it will settle
        self._running: dict[Any, Lease] = {}
        self._polls: dict[Any, TokenizerSlot] = {}
        self._counts = self._ledger.committed
        self._asked_at = -1.0
        self._polled_at = 0.0

    def run(self) -> Outcome:
        """Until every shard is committed or given up, or a limit stops the run."""
        self._crew.start()
        started = self._calls.now()
        told_at = started
        while not self._ledger.is_finished:
            self._lease_out()
            self._lend_or_call_in()
            references = chain(self._crew.starting, self._running, self._polls)
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
            self._crew.start_postponed(now)
            self._crew.resize(now)
            if self._crew.spec is None and now - told_at > _PLACEMENT_NOTICE_S:
                told_at = now
                self._on_event(Notice(message=self._crew.still_waiting(now - started)))
        self._on_event(self._throughput())
        self._on_event(self._load())
        return self._outcome(None)

    def _outcome(self, stopped_by: StoppedBy | None) -> Outcome:
        return Outcome(reports=tuple(self._ledger.reports), failed=dict(self._ledger.failed), stopped_by=stopped_by)

    def _lease_out(self) -> None:
        if not self._crew.is_ready:
            return
        while self._idle_decoders and (slot := self._slots.best(self._idle_decoders.nodes)) is not None:
            attempt = self._ledger.lease() if self._ledger.has_waiting else self._straggler()
            if attempt is None:
                return
            decoder = self._idle_decoders.take(slot.node, self._slots.nodes)
            lease = Lease(attempt=attempt, slot=slot, decoder=decoder, alive_at=self._calls.now())
            slot.leases[attempt] = lease
            self._slots.note_room(slot)
            self._loans.take_back(slot)
            actor = None if decoder is None else decoder.actor
            reference = self._calls.run_shard(slot.actor, attempt, actor, self._crew.fingerprint)
            self._running[reference] = lease

    def _lend_or_call_in(self) -> None:
        """Where no shard waits nobody is to be idle; one that does, or straggles, comes before that."""
        now = self._calls.now()
        if self._ledger.has_waiting:
            self._loans.call_in()
        elif self._crew.is_ready and self._loans.take_turn(len(self._running), now):
            if not self._ledger.has_straggler or self._slots.best() is None:
                self._loans.lend_out(self._running.values(), now)
            elif not self._idle_decoders:
                self._loans.call_in()

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
                slot.is_polled, slot.polled_at = True, self._calls.now()
                self._polls[self._calls.pulse(slot.actor)] = slot

    def _expire_leases(self, now: float) -> None:
        """Kill the tokenizers of which an attempt comes no further; its leases then fail as those of a dead one."""
        patience_s = self._patience_s
        silent = [lease for lease in self._running.values() if now - lease.alive_at > patience_s]
        for lease in silent:
            lease.is_silent = True
        for slot in {lease.slot for lease in silent}:
            self._on_event(Notice(message=f"a tokenizer made no progress for {patience_s:g} s and is replaced"))
            self._calls.interrupt(slot.actor)
            for lease in self._running.values():
                if lease.slot is slot:
                    lease.alive_at = now  # until Ray reports its death

    def _settle(self, reference: Any) -> None:
        if reference in self._crew.starting:
            self._crew.settle_start(reference)
        elif reference in self._running:
            self._settle_lease(reference, self._running.pop(reference))
        else:
            self._settle_poll(reference, self._polls.pop(reference))

    def _settle_lease(self, reference: Any, lease: Lease) -> None:
        del lease.slot.leases[lease.attempt]
        self._slots.note_room(lease.slot)
        self._loans.end(lease)
        try:
            result: ShardReport | Failure = self._calls.result(reference)
        except RayTaskError as error:
            if isinstance(error.cause, ConfigError):
                raise error.cause from None
            result = Failure(kind="error", message=first_line(error.cause))
        except RayError as error:  # of whatever kind: see was_killed
            result = self._death(lease, error)
            self._crew.bury(lease.slot, result, lease.attempt.shard)
        if isinstance(result, ShardReport):
            self._crew.note_commit()
            lease.slot.note_commit()
            self._idle_decoders.add(lease.decoder)
            if self._ledger.commit(lease.attempt, result):
                self._on_event(ShardCommitted(report=result, attempt=lease.attempt.number))
            return
        if result.kind == "decoder_died" and result.is_blameless and lease.decoder is not None:
            self._crew.count_death(result.message)
        result = self._judge(lease, result)
        # Whatever went wrong, the decoder may still be busy with the lost attempt.
        self._crew.discard_decoder(lease.decoder)
        shard = lease.attempt.shard
        match self._ledger.fail(lease.attempt, result):
            case "again":
                self._on_event(ShardRetried(shard=shard, reason=result.message, attempt=lease.attempt.number))
            case "given_up":
                self._on_event(ShardFailed(shard=shard, reason=result.message, attempt=lease.attempt.number))
            case "elsewhere":
                pass  # the straggler's twin has it
        if not self._ledger.is_finished:
            self._crew.start_decoder()

    def _judge(self, lease: Lease, failure: Failure) -> Failure:
        """What the failure is to the lease's shard, once it has been seen what it says of the slot."""
        slot = lease.slot
        is_lost = failure.kind in ("device_lost", "tokenizer_replaced")
        if slot.is_condemned and not is_lost:
            return Failure(kind="tokenizer_replaced", message=f"its tokenizer is replaced; here: {failure.message}")
        if is_lost or (slot in self._slots and slot.note_failure(lease, failure, len(self._ledger.reports))):
            self._crew.condemn(slot, failure, lease.attempt.shard)
            if not is_lost:
                return Failure(kind="tokenizer_replaced", message=f"its tokenizer is replaced; {failure.message}")
        return failure

    def _death(self, lease: Lease, error: RayError) -> Failure:
        """Why the tokenizer of a lease died; in place, decoding may have done it, unless it was guarded."""
        if lease.is_overdue:
            timeout_s = self._config.resources.decode_timeout_s
            message = f"nothing was read and decoded within {timeout_s:g} s (resources.decode_timeout_s)"
            return Failure(kind="decode_timeout", message=message)
        may_be_decoding = lease.decoder is None and not lease.attempt.guarded
        if lease.is_silent:
            message = f"its tokenizer made no progress with it for {self._patience_s:g} s (resources.lease_timeout_s)"
            return Failure(kind="decoder_died" if may_be_decoding else "no_progress", message=message)
        kind: FailureKind = "decoder_died" if may_be_decoding else "tokenizer_died"
        message = f"the tokenizer process died: {death_text(error)}"
        return Failure(kind=kind, message=message, is_blameless=is_blameless(error))

    @property
    def _patience_s(self) -> float:
        # A guarded sample may take two deadlines without a sign of life.
        return max(self._config.resources.lease_timeout_s, 4 * self._config.resources.decode_timeout_s)

    def _settle_poll(self, reference: Any, slot: TokenizerSlot) -> None:
        slot.is_polled = False
        try:
            slot.pulse = self._calls.result(reference)
        except RayError as error:
            # The slot's leases, if it has any, fail too, and are settled there.
            slot.pulse = replace(slot.pulse, heartbeats={}, overdue=frozenset())
            if not slot.leases and slot in self._slots:
                message = f"the tokenizer process died: {death_text(error)}"
                self._crew.bury(slot, Failure(kind="tokenizer_died", message=message))
        if slot.pulse.broken is not None and not slot.leases and slot in self._slots:
            message = f"the device works no more: {slot.pulse.broken}"
            self._crew.condemn(slot, Failure(kind="device_lost", message=message))
        for attempt, heartbeat in slot.pulse.heartbeats.items():
            lease = slot.leases.get(attempt)
            if lease is not None and heartbeat != lease.heartbeat:
                lease.heartbeat, lease.alive_at = heartbeat, self._calls.now()
        overdue = [slot.leases[attempt] for attempt in slot.pulse.overdue if attempt in slot.leases]
        for lease in overdue:
            lease.is_overdue = True
        if overdue:
            self._calls.interrupt(slot.actor)

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
