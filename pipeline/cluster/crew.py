"""A run's processes: started, asked for their specs, replaced when they die, more of them as the cluster grows.

Ray is reached through `Calls` alone, so that a simulation can drive the very same loop (benchmarks/speed/scale.py).
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import count
from typing import Any, Protocol

from ray.exceptions import RayError

from tatok.pipeline.cluster.leases import MAX_DEATHS_IN_A_ROW, Attempt, DeathsInARow, Failure, ShardLedger
from tatok.pipeline.cluster.sizes import Sizes, count_pieces, resize
from tatok.pipeline.cluster.slots import Decoder, IdleDecoders, Slots, TokenizerSlot
from tatok.pipeline.cluster.workers.deaths import death_text, start_error, was_killed
from tatok.pipeline.cluster.workers.reports import Ready
from tatok.pipeline.monitoring.events import Notice, OnEvent
from tatok.pipeline.tokenization.fingerprint import decoding_identity
from tatok.pipeline.tokenization.spec import TokenizerSpec
from tatok.schemas.errors import TatokError
from tatok.schemas.identity import require_equal
from tatok.schemas.job import JobConfig
from tatok.schemas.records import Shard

__all__ = ["Calls", "Crew"]

_RESIZE_S = 5.0  # between looks at what the cluster has now
_ROOM_S = 15.0  # that a tokenizer waits for a place before a decoder makes room

_DEATH_REMEDY = "the machine may be short of memory: try a smaller resources.batch_size or fewer resources.num_decoders"


class Calls(Protocol):
    """What the loop asks of the cluster. References are whatever hashes; `result` raises Ray's exceptions."""

    def now(self) -> float:
        """Seconds on a clock that never goes back."""

    def start_tokenizer(self, sizes: Sizes) -> Any:
        """A new tokenizer actor, which may still wait for a place."""

    def start_decoder(self, sizes: Sizes) -> Any:
        """A new decoder actor."""

    def ready(self, actor: Any) -> Any:
        """Reference to what the actor reports once it can work, a `Ready`."""

    def run_shard(self, tokenizer: Any, attempt: Attempt, decoder: Any, fingerprint: Mapping[str, str]) -> Any:
        """Reference to the attempt's ShardReport or Failure."""

    def lend(self, tokenizer: Any, attempt: Attempt, tokenizers: Sequence[Any], decoders: Sequence[Any]) -> None:
        """Tell the attempt's tokenizer who helps with it from now on, beside who is its own."""

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


class Crew:
    """The tokenizers and decoders of a run, in their slots and idle; `spec` is known once all tokenizers have loaded.

    `starting` holds Ray's references to the actors that start, and to decoders that come back from a loan.
    """

    def __init__(
        self,
        config: JobConfig,
        ledger: ShardLedger,
        sizes: Sizes,
        calls: Calls,
        claim: Callable[[TokenizerSpec], dict[str, str]],
        on_event: OnEvent,
    ) -> None:
        self.slots = Slots()
        self.idle_decoders = IdleDecoders()
        self.starting: dict[Any, TokenizerSlot | Any] = {}
        self.spec: TokenizerSpec | None = None
        self.fingerprint: dict[str, str] = {}
        self._config = config
        self._ledger = ledger
        self._sizes = sizes
        self._calls = calls
        self._claim = claim
        self._on_event = on_event
        self._decoding = decoding_identity(config)  # once: it looks up versions
        self._num_decoders = 0  # those that start, idle and work, and those that are still to be started
        # A heap of what is to be started after a back-off: when, in which order, and whose successor (None: a decoder).
        self._later: list[tuple[float, int, TokenizerSlot | None]] = []
        self._num_later = count()
        self._deaths = DeathsInARow(clock=calls.now)
        self._recalled: dict[Any, float] = {}  # those of `starting` that come back: since when
        self._resized_at = self._room_wanted_at = 0.0

    @property
    def is_ready(self) -> bool:
        """Whether shards may go out.

        All specs are compared before the first one does: one foreign checkpoint would spoil the dataset.
        """
        return bool(self.slots) and (self.spec is not None or self.slots.num_ready >= len(self.slots))

    def start(self) -> None:
        """Start as many actors as were planned."""
        for _ in range(self._sizes.num_tokenizers):
            self._start_tokenizer()
        for _ in range(self._sizes.num_decoders):
            self.start_decoder()
        self._resized_at = self._room_wanted_at = self._calls.now()

    def start_decoder(self) -> None:
        """One more."""
        self._num_decoders += 1
        if self._sizes.decodes_in_place:
            self.idle_decoders.add(None)
        elif self._deaths.backoff_s:
            self._postpone(None)
        else:
            self._start_decoder()

    def discard_decoder(self, decoder: Decoder | None) -> None:
        """One less, whatever it is doing."""
        self._num_decoders -= 1
        if decoder is not None:
            self._calls.kill(decoder.actor)

    def recall_decoder(self, decoder: Decoder) -> None:
        """A loan of it is over: it is idle once it says so, having finished what it was given."""
        reference = self._calls.ready(decoder.actor)
        self.starting[reference] = decoder.actor
        self._recalled[reference] = self._calls.now()

    def settle_start(self, reference: Any) -> None:
        """An actor can work, or cannot: a process that was killed is replaced, an error that it raised is raised."""
        started = self.starting.pop(reference)
        was_lent = self._recalled.pop(reference, None) is not None
        is_tokenizer = isinstance(started, TokenizerSlot)
        try:
            ready: Ready = self._calls.result(reference)
        except RayError as error:
            # What an actor raises as it starts is the same on every attempt; a killed process may be chance.
            if not was_killed(error):
                raise start_error("tokenizer" if is_tokenizer else "decoder", error) from error
            message = f"a process died while it {'was lent' if was_lent else 'started'}: {death_text(error)}"
            self.count_death(message)
            self._announce_backoff(message)
            if is_tokenizer:
                self.replace_tokenizer(started)
            else:
                self.discard_decoder(Decoder(actor=started, node=""))
                self.start_decoder()
            return
        if is_tokenizer and isinstance(ready.told, Failure):
            self.condemn(started, ready.told)
        elif is_tokenizer:
            self.slots.make_ready(started, ready.node)
            self._check_spec(ready.told)
        else:
            require_equal("decoder", self._decoding, ready.told)
            self.idle_decoders.add(Decoder(actor=started, node=ready.node))

    def condemn(self, slot: TokenizerSlot, failure: Failure, shard: Shard | None = None) -> None:
        """Replace a tokenizer that answers, because it can do nothing any more, as was seen at this shard."""
        slot.is_condemned = True
        if slot not in self.slots:
            return
        self.replace_tokenizer(slot)
        self._on_event(Notice(message=f"a tokenizer can do nothing any more and is replaced: {failure.message}"))
        if failure.kind in ("device_lost", "tokenizer_replaced") and not self._is_repeated(shard, failure):
            self.count_death(failure.message, "look after the GPUs (nvidia-smi, dmesg), or take those nodes out")

    def bury(self, slot: TokenizerSlot, failure: Failure, shard: Shard | None = None) -> None:
        """Replace a tokenizer that died, under a lease of this shard; of several that report one death the first does.

        Of a shard that has cost a process before it is the shard that counts them: where only such shards are left,
        their deaths come in a row, and they are to be given up by their names.
        """
        if slot not in self.slots:
            return
        counts = failure.kind in ("tokenizer_died", "no_progress") and not self._is_repeated(shard, failure)
        if counts or failure.is_blameless:
            self.count_death(failure.message)
            self._announce_backoff(failure.message)
        self.replace_tokenizer(slot)

    def _is_repeated(self, shard: Shard | None, failure: Failure) -> bool:
        return shard is not None and not failure.is_blameless and self._ledger.has_cost_a_process(shard)

    def replace_tokenizer(self, slot: TokenizerSlot) -> None:
        """End its process and start another in its place, after a while where processes die in a row."""
        self.slots.remove(slot)
        self._calls.kill(slot.actor)
        if self.slots and slot.is_hopeless(self._num_commits):
            self.slots.num_abandoned += 1
            self._on_event(Notice(message="a tokenizer was replaced again and again and is given up; others continue"))
        elif self._deaths.backoff_s:
            self._postpone(slot)
        else:
            self._start_tokenizer(slot)

    def note_commit(self) -> None:
        """A shard is committed: the deaths before it no longer count."""
        self._deaths.clear()

    def count_death(self, message: str, remedy: str = _DEATH_REMEDY) -> None:
        """A process died; raises TatokError after too many without a shard in between."""
        if self._deaths.add():
            raise TatokError(
                f"processes died {MAX_DEATHS_IN_A_ROW} times without a shard in between, the last one so: {message}\n"
                f"{remedy}"
            )

    def start_postponed(self, now: float) -> None:
        """Start what has waited for long enough since processes died in a row, and successors of what hangs."""
        while self._recalled and now - next(iter(self._recalled.values())) > self._config.resources.lease_timeout_s:
            reference = next(iter(self._recalled))
            del self._recalled[reference]
            self.discard_decoder(Decoder(actor=self.starting.pop(reference), node=""))
            self.start_decoder()
        while self._later and self._later[0][0] <= now:
            _, _, predecessor = heapq.heappop(self._later)
            if predecessor is None:
                self._start_decoder()
            else:
                self._start_tokenizer(predecessor)

    def resize(self, now: float) -> None:
        """Start actors on what has joined the cluster; make room for a tokenizer where none is left."""
        if now - self._resized_at < _RESIZE_S:
            return
        self._resized_at = now
        total = self._calls.resources()
        num_cpus, num_gpus = total.get("CPU", 1.0), total.get("GPU", 0.0)
        if self.spec is not None:
            num_shards = self._ledger.num_unsettled
            sizes = resize(
                self._sizes,
                self._config,
                num_shards=num_shards,
                num_pieces=count_pieces(self._ledger.unsettled()),
                num_cpus=num_cpus,
                num_gpus=num_gpus,
            )
            num_there = len(self.slots) + sum(slot is not None for _, _, slot in self._later)
            for _ in range(sizes.num_tokenizers - num_there - self.slots.num_abandoned):
                self._start_tokenizer()
            for _ in range(sizes.num_decoders - self._num_decoders):
                self.start_decoder()
        # A first tokenizer may take long to load; it lacks a place only where a node was lost meanwhile.
        num_decoders = 0 if self._sizes.decodes_in_place else self._num_decoders
        wanted_cpus = (len(self.slots) + num_decoders) * self._sizes.cpus_per_actor
        if self.slots.num_ready or not self.slots or (self.spec is None and wanted_cpus <= num_cpus):
            self._room_wanted_at = now
        elif now - self._room_wanted_at > _ROOM_S and num_decoders and self.idle_decoders:
            # Decoders have the CPUs that a tokenizer waits for.
            self._room_wanted_at = now
            self.discard_decoder(self.idle_decoders.take(""))

    def still_waiting(self, seconds: float) -> str:
        """What to say while no tokenizer has loaded."""
        room = f"{self._sizes.cpus_per_actor:g} CPU"
        if self._sizes.gpus_per_tokenizer:
            room += " and a GPU"
        return f"still waiting, after {seconds:.0f} s, for Ray to find room for a tokenizer ({room}) or for it to load"

    def _postpone(self, predecessor: TokenizerSlot | None) -> None:
        heapq.heappush(self._later, (self._calls.now() + self._deaths.backoff_s, next(self._num_later), predecessor))

    def _announce_backoff(self, message: str) -> None:
        if self._deaths.backoff_s:
            self._on_event(
                Notice(
                    message=f"processes die in a row, so the next one starts in {self._deaths.backoff_s:g} s; {message}"
                )
            )

    def _start_decoder(self) -> None:
        actor = self._calls.start_decoder(self._sizes)
        self.starting[self._calls.ready(actor)] = actor

    def _start_tokenizer(self, predecessor: TokenizerSlot | None = None) -> None:
        sizes = self._sizes
        actor = self._calls.start_tokenizer(sizes)
        spare = 0 if sizes.decodes_in_place or self._config.resources.shards_in_flight else 1
        slot = TokenizerSlot(actor=actor, most_leases=sizes.shards_per_tokenizer, spare_leases=spare)
        if predecessor is not None:
            slot.inherit(predecessor, self._num_commits)
        self.slots.add(slot)
        self.starting[self._calls.ready(actor)] = slot

    def _check_spec(self, spec: TokenizerSpec) -> None:
        if self.spec is None:
            self.fingerprint = self._claim(spec)
            self.spec = spec
        require_equal("tokenizer", self.spec.identity, spec.identity)

    @property
    def _num_commits(self) -> int:
        return len(self._ledger.reports)
