"""One shard -> chunks of clips and rejects: reads, drops duplicates, decodes and filters; no Ray.

Which process does it is not its business: a decoder of its own, or the tokenizer itself, with or without helpers.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Generator, Iterable, Iterator
from contextlib import contextmanager
from functools import partial

from tatok.pipeline.decode.filters import apply_filter, load_filter
from tatok.pipeline.decode.guarded import GuardedDecoder
from tatok.pipeline.decode.pieces import LongVideos, SamplePiece
from tatok.pipeline.decode.sample import decode_sample
from tatok.pipeline.readers.read import ReadOptions, read_samples
from tatok.pipeline.storage.store import OutputStore
from tatok.pipeline.tokenization.chunks import StillThere, in_chunks
from tatok.pipeline.tokenization.clip_chunk import ClipChunk
from tatok.pipeline.tokenization.dedup import drop_duplicates, read_dropped
from tatok.pipeline.tokenization.fingerprint import decoding_identity
from tatok.pipeline.tokenization.shared_decoding import NO_HELPERS, Decode, Helpers, Item, SharedDecoding
from tatok.pipeline.video.local_video import local_video
from tatok.schemas.job import JobConfig
from tatok.schemas.records import Clip, LeftOut, LeftOutMembers, Reject, Sample, Shard

__all__ = ["Chunk", "ShardDecoder"]

_CHUNK_S = 0.2  # after which a chunk of small images is sent on
_AHEAD_SHARE = 4  # of the bytes that a shard may hold: what is decoded before its turn, while others decode, too

Chunk = ClipChunk | LeftOutMembers | StillThere


class ShardDecoder:
    """Decodes shards of a job as its configuration says."""

    def __init__(self, config: JobConfig, store: OutputStore) -> None:
        self._config = config
        self._store = store
        self._decode = partial(decode_sample, video=config.video)
        self._filter = None if config.filter is None else load_filter(config.filter)
        self._long = LongVideos(config)

    @property
    def identity(self) -> dict[str, str]:
        """What the rows of this process depend on."""
        return decoding_identity(self._config)

    def decode(
        self, shard: Shard, chunk_size: int, chunk_bytes: int, *, guarded: bool, helpers: Helpers = NO_HELPERS
    ) -> Generator[Chunk, None, None]:
        """The shard as chunks of results, in source order; what it left out, if anything, comes last.

        A chunk ends where its pixels come to `chunk_bytes`, or where it has `chunk_size` results and a fraction of a
        second has gone. `guarded`: each sample in a child process, so that one that crashes, hangs or exhausts memory
        is a reject; a chunk then ends at `chunk_size`, and nobody helps.
        """
        left_out = Counter[LeftOut]()
        samples = read_samples(shard, ReadOptions.of(self._config), left_out)
        if self._config.dedup == "exact":
            samples = drop_duplicates(samples, read_dropped(self._store, shard))
        if guarded:
            with self._guarded() as decode:
                yield from self._chunks(samples, decode, chunk_size, chunk_bytes, seconds=0.0)
        else:
            shared = SharedDecoding(
                self._unguarded,
                self._guarded,
                helpers,
                long=self._long,
                list_bytes=chunk_bytes,
                ahead_bytes=self._config.resources.max_bytes_in_flight // _AHEAD_SHARE,
            )
            results = shared.results(samples)
            yield from _columns(in_chunks(results, size=chunk_size, num_bytes=chunk_bytes, seconds=_CHUNK_S))
        if left_out:
            yield LeftOutMembers(counts=dict(left_out))

    def decode_samples(
        self, samples: Iterable[Item], chunk_size: int, chunk_bytes: int
    ) -> Generator[Chunk, None, None]:
        """Samples that another process has read, or pieces of one, as chunks of results, in their order."""
        yield from self._chunks(samples, self._unguarded, chunk_size, chunk_bytes, seconds=_CHUNK_S)

    def _chunks(
        self,
        samples: Iterable[Item],
        decode: Decode,
        chunk_size: int,
        chunk_bytes: int,
        *,
        seconds: float,
    ) -> Generator[Chunk, None, None]:
        def results(item: Item) -> Iterable[Clip | Reject]:
            if isinstance(item, SamplePiece):
                return self._long.decode(item)
            return [item] if isinstance(item, Reject) else decode(item)

        every = (result for item in samples for result in results(item))
        yield from _columns(in_chunks(every, size=chunk_size, num_bytes=chunk_bytes, seconds=seconds))

    def _unguarded(self, sample: Sample) -> Iterator[Clip | Reject]:
        config = self._config
        decode = partial(self._decode, preprocessing=config.preprocessing, limits=config.limits)
        return self._kept(decode, sample)

    @contextmanager
    def _guarded(self) -> Iterator[Decode]:
        config = self._config
        with GuardedDecoder(
            config.preprocessing,
            config.limits,
            deadline_s=config.resources.decode_timeout_s,
            decode=self._decode,
        ) as guard:
            yield partial(self._kept, guard.decode)

    def _kept(self, decode: Decode, sample: Sample) -> Iterator[Clip | Reject]:
        with local_video(sample) as local:  # here, not in a guarded child: what a store does is no fault of the sample
            results = decode(local)
            yield from results if self._filter is None else apply_filter(self._filter, local, results)


def _columns(chunks: Iterable[list[Clip | Reject] | ClipChunk | StillThere]) -> Iterator[Chunk]:
    for chunk in chunks:
        yield ClipChunk.of(chunk) if isinstance(chunk, list) else chunk
