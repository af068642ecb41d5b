"""Slots: places of a run's tokenizers, the leases each holds, how far each is to be trusted; idle decoders; no Ray.

A process that has gone bad fails fast, so it would always be the one with the fewest leases and would drain the queue.
A slot therefore remembers what became of its last leases, and of the processes that were in its place before.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Container, Iterator, Set
from dataclasses import dataclass, field
from typing import Any

from tatok.pipeline.cluster.leases import SAMPLES_FAULT, Attempt, Failure, ShardLedger
from tatok.pipeline.cluster.workers.reports import Heartbeat, Pulse
from tatok.pipeline.monitoring.events import Throughput

__all__ = [
    "MAX_FAILURES_IN_A_ROW",
    "MAX_LOSSES_IN_A_ROW",
    "Decoder",
    "IdleDecoders",
    "Lease",
    "Slots",
    "TokenizerSlot",
]

MAX_FAILURES_IN_A_ROW = 3  # leases of one process
MAX_LOSSES_IN_A_ROW = 3  # processes of one place that were replaced for it, while others commit

_NO_PULSE = Pulse(heartbeats={})


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Decoder:
    """A decoder's actor and where it is."""

    actor: Any
    node: str


@dataclass(slots=True, kw_only=True, eq=False)
class TokenizerSlot:
    """One tokenizer actor, or the successor of one that died or was replaced.

    `is_condemned`: it was replaced for its own sake, so that its leases end by no fault of theirs.
    """

    actor: Any
    most_leases: int
    spare_leases: int = 0  # beyond those, with decoders of its own node
    node: str = ""  # once it is ready
    is_ready: bool = False
    is_polled: bool = False
    polled_at: float = 0.0
    is_condemned: bool = False
    leases: dict[Attempt, Lease] = field(default_factory=dict)
    lent_to: Lease | None = None
    pulse: Pulse = _NO_PULSE
    losses_in_a_row: int = 0  # predecessors that were replaced for their own sake, without a commit since
    failures_in_a_row: int = 0
    has_committed: bool = False
    commits_before: int = 0  # of the whole run, when the first of those losses and failures came

    @property
    def is_doubtful(self) -> bool:
        """The last thing that it, or its predecessor, did was to fail."""
        return self.failures_in_a_row + self.losses_in_a_row > 0

    def note_commit(self) -> None:
        """A shard of its leases is committed."""
        self.has_committed = True
        self.failures_in_a_row = self.losses_in_a_row = 0

    def note_failure(self, lease: Lease, failure: Failure, num_commits: int) -> bool:
        """A lease failed when the run had so many commits; whether the process is to be replaced.

        Where nobody succeeds, it is replaced once: if its successor fares no better, the fault is elsewhere. So it is
        where the source has no such file, or where another process, the decoder, could not read, died or hung.
        """
        if failure.is_permanent or (lease.decoder is not None and failure.kind in ("source", *SAMPLES_FAULT)):
            return False
        if not self.is_doubtful:
            self.commits_before = num_commits
        self.failures_in_a_row += 1
        is_first = self.losses_in_a_row == 0
        somebody_succeeds = num_commits > self.commits_before or self.has_committed
        return self.failures_in_a_row >= MAX_FAILURES_IN_A_ROW and (is_first or somebody_succeeds)

    def inherit(self, predecessor: TokenizerSlot, num_commits: int) -> None:
        """Take the place of a process, when the run had so many commits."""
        self.losses_in_a_row = predecessor.losses_in_a_row + predecessor.is_condemned
        self.commits_before = predecessor.commits_before if predecessor.is_doubtful else num_commits

    def is_hopeless(self, num_commits: int) -> bool:
        """Whether a further process would hardly fare better: so many have failed in this place while others commit."""
        losses = self.losses_in_a_row + self.is_condemned
        return losses >= MAX_LOSSES_IN_A_ROW and num_commits > self.commits_before


@dataclass(slots=True, kw_only=True, eq=False)
class Lease:
    """An attempt at work; it is lost when no heartbeat differs from `heartbeat` for `resources.lease_timeout_s`.

    `tokenizers` and `decoders` are lent to it, beside those that are its own.
    """

    attempt: Attempt
    slot: TokenizerSlot
    decoder: Decoder | None
    alive_at: float
    heartbeat: Heartbeat | None = None
    is_overdue: bool = False  # its decoding, in place, hangs
    is_silent: bool = False  # it was lost so
    tokenizers: list[TokenizerSlot] = field(default_factory=list)
    decoders: list[Decoder] = field(default_factory=list)


class Slots:
    """The slots of a run, in the order of their start."""

    def __init__(self) -> None:
        self.num_abandoned = 0  # places in which one process after the other failed
        self.nodes = Counter[str]()  # of those that are ready
        self._slots: dict[TokenizerSlot, None] = {}
        self._free: dict[TokenizerSlot, None] = {}  # those that can take another shard
        self._full: dict[str, dict[TokenizerSlot, None]] = {}  # node -> those that can take a spare one
        self._last_pulses: list[Pulse] = []  # of tokenizers that are gone

    def __iter__(self) -> Iterator[TokenizerSlot]:
        return iter(self._slots)

    def __len__(self) -> int:
        return len(self._slots)

    def __contains__(self, slot: TokenizerSlot) -> bool:
        return slot in self._slots

    @property
    def num_ready(self) -> int:
        """Tokenizers that have loaded."""
        return self.nodes.total()

    def add(self, slot: TokenizerSlot) -> None:
        """A tokenizer was started."""
        self._slots[slot] = None

    def make_ready(self, slot: TokenizerSlot, node: str) -> None:
        """A tokenizer has loaded."""
        slot.is_ready, slot.node = True, node
        self.nodes[node] += 1
        self.note_room(slot)

    def remove(self, slot: TokenizerSlot) -> None:
        """A tokenizer is gone, or will be."""
        del self._slots[slot]
        if slot.is_ready:
            self.nodes[slot.node] -= 1
            self.nodes += Counter()  # forgets the nodes that have none
        self.note_room(slot)
        self._last_pulses.append(slot.pulse)

    def note_room(self, slot: TokenizerSlot) -> None:
        """To be told after a change of a slot, so that no lease looks at every slot."""
        room = slot.most_leases - len(slot.leases) if slot.is_ready and slot in self._slots else -slot.spare_leases
        if room > 0:
            self._free[slot] = None
        else:
            self._free.pop(slot, None)
        if -slot.spare_leases < room <= 0:
            self._full.setdefault(slot.node, {})[slot] = None
        elif slot in (full := self._full.get(slot.node, {})):
            del full[slot]
            if not full:
                del self._full[slot.node]

    def best(self, near: Set[str] = frozenset()) -> TokenizerSlot | None:
        """Whom to give the next shard: the one with the fewest, but first those that last succeeded.

        Of these first those on the nodes `near`, on which decoders wait. They may be given one more than others, so
        that decoders that were handed across nodes when nothing else was free come home.
        """
        slot = min(
            self._free, key=lambda slot: (slot.is_doubtful, slot.node not in near, len(slot.leases)), default=None
        )
        if slot is None or slot.node not in near:
            for node in near & self._full.keys():
                return next(iter(self._full[node]))
        return slot

    def pulses(self) -> list[Pulse]:
        """Of all tokenizers that there are or were."""
        return [*self._last_pulses, *(slot.pulse for slot in self._slots)]

    def throughput(self, ledger: ShardLedger) -> Throughput:
        """What is committed and what is at work."""
        # The last poll may still count a shard that has since been committed; of twins only one counts.
        at_work = {
            attempt.shard.shard_id: heartbeat.counts
            for slot in self._slots
            for attempt, heartbeat in slot.pulse.heartbeats.items()
            if ledger.is_open(attempt)
        }.values()
        return sum(at_work, ledger.committed)


class IdleDecoders:
    """Decoders without work, by the node that they are on: what is decoded beside the model crosses no network.

    Handed out in the order in which they came, as far as nodes allow; None stands for a tokenizer that decodes.
    """

    def __init__(self) -> None:
        self._by_node: dict[str, deque[Decoder | None]] = {}  # no node without any
        self._count = 0

    def __len__(self) -> int:
        return self._count

    @property
    def nodes(self) -> Set[str]:
        """Where there are some."""
        return self._by_node.keys()

    def add(self, decoder: Decoder | None) -> None:
        """It has nothing to do."""
        self._by_node.setdefault("" if decoder is None else decoder.node, deque()).append(decoder)
        self._count += 1

    def take(self, node: str, tokenizer_nodes: Container[str] = ()) -> Decoder | None:
        """One of the node, else one of a node without tokenizers, which nobody has for neighbour, else any.

        Call it only where there is one.
        """
        if node not in self._by_node:
            node = next((each for each in self._by_node if each not in tokenizer_nodes), next(iter(self._by_node)))
        decoders = self._by_node[node]
        decoder = decoders.popleft()
        if not decoders:
            del self._by_node[node]
        self._count -= 1
        return decoder
