"""One shard -> chunks of clips and rejects: reads, drops duplicates, decodes and filters; no Ray.

Which process does it is not its business: a decoder of its own, or the tokenizer itself.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Generator, Iterator
from contextlib import ExitStack
from functools import partial

from tatok.pipeline.decode.filters import apply_filter, load_filter
from tatok.pipeline.decode.guarded import GuardedDecoder
from tatok.pipeline.decode.sample import decode_sample
from tatok.pipeline.readers.local_video import local_video
from tatok.pipeline.readers.read import ReadOptions, read_samples
from tatok.pipeline.storage.store import OutputStore
from tatok.pipeline.tokenization.chunks import in_chunks
from tatok.pipeline.tokenization.dedup import drop_duplicates, read_dropped
from tatok.pipeline.tokenization.fingerprint import decoding_identity
from tatok.schemas.job import JobConfig
from tatok.schemas.records import Clip, LeftOut, LeftOutMembers, Reject, Sample, Shard

__all__ = ["ShardDecoder"]

_CHUNK_S = 0.2  # after which a chunk of small images is sent on


class ShardDecoder:
    """Decodes shards of a job as its configuration says."""

    def __init__(self, config: JobConfig, store: OutputStore) -> None:
        self._config = config
        self._store = store
        self._decode = partial(decode_sample, video=config.video)
        self._filter = None if config.filter is None else load_filter(config.filter)

    @property
    def identity(self) -> dict[str, str]:
        """What the rows of this process depend on."""
        return decoding_identity(self._config)

    def decode(
        self, shard: Shard, chunk_size: int, chunk_bytes: int, *, guarded: bool
    ) -> Generator[list[Clip | Reject | LeftOutMembers], None, None]:
        """The shard as chunks of results, in source order; what it left out, if anything, comes last.

        A chunk ends where its pixels come to `chunk_bytes`, or where it has `chunk_size` results and a fraction of a
        second has gone. `guarded`: each sample in a child process, so that one that crashes, hangs or exhausts memory
        is a reject; a chunk then ends at `chunk_size`.
        """
        config = self._config
        left_out = Counter[LeftOut]()
        samples = read_samples(shard, ReadOptions.of(config), left_out)
        if config.dedup == "exact":
            samples = drop_duplicates(samples, read_dropped(self._store, shard))
        with ExitStack() as stack:
            decode: Callable[[Sample], Iterator[Clip | Reject]] = partial(
                self._decode, preprocessing=config.preprocessing, limits=config.limits
            )
            if guarded:
                guard = GuardedDecoder(
                    config.preprocessing,
                    config.limits,
                    deadline_s=config.resources.decode_timeout_s,
                    decode=self._decode,
                )
                decode = stack.enter_context(guard).decode
            if self._filter is not None:
                decode = partial(self._filtered, decode)
            results = (
                result
                for sample in samples
                for result in ([sample] if isinstance(sample, Reject) else self._decoded(sample, decode))
            )
            seconds = 0.0 if guarded else _CHUNK_S
            for chunk in in_chunks(results, size=chunk_size, num_bytes=chunk_bytes, seconds=seconds):
                yield [*chunk]
        if left_out:
            yield [LeftOutMembers(counts=dict(left_out))]

    def _filtered(self, decode: Callable[[Sample], Iterator[Clip | Reject]], sample: Sample) -> Iterator[Clip | Reject]:
        assert self._filter is not None
        return apply_filter(self._filter, sample, decode(sample))

    def _decoded(self, sample: Sample, decode: Callable[[Sample], Iterator[Clip | Reject]]) -> Iterator[Clip | Reject]:
        with local_video(sample) as local:  # here, not in a guarded child: what a store does is no fault of the sample
            yield from decode(local)
