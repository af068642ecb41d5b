"""Loans: processes without work help with the shards that others work on, once no shard waits; no Ray.

A shard belongs to one attempt to its end: who helps decides nothing, and may go at any time. Evenly: whoever is idle
goes to the attempt that has the fewest helpers.
"""

from __future__ import annotations

import heapq
from collections.abc import Collection, Sequence
from typing import Any

from tatok.pipeline.cluster.crew import Calls, Crew
from tatok.pipeline.cluster.slots import Decoder, Lease, TokenizerSlot

__all__ = ["Loans"]

_AGAIN_S = 0.2  # between looks at who is idle; longer where many are at work, each of whom is looked at
_AT_WORK_A_SECOND = 1000
_SILENT_S = 5.0  # a tokenizer that owes an answer for so long is not lent
_MOST_DECODERS = 64  # for one shard: more than its reader can keep busy


class Loans:
    """Who is lent to which lease; `Lease.tokenizers` and `Lease.decoders` hold them."""

    def __init__(self, crew: Crew, calls: Calls) -> None:
        self._crew = crew
        self._calls = calls
        self._looked_at = -_AGAIN_S
        self._lent_to = dict[Lease, None]()  # leases that have a loan, in order

    def take_turn(self, num_at_work: int, now: float) -> bool:
        """Whether it is time to look again who is idle, and if so, this is the look: each costs some for each lease."""
        is_time = now - self._looked_at >= max(_AGAIN_S, num_at_work / _AT_WORK_A_SECOND)
        if is_time:
            self._looked_at = now
        return is_time

    def lend_out(self, leases: Collection[Lease], now: float) -> None:
        """Give the idle to those at work; call it where no shard waits."""
        takers = [lease for lease in leases if not lease.attempt.alone]
        changed = self._lend_tokenizers(takers, now) | self._lend_decoders(takers)
        self._lent_to |= dict.fromkeys(changed)
        for lease in changed:
            self._tell(lease)

    def end(self, lease: Lease) -> None:
        """Its attempt is over, or its tokenizer gone: who was lent to it is free."""
        self._lent_to.pop(lease, None)
        for slot in lease.tokenizers:
            slot.lent_to = None
        for decoder in lease.decoders:
            self._crew.recall_decoder(decoder)
        lease.tokenizers, lease.decoders = [], []

    def take_back(self, slot: TokenizerSlot) -> None:
        """It has a shard of its own now."""
        lease, slot.lent_to = slot.lent_to, None
        if lease is not None:
            lease.tokenizers.remove(slot)
            self._tell(lease)

    def call_in(self) -> None:
        """Shards wait: all loans end."""
        for lease in list(self._lent_to):
            self.end(lease)
            self._tell(lease)

    def _lend_tokenizers(self, takers: Sequence[Lease], now: float) -> dict[Lease, None]:
        changed = dict[Lease, None]()
        idle = [slot for slot in self._crew.slots if _is_idle(slot, now)]
        if not idle:
            return changed
        for lease in takers:
            lease.tokenizers = [each for each in lease.tokenizers if each in self._crew.slots]  # others are replaced
        fewest = [(len(lease.tokenizers), lease.attempt.number, lease) for lease in takers]
        heapq.heapify(fewest)
        for slot in idle if fewest else ():
            count, number, lease = fewest[0]
            lease.tokenizers.append(slot)
            slot.lent_to = lease
            changed[lease] = None
            heapq.heapreplace(fewest, (count + 1, number, lease))
        return changed

    def _lend_decoders(self, takers: Sequence[Lease]) -> dict[Lease, None]:
        """Those of a node to the shards that are read there, as far as there are any."""
        changed = dict[Lease, None]()
        read_at = dict[str, list[tuple[int, int, Lease]]]()  # node -> a heap of the shards that are read there
        for lease in takers if self._crew.idle_decoders else ():
            if lease.decoder is not None and not lease.attempt.guarded:
                read_at.setdefault(lease.decoder.node, []).append((len(lease.decoders), lease.attempt.number, lease))
        for heap in read_at.values():
            heapq.heapify(heap)
        kept = list[Decoder | None]()
        while read_at and self._crew.idle_decoders:
            decoder = self._crew.idle_decoders.take(next(iter(self._crew.idle_decoders.nodes)))
            heap = read_at.get("" if decoder is None else decoder.node) or min(read_at.values())
            count, number, lease = heap[0]
            if decoder is None or count >= _MOST_DECODERS:
                kept.append(decoder)
                continue
            lease.decoders.append(decoder)
            changed[lease] = None
            heapq.heapreplace(heap, (count + 1, number, lease))
        for decoder in kept:
            self._crew.idle_decoders.add(decoder)
        return changed

    def _tell(self, lease: Lease) -> None:
        tokenizers: list[Any] = [slot.actor for slot in lease.tokenizers]
        decoders = [decoder.actor for decoder in lease.decoders]
        self._calls.lend(lease.slot.actor, lease.attempt, tokenizers, decoders)


def _is_idle(slot: TokenizerSlot, now: float) -> bool:
    is_silent = slot.is_polled and now - slot.polled_at > _SILENT_S
    return slot.is_ready and not (slot.leases or slot.lent_to or slot.is_doubtful or is_silent)
