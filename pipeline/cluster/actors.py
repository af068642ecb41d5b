"""The job's processes on Ray: decoders, which may crash, leak or hang, and tokenizers, which hold the model.

    TokenizerWorker --decode(shard)--> DecodeWorker
    TokenizerWorker <--clips, streamed-- DecodeWorker
    TokenizerWorker --> one committed part

Pixels cross the object store once, at most `resources.max_bytes_in_flight` a shard. Where there is no decoder (a job on
CPUs alone), the tokenizer decodes between its batches, and what crashes or hangs there costs the tokenizer's process.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import ray
from ray.exceptions import (
    ActorUnschedulableError,
    AuthenticationError,
    LocalRayletDiedError,
    NodeDiedError,
    OutOfMemoryError,
    RayError,
    RayTaskError,
    RuntimeEnvSetupError,
)

from tatok.pipeline.cluster.leases import Attempt, Failure, FailureKind
from tatok.pipeline.cluster.sizes import Sizes
from tatok.pipeline.monitoring.events import Throughput
from tatok.pipeline.storage.failures import is_permanent
from tatok.pipeline.storage.options import use_storage
from tatok.pipeline.storage.store import OutputStore
from tatok.pipeline.tokenization.loading import LoadTokenizer
from tatok.pipeline.tokenization.spec import TokenizerSpec
from tatok.schemas.errors import CommitError, ConfigError, SourceError, TatokError
from tatok.schemas.fingerprints import require_equal
from tatok.schemas.job import JobConfig
from tatok.schemas.records import Clip, LeftOutMembers, Reject, Shard, ShardReport, is_intended

if TYPE_CHECKING:
    import torch

    from tatok.pipeline.tokenization.tokenize import TooLarge
    from tatok.schemas.records import TokenSequence

__all__ = [
    "DecodeWorker",
    "Heartbeat",
    "Pulse",
    "Ready",
    "TokenizerWorker",
    "death_text",
    "first_line",
    "is_blameless",
    "start_error",
    "was_killed",
]

_MAX_CHUNKS_AHEAD = 16
_CHUNK_SIZE = 16  # results with which a chunk may go
_CHUNK_BYTES = 1 << 20  # to which chunks of small images grow
_GUARD_START_S = 20.0


def first_line(error: BaseException) -> str:
    """What an error says, without its traceback."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]


@dataclass(frozen=True, slots=True, kw_only=True)
class Heartbeat:
    """How far an attempt has come; one that comes no further for too long has lost its lease."""

    num_chunks: int
    counts: Throughput


@dataclass(frozen=True, slots=True, kw_only=True)
class Pulse:
    """What a tokenizer reports when it is asked: its attempts, and where its seconds since it was ready went.

    `overdue` are attempts that it decodes itself and of which nothing has been decoded for too long.
    """

    heartbeats: Mapping[Attempt, Heartbeat]
    overdue: frozenset[Attempt] = frozenset()
    encode_s: float = 0.0
    wait_s: float = 0.0
    ready_s: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Ready:
    """What an actor reports once it can work: its node, and a tokenizer's spec (or Failure) or a decoder's identity."""

    node: str
    told: Any


class _Lost(Exception):
    """Within a TokenizerWorker: this attempt's decoder hangs or is dead, or the device works no more."""

    def __init__(self, kind: FailureKind, message: str, *, is_blameless: bool = False) -> None:
        super().__init__(message)
        self.kind = kind
        self.is_blameless = is_blameless


@ray.remote
class DecodeWorker:
    """Reads and decodes one shard at a time, in a process of its own."""

    def __init__(self, config: JobConfig, store: OutputStore) -> None:
        self._cannot_start: Exception | None = None
        try:
            self._start(config, store)
        except Exception as error:  # `ready` raises it: of a constructor's error Ray hands on nothing but its text
            self._cannot_start = error

    def _start(self, config: JobConfig, store: OutputStore) -> None:
        # A worker imports this module for its class alone; each kind then imports what it runs.
        from tatok.pipeline.tokenization.shard_decoder import ShardDecoder

        use_storage(config.storage)
        self._decoder = ShardDecoder(config, store)

    def ready(self) -> Ready:
        """What the rows of this process depend on, once it can work; raises what kept it from starting."""
        if self._cannot_start is not None:
            raise self._cannot_start
        return Ready(node=_node(), told=self._decoder.identity)

    def decode(
        self, shard: Shard, chunk_size: int, chunk_bytes: int, *, guarded: bool
    ) -> Iterator[list[Clip | Reject | LeftOutMembers]]:
        """Stream the shard as `ShardDecoder.decode` gives it; Ray's backpressure paces it."""
        yield from self._decoder.decode(shard, chunk_size, chunk_bytes, guarded=guarded)


@ray.remote
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

        from tatok.pipeline.output import commit
        from tatok.pipeline.tokenization import accelerator_errors, allocator, shard_decoder, tokenize

        allocator.keep_freed_memory()
        use_storage(config.storage)
        torch.set_num_threads(sizes.torch_threads)  # Ray would leave it at one
        self._commit_shard, self._committed_report = commit.commit_shard, commit.committed_report
        self._tokenize_clips = tokenize.tokenize_clips
        self._config = config
        self._batch_size = sizes.batch_size
        self._store = store
        self._decoder = shard_decoder.ShardDecoder(config, store) if sizes.decodes_in_place else None
        if self._decoder is not None:
            require_equal("decoder", decoding, self._decoder.identity)
        self._is_broken = accelerator_errors.is_broken_accelerator
        self._broken: str | None = None  # what the device said when it ceased to work for this process
        self._model_lock = threading.Lock()
        # One writer a key, and dict stores are atomic.
        self._heartbeats: dict[Attempt, Heartbeat] = {}
        self._decode_until: dict[Attempt, float] = {}  # of those that are being decoded here
        self._seconds_lock = threading.Lock()
        self._encode_s = self._wait_s = 0.0
        try:
            self._tokenizer = load_tokenizer(sizes.device)
        except RuntimeError as error:
            if not self._is_broken(error) and not accelerator_errors.is_out_of_memory(error):
                raise
            self._broken = first_line(error)
            return
        finally:
            self._ready_at = time.monotonic()
        self._encode = tokenize.FittingEncode(self._tokenizer.encode_clips)

    def ready(self) -> Ready:
        """The tokenizer's spec, once it is loaded; a Failure where its device does not work.

        Raises what kept the process from starting.
        """
        if self._cannot_start is not None:
            raise self._cannot_start
        if self._broken is not None:
            told = Failure(kind="device_lost", message=f"the device does not work: {self._broken}")
            return Ready(node=_node(), told=told)
        return Ready(node=_node(), told=TokenizerSpec.of(self._tokenizer))

    def pulse(self) -> Pulse:
        """How far each attempt at work here has come, and where the time goes."""
        now = time.monotonic()
        return Pulse(
            heartbeats=dict(self._heartbeats),
            overdue=frozenset(attempt for attempt, until in dict(self._decode_until).items() if now > until),
            encode_s=self._encode_s,
            wait_s=self._wait_s,
            ready_s=now - self._ready_at,
        )

    def run_shard(self, attempt: Attempt, decoder: Any, fingerprint: Mapping[str, str]) -> ShardReport | Failure:
        """Tokenize and commit one shard with the help of `decoder` (None: this process is its own).

        After a Failure the decoder is to be replaced; this process, too, after "device_lost" and "tokenizer_replaced".
        Without a decoder `pulse` says where decoding takes too long, and only the end of this process ends it.
        """
        config, shard = self._config, attempt.shard
        self._heartbeats[attempt] = Heartbeat(num_chunks=0, counts=Throughput(num_rows=0, num_tokens=0, num_rejects=0))

        def count(batch: Any) -> None:
            before = self._heartbeats[attempt]
            counts = Throughput(
                num_rows=before.counts.num_rows + len(batch.rows),
                num_tokens=before.counts.num_tokens + batch.num_tokens,
                num_rejects=before.counts.num_rejects + sum(not is_intended(r.reason) for r in batch.rejects),
            )
            self._heartbeats[attempt] = replace(before, counts=counts)

        try:
            # Another run into the same output, or an attempt that was given up too early, may have been faster.
            committed = self._committed_report(self._store, shard)
            if committed is not None:
                return committed
            batches = self._tokenize_clips(
                self._decoded(attempt, decoder),
                self._encode_alone,
                batch_size=self._batch_size,
                vocab_size=self._tokenizer.vocab_size,
                patch_entropy=config.write.patch_entropy,
                patch_worth=config.write.patch_worth,
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
                row_group_rows=config.write.row_group_rows,
                on_batch=count,
            )
        except _Lost as error:
            return Failure(kind=error.kind, message=str(error), is_blameless=error.is_blameless)
        except SourceError as error:
            return Failure(kind="source", message=str(error), is_permanent=error.is_permanent)
        except CommitError as error:
            return Failure(kind="commit", message=str(error), is_permanent=is_permanent(error))
        finally:
            del self._heartbeats[attempt]

    def _encode_alone(self, pixels_BTCHW: torch.Tensor) -> Sequence[TokenSequence | TooLarge]:
        with self._model_lock:  # decoding and committing of the other shards continue meanwhile
            if self._broken is not None:
                raise _Lost("tokenizer_replaced", f"another shard met a device that works no more: {self._broken}")
            started = time.monotonic()
            try:
                sequences = self._encode(pixels_BTCHW)
            except RuntimeError as error:
                if not self._is_broken(error):
                    raise
                self._broken = first_line(error)
                raise _Lost("device_lost", f"the device works no more: {self._broken}") from error
            self._encode_s += time.monotonic() - started
            return sequences

    def _decoded(self, attempt: Attempt, decoder: Any) -> Iterator[Clip | Reject | LeftOutMembers]:
        resources = self._config.resources
        deadline_s = resources.decode_timeout_s
        clip_bytes = 3 * self._config.preprocessing.image_size**2
        batch_bytes = self._batch_size * clip_bytes
        # Slow samples come in small chunks, because each chunk has a deadline; quick ones fill a batch's bytes.
        chunk_size = max(1, min(self._batch_size, _CHUNK_SIZE, resources.max_bytes_in_flight // (2 * clip_bytes)))
        chunk_bytes = max(
            chunk_size * clip_bytes,
            min(max(_CHUNK_BYTES, batch_bytes), resources.max_bytes_in_flight // _MAX_CHUNKS_AHEAD),
        )
        num_ahead = max(1, min(_MAX_CHUNKS_AHEAD, resources.max_bytes_in_flight // chunk_bytes))
        if attempt.guarded:
            # One sample may take the whole deadline, and its successor must start a process first.
            chunk_size, deadline_s = 1, 2 * deadline_s + _GUARD_START_S
        if decoder is None:
            assert self._decoder is not None
            chunks = self._decoder.decode(attempt.shard, chunk_size, chunk_bytes, guarded=attempt.guarded)
        else:
            stream = decoder.decode.options(
                num_returns="streaming", _generator_backpressure_num_objects=num_ahead
            ).remote(attempt.shard, chunk_size, chunk_bytes, guarded=attempt.guarded)
            chunks = _fetched(stream, deadline_s)
        with closing(chunks):
            while True:
                started = time.monotonic()
                if decoder is None:
                    self._decode_until[attempt] = started + deadline_s
                try:
                    chunk = next(chunks, None)
                finally:
                    self._decode_until.pop(attempt, None)
                with self._seconds_lock:
                    self._wait_s += time.monotonic() - started
                if chunk is None:
                    return
                before = self._heartbeats[attempt]
                self._heartbeats[attempt] = replace(before, num_chunks=before.num_chunks + 1)
                yield from chunk


def _fetched(stream: Any, deadline_s: float) -> Generator[list[Clip | Reject | LeftOutMembers], None, None]:
    """The chunks of another process; raises _Lost, and the SourceError that it met."""
    while True:
        arrived, _ = ray.wait([stream], timeout=deadline_s)
        if not arrived:
            raise _Lost(
                "decode_timeout",
                f"nothing was read and decoded within {deadline_s:g} s (resources.decode_timeout_s)",
            )
        try:
            yield ray.get(next(stream))
        except StopIteration:
            return
        except RayTaskError as error:
            if isinstance(error.cause, SourceError):
                raise error.cause from None
            raise
        except RayError as error:
            message = f"the decoder process died: {death_text(error)}"
            raise _Lost("decoder_died", message, is_blameless=is_blameless(error)) from error


def _node() -> str:
    return str(ray.get_runtime_context().get_node_id())


_NODE_IS_GONE = "its node has died"  # in what Ray says of an actor
_NO_DEATHS = (RayTaskError, ActorUnschedulableError, AuthenticationError, RuntimeEnvSetupError)


def was_killed(error: RayError) -> bool:
    """Whether an actor's process is gone, as opposed to one that cannot start: an error of its own, or of its class.

    Ray's errors are no closed list: whatever it raises that is neither the code's own nor the same every time is taken
    for a death. The memory monitor's OutOfMemoryError and NodeDiedError, for two, are no RayActorError.
    """
    return not isinstance(error, _NO_DEATHS) and not getattr(error, "actor_init_failed", False)


def death_text(error: RayError) -> str:
    """Why Ray holds a process for dead, in one line."""
    lines = str(error).strip().splitlines()
    return next((line.strip() for line in lines if " because " in line), first_line(error))


def is_blameless(error: RayError) -> bool:
    """Whether Ray says that a process that died did so with its node, or because the node's memory was short."""
    node_is_gone = getattr(error, "preempted", False) or _NODE_IS_GONE in str(error)
    return node_is_gone or isinstance(error, OutOfMemoryError | NodeDiedError | LocalRayletDiedError)


def start_error(what: str, error: RayError) -> TatokError:
    """What an actor that could not start says."""
    cause = error.cause if isinstance(error, RayTaskError) else None
    if isinstance(cause, TatokError):
        return ConfigError(f"the {what} cannot start: {str(cause).strip()}", remedy=cause.remedy)
    if cause is not None:
        return ConfigError(f"the {what} cannot start: {type(cause).__name__}: {cause}")
    return ConfigError(f"the {what} cannot start: {(str(error).strip() or type(error).__name__).splitlines()[-1]}")
