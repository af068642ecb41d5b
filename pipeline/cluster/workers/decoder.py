"""Decoders: processes that may crash, leak or hang."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import ray

from tatok.pipeline.cluster.leases import Attempt
from tatok.pipeline.cluster.workers.borrowed import Borrowed, LentDecoding
from tatok.pipeline.cluster.workers.flow import Flow
from tatok.pipeline.cluster.workers.reports import Ready, this_node
from tatok.pipeline.cluster.workers.start import without_collections
from tatok.pipeline.storage.options import use_storage
from tatok.pipeline.storage.store import OutputStore
from tatok.schemas.job import JobConfig

if TYPE_CHECKING:
    from tatok.pipeline.tokenization.shard_decoder import Chunk
    from tatok.pipeline.tokenization.shared_decoding import Item

__all__ = ["DecodeWorker"]


@ray.remote(concurrency_groups={"loans": 1})  # type: ignore[call-overload]  # which knows no such argument
class DecodeWorker:
    """Reads and decodes one shard at a time, in a process of its own; or decodes samples that another one has read."""

    def __init__(self, config: JobConfig, store: OutputStore) -> None:
        self._cannot_start: Exception | None = None
        try:
            with without_collections():
                self._start(config, store)
        except Exception as error:  # `ready` raises it: of a constructor's error Ray hands on nothing but its text
            self._cannot_start = error

    def _start(self, config: JobConfig, store: OutputStore) -> None:
        # A worker imports this module for its class alone; each kind then imports what it runs.
        from tatok.pipeline.tokenization.shard_decoder import ShardDecoder

        use_storage(config.storage)
        self._decoder = ShardDecoder(config, store)
        self._borrowed = defaultdict[int, Borrowed](Borrowed)  # number of an attempt -> who is lent to it
        self._num_ended = 0  # the last attempt of which nothing is to be read any more

    def ready(self) -> Ready:
        """What the rows of this process depend on, once it can work; raises what kept it from starting.

        It answers when it has finished what it was given before.
        """
        if self._cannot_start is not None:
            raise self._cannot_start
        return Ready(node=this_node(), told=self._decoder.identity)

    def decode(self, attempt: Attempt, flow: Flow) -> Iterator[Chunk]:
        """Stream the shard as `ShardDecoder.decode` gives it; Ray's backpressure paces it."""
        helpers = LentDecoding(self._borrowed[attempt.number], flow)
        try:
            yield from self._decoder.decode(
                attempt.shard, flow.chunk_size, flow.chunk_bytes, guarded=attempt.guarded, helpers=helpers
            )
        finally:
            self._num_ended = attempt.number
            self._borrowed.pop(attempt.number, None)

    def decode_samples(self, items: Sequence[Item], chunk_size: int, chunk_bytes: int) -> Iterator[Chunk]:
        """Stream the results of samples that the decoder of another attempt has read."""
        yield from self._decoder.decode_samples(items, chunk_size, chunk_bytes)

    @ray.method(concurrency_group="loans")
    def lend(self, number: int, decoders: Iterable[Any]) -> None:
        """From now on these decode for the attempt of that number, and no others."""
        if number > self._num_ended:  # attempts come in their order
            self._borrowed[number].give(decoders)
