"""Tokenizers: processes that hold the model, and whose shards become parts.

    TokenizerWorker --decode(shard)--> DecodeWorker
    TokenizerWorker <--clips, streamed-- DecodeWorker
    TokenizerWorker --> one committed part

Pixels cross the object store once, at most `resources.max_bytes_in_flight` a shard. Where there is no decoder (a job on
CPUs alone), the tokenizer decodes between its batches, and what crashes or hangs there costs the tokenizer's process.
Other tokenizers may be lent to a shard: they encode some of its batches, and where there are no decoders decode some of
its samples.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import ray
from ray.exceptions import RayError, RayTaskError

from tatok.pipeline.cluster.leases import Attempt, Failure, FailureKind
from tatok.pipeline.cluster.sizes import Sizes
from tatok.pipeline.cluster.workers.borrowed import Borrowed, LentDecoding, LentEncoding
from tatok.pipeline.cluster.workers.deaths import death_text, first_line, is_blameless
from tatok.pipeline.cluster.workers.flow import Flow
from tatok.pipeline.cluster.workers.reports import Heartbeat, Pulse, Ready, this_node
from tatok.pipeline.cluster.workers.start import without_collections
from tatok.pipeline.monitoring.events import Throughput
from tatok.pipeline.storage.failures import is_permanent
from tatok.pipeline.storage.options import use_storage
from tatok.pipeline.storage.store import OutputStore
from tatok.pipeline.tokenization.loading import LoadTokenizer
from tatok.pipeline.tokenization.spec import TokenizerSpec
from tatok.schemas.errors import CommitError, SourceError
from tatok.schemas.identity import require_equal
from tatok.schemas.job import JobConfig
from tatok.schemas.records import LeftOutMembers, ShardReport, is_intended

if TYPE_CHECKING:
    import numpy as np

    from tatok.pipeline.tokenization.ahead import DeviceLost
    from tatok.pipeline.tokenization.clip_chunk import ClipChunk
    from tatok.pipeline.tokenization.shard_decoder import Chunk
    from tatok.pipeline.tokenization.shared_decoding import Item
    from tatok.pipeline.tokenization.tokenize import TooLarge
    from tatok.schemas.records import TokenSequence

__all__ = ["TokenizerWorker"]

_REGISTER_S = 1.0  # that a shard may take to begin before a loan to it is given up
_LENT_PATIENCE_SHARE = 0.5  # of a lease: who waits for a lent process must not be taken for lost itself


class _Lost(Exception):
    """Within a TokenizerWorker: this attempt's decoder hangs or is dead."""

    def __init__(self, kind: FailureKind, message: str, *, is_blameless: bool = False) -> None:
        super().__init__(message)
        self.kind = kind
        self.is_blameless = is_blameless


@dataclass(frozen=True, slots=True)
class _Loans:
    """What is lent to an attempt: tokenizers, and decoders, of which its own decoder is told."""

    decoder: Any
    tokenizers: Borrowed = field(default_factory=Borrowed)


@ray.remote(concurrency_groups={"encode": 1, "decode": 1, "loans": 1})  # type: ignore[call-overload]
class TokenizerWorker:
    """Holds the model; tokenizes and commits the shards that it is given, several at a time."""

    def __init__(
        self,
        load_tokenizer: LoadTokenizer,
        config: JobConfig,
        store: OutputStore,
        sizes: Sizes,
        decoding: Mapping[str, str],
    ) -> None:
        self._cannot_start: Exception | None = None
        try:
            with without_collections():
                self._start(load_tokenizer, config, store, sizes, decoding)
        except Exception as error:  # `ready` raises it, as in DecodeWorker
            self._cannot_start = error

    def _start(
        self,
        load_tokenizer: LoadTokenizer,
        config: JobConfig,
        store: OutputStore,
        sizes: Sizes,
        decoding: Mapping[str, str],
    ) -> None:
        import torch

        from tatok.allocator import keep_freed_memory
        from tatok.pipeline.output import commit
        from tatok.pipeline.tokenization import accelerator_errors, ahead, shard_decoder, tokenize

        keep_freed_memory()
        use_storage(config.storage)
        torch.set_num_threads(sizes.torch_threads)  # Ray would leave it at one
        self._commit_shard, self._committed_report = commit.commit_shard, commit.committed_report
        self._tokenize_clips = tokenize.tokenize_clips
        self._config = config
        self._batch_size = sizes.batch_size
        self._flow = Flow.of(config, sizes.batch_size)
        self._store = store
        self._decoder = shard_decoder.ShardDecoder(config, store) if sizes.decodes_in_place else None
        if self._decoder is not None:
            require_equal("decoder", decoding, self._decoder.identity)
        self._broken: str | None = None  # what the device said when it did not work from the start
        # One writer a key, and dict stores are atomic.
        self._heartbeats: dict[Attempt, Heartbeat] = {}
        self._loans: dict[Attempt, _Loans] = {}
        self._decode_until: dict[Attempt, float] = {}  # of those that are being decoded here
        self._seconds_lock = threading.Lock()
        self._wait_s = 0.0
        try:
            self._tokenizer = load_tokenizer(sizes.device)
        except RuntimeError as error:
            if not accelerator_errors.is_broken_accelerator(error) and not accelerator_errors.is_out_of_memory(error):
                raise
            self._broken = first_line(error)
            return
        finally:
            self._ready_at = time.monotonic()
        self._encode = ahead.EncodeAhead(self._tokenizer)

    def ready(self) -> Ready:
        """The tokenizer's spec, once it is loaded; a Failure where its device does not work.

        Raises what kept the process from starting.
        """
        if self._cannot_start is not None:
            raise self._cannot_start
        if self._broken is not None:
            told = Failure(kind="device_lost", message=f"the device does not work: {self._broken}")
            return Ready(node=this_node(), told=told)
        return Ready(node=this_node(), told=TokenizerSpec.of(self._tokenizer))

    def pulse(self) -> Pulse:
        """How far each attempt at work here has come, and where the time goes."""
        now = time.monotonic()
        return Pulse(
            heartbeats=dict(self._heartbeats),
            overdue=frozenset(attempt for attempt, until in dict(self._decode_until).items() if now > until),
            encode_s=self._encode.encode_s,
            wait_s=self._wait_s,
            ready_s=now - self._ready_at,
            broken=self._encode.broken,
        )

    @ray.method(concurrency_group="loans")
    def lend(self, attempt: Attempt, tokenizers: Iterable[Any], decoders: Iterable[Any]) -> None:
        """From now on these help with the attempt, and no others; nothing happens where it is over."""
        until = time.monotonic() + _REGISTER_S
        while (loans := self._loans.get(attempt)) is None and time.monotonic() < until:
            time.sleep(0.01)  # its call may have come a moment before this one
        if loans is None:
            return
        loans.tokenizers.give(tokenizers)
        if loans.decoder is not None:
            loans.decoder.lend.remote(attempt.number, list(decoders))

    @ray.method(concurrency_group="encode")
    def encode(self, pixels_BTCHW: np.ndarray) -> Sequence[TokenSequence | TooLarge] | Failure:
        """A batch of another tokenizer's shard; a Failure where the device works no more."""
        import torch

        from tatok.pipeline.tokenization.ahead import DeviceLost

        try:
            return self._encode.now(torch.from_numpy(pixels_BTCHW.copy()))  # Ray's memory cannot be written to
        except DeviceLost as error:
            return _device_failure(error)

    @ray.method(concurrency_group="decode")
    def decode_samples(self, items: Sequence[Item], chunk_size: int, chunk_bytes: int) -> Iterator[Chunk]:
        """Stream the results of samples that another tokenizer, without decoders, has read."""
        assert self._decoder is not None
        yield from self._decoder.decode_samples(items, chunk_size, chunk_bytes)

    def run_shard(self, attempt: Attempt, decoder: Any, fingerprint: Mapping[str, str]) -> ShardReport | Failure:
        """Tokenize and commit one shard with the help of `decoder` (None: this process is its own).

        After a Failure the decoder is to be replaced; this process, too, after "device_lost" and "tokenizer_replaced".
        Without a decoder `pulse` says where decoding takes too long, and only the end of this process ends it.
        """
        from tatok.pipeline.tokenization.ahead import DeviceLost

        config, shard = self._config, attempt.shard
        self._loans[attempt] = loans = _Loans(decoder)
        self._heartbeats[attempt] = Heartbeat(num_chunks=0, counts=Throughput(num_rows=0, num_tokens=0, num_rejects=0))

        def count(batch: Any) -> None:
            before = self._heartbeats[attempt]
            num_clips, num_frames = batch.clip_lengths
            counts = Throughput(
                num_rows=len(batch.rows),
                num_tokens=batch.num_tokens,
                num_rejects=sum(not is_intended(r.reason) for r in batch.rejects),
                num_clips=num_clips,
                num_frames=num_frames,
            )
            self._heartbeats[attempt] = replace(before, counts=before.counts + counts)

        try:
            # Another run into the same output, or an attempt that was given up too early, may have been faster.
            committed = self._committed_report(self._store, shard)
            if committed is not None:
                return committed
            batches = self._tokenize_clips(
                self._decoded(attempt, loans),
                LentEncoding(
                    self._encode,
                    loans.tokenizers,
                    patience_s=_LENT_PATIENCE_SHARE * config.resources.lease_timeout_s,
                ),
                batch_size=self._batch_size,
                vocab_size=self._tokenizer.vocab_size,
                patch_entropy=config.write.patch_entropy,
                patch_worth=config.write.patch_worth,
                has_entropy=self._tokenizer.has_entropy,
                max_waiting_bytes=config.resources.max_bytes_in_flight,
            )
            return self._commit_shard(
                self._store,
                shard,
                batches,
                fingerprint=fingerprint,
                vocab_size=self._tokenizer.vocab_size,
                patch_entropy=config.write.patch_entropy,
                patch_worth=config.write.patch_worth,
                has_entropy=self._tokenizer.has_entropy,
                row_group_rows=config.write.row_group_rows,
                on_batch=count,
            )
        except _Lost as error:
            return Failure(kind=error.kind, message=str(error), is_blameless=error.is_blameless)
        except DeviceLost as error:
            return _device_failure(error)
        except SourceError as error:
            return Failure(kind="source", message=str(error), is_permanent=error.is_permanent)
        except CommitError as error:
            return Failure(kind="commit", message=str(error), is_permanent=is_permanent(error))
        finally:
            del self._heartbeats[attempt], self._loans[attempt]

    def _decoded(self, attempt: Attempt, loans: _Loans) -> Iterator[ClipChunk | LeftOutMembers]:
        from tatok.pipeline.tokenization.chunks import StillThere

        is_guarded = attempt.guarded
        flow = replace(self._flow, chunk_size=1) if is_guarded else self._flow
        with ExitStack() as stack:
            if loans.decoder is None:
                assert self._decoder is not None
                helpers = LentDecoding(loans.tokenizers, flow)
                chunks = self._decoder.decode(
                    attempt.shard, flow.chunk_size, flow.chunk_bytes, guarded=attempt.guarded, helpers=helpers
                )
                stack.enter_context(closing(chunks))
            else:
                stream = loans.decoder.decode.options(
                    num_returns="streaming", _generator_backpressure_num_objects=flow.num_ahead
                ).remote(attempt, flow)
            while True:
                started = time.monotonic()
                patience_s = flow.patience_s(is_guarded=is_guarded)
                if loans.decoder is None:
                    self._decode_until[attempt] = started + patience_s
                    try:
                        chunk = next(chunks, None)
                    finally:
                        del self._decode_until[attempt]
                else:
                    chunk = _fetched(stream, patience_s)
                with self._seconds_lock:
                    self._wait_s += time.monotonic() - started
                if chunk is None:
                    return
                before = self._heartbeats[attempt]
                self._heartbeats[attempt] = replace(before, num_chunks=before.num_chunks + 1)
                if isinstance(chunk, StillThere):
                    is_guarded = attempt.guarded or chunk.is_guarded
                else:
                    is_guarded = attempt.guarded
                    yield chunk


def _device_failure(error: DeviceLost) -> Failure:
    return Failure(kind="device_lost" if error.is_first else "tokenizer_replaced", message=str(error))


def _fetched(stream: Any, patience_s: float) -> Chunk | None:
    """The next chunk of another process, None at the end; raises _Lost, and the SourceError that it met."""
    arrived, _ = ray.wait([stream], timeout=patience_s)
    if not arrived:
        raise _Lost(
            "decode_timeout",
            f"nothing was read and decoded within {patience_s:g} s (resources.decode_timeout_s)",
        )
    try:
        chunk: Chunk = ray.get(next(stream))
        return chunk
    except StopIteration:
        return None
    except RayTaskError as error:
        if isinstance(error.cause, SourceError):
            raise error.cause from None
        raise
    except RayError as error:
        message = f"the decoder process died: {death_text(error)}"
        raise _Lost("decoder_died", message, is_blameless=is_blameless(error)) from error
