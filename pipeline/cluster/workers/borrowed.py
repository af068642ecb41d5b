"""What a process makes of others that are lent to it: whole batches to encode, short lists of samples to decode.

A loan decides nothing: who lends is asked for work that this process would do itself, and whose result is the same
whoever does it. Who fails gets no more, and what it had is done again here.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import ray
from ray.exceptions import RayError, RayTaskError

from tatok.pipeline.cluster.leases import Failure
from tatok.pipeline.cluster.workers.flow import Flow
from tatok.pipeline.tokenization.chunks import StillThere
from tatok.pipeline.tokenization.clip_chunk import ClipChunk
from tatok.pipeline.tokenization.shared_decoding import Expected, HelperLost, Item
from tatok.schemas.errors import SourceError

if TYPE_CHECKING:
    import torch

    from tatok.pipeline.tokenization.ahead import EncodeAhead
    from tatok.pipeline.tokenization.reorder import Encoded, TooLarge
    from tatok.schemas.records import TokenSequence

__all__ = ["Borrowed", "LentDecoding", "LentEncoding"]

_MOST_TASKS = 2  # of a kind at one process: one at work, and one that waits for it
_WORTH_S = 0.02  # of encoding, below which a batch costs less here than on its way to another process
_ASK_S = 20.0  # that a process may take to say that it is there
_ALIVE_S = 1.0


@dataclass(slots=True, kw_only=True, eq=False)
class _Lender:
    """A process that is lent: references to what it was given and is not known to have finished."""

    actor: Any
    batches: list[Any] = field(default_factory=list)
    lists: list[Any] = field(default_factory=list)
    held_bytes: int = 0  # of lists, until their last result is here

    def settle(self) -> None:
        """Forget what it has finished."""
        self.batches = _unfinished(self.batches)
        self.lists = _unfinished(self.lists)


def _unfinished(references: list[Any]) -> list[Any]:
    return ray.wait(references, num_returns=len(references), timeout=0)[1] if references else references


class Borrowed:
    """The processes that are lent to one attempt at present; given anew at any time, by another thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._lenders: dict[Any, _Lender] = {}  # actor -> its work
        self._lost: set[Any] = set()

    def __bool__(self) -> bool:
        return bool(self._lenders)

    def give(self, actors: Iterable[Any]) -> None:
        """These and no others from now on; what others were given they finish. Who was lost stays lost."""
        with self._lock:
            self._lenders = {
                actor: self._lenders.get(actor) or _Lender(actor=actor) for actor in actors if actor not in self._lost
            }

    def for_batch(self) -> _Lender | None:
        """The one with the fewest batches, if it has room for one."""
        return self._least(lambda lender: len(lender.batches))

    def for_list(self) -> _Lender | None:
        """The one with the fewest lists, if it has room for one, and no batches, which take it longer."""
        return self._least(lambda lender: _MOST_TASKS if lender.batches else len(lender.lists))

    def lose(self, lender: _Lender) -> None:
        """It failed."""
        with self._lock:
            self._lost.add(lender.actor)
            self._lenders.pop(lender.actor, None)

    def _least(self, num_tasks: Callable[[_Lender], int]) -> _Lender | None:
        with self._lock:
            lenders = list(self._lenders.values())
        for lender in lenders:
            lender.settle()
        least = min(lenders, key=num_tasks, default=None)
        return least if least is not None and num_tasks(least) < _MOST_TASKS else None


class LentDecoding:
    """`Helpers` that are other processes."""

    def __init__(self, borrowed: Borrowed, flow: Flow) -> None:
        self._borrowed = borrowed
        self._flow = flow

    def __bool__(self) -> bool:
        return bool(self._borrowed)

    def send(self, items: Sequence[Item]) -> _SentList | None:
        """Give the list to the one that has the least to do; None where nobody has room."""
        lender = self._borrowed.for_list() if self._borrowed else None
        if lender is None:
            return None
        flow = self._flow
        expected = Expected.of(items)
        num_chunks = 2 + expected.num_pictures * flow.clip_bytes // flow.chunk_bytes
        pixel_bytes = num_chunks * flow.chunk_bytes if expected.has_videos else expected.num_pictures * flow.clip_bytes
        num_bytes = pixel_bytes + expected.payload_bytes
        if lender.held_bytes and lender.held_bytes + num_bytes > flow.lent_bytes:
            return None
        stream = lender.actor.decode_samples.options(
            num_returns="streaming", _generator_backpressure_num_objects=num_chunks
        ).remote(items, flow.chunk_size, flow.chunk_bytes)
        lender.lists.append(stream.completed())
        lender.held_bytes += num_bytes
        return _SentList(self._borrowed, lender, stream, num_bytes, flow.deadline_s)


class _SentList:
    """`SentSamples` of another process."""

    def __init__(self, borrowed: Borrowed, lender: _Lender, stream: Any, num_bytes: int, deadline_s: float) -> None:
        self._borrowed = borrowed
        self._lender = lender
        self._stream = stream
        self._completed = lender.lists[-1]
        self._num_bytes = num_bytes
        self._deadline_s = deadline_s

    def is_done(self) -> bool:
        return not _unfinished([self._completed])

    def chunks(self) -> Iterator[ClipChunk | StillThere]:
        try:
            while True:
                yield from self._waited()
                yield ray.get(next(self._stream))
        except StopIteration:
            return
        except RayTaskError as error:
            if isinstance(error.cause, SourceError):
                raise error.cause from None
            raise
        except RayError as error:
            self._borrowed.lose(self._lender)
            raise HelperLost from error
        finally:
            self._lender.held_bytes -= self._num_bytes

    def _waited(self) -> Iterator[StillThere]:
        until = time.monotonic() + self._deadline_s
        while not ray.wait([self._stream], timeout=_ALIVE_S)[0]:
            if time.monotonic() > until:
                self._borrowed.lose(self._lender)
                ray.kill(self._lender.actor)  # nothing else ends what it does; the driver will find it gone
                raise HelperLost
            yield StillThere()


class LentEncoding:
    """An `EncodeLater`: batches go to tokenizers that are lent and have room; else they are encoded here.

    Where one fails with a batch, this process takes it and nobody else is asked: a batch that breaks devices breaks one
    of the lent ones at most. `patience_s` is for a batch whose tokenizer is there and comes to no end.
    """

    def __init__(
        self,
        encode_here: EncodeAhead,
        borrowed: Borrowed,
        *,
        patience_s: float,
    ) -> None:
        self._encode_here = encode_here
        self._borrowed = borrowed
        self._patience_s = patience_s

    def __call__(self, pixels_BTCHW: torch.Tensor) -> Encoded | Sequence[TokenSequence | TooLarge]:
        """The sequences of the clips, or the batch on its way."""
        lender = self._borrowed.for_batch() if self._borrowed and self._is_worth_sending(pixels_BTCHW) else None
        if lender is None:
            return self._encode_here(pixels_BTCHW)
        reference = lender.actor.encode.remote(pixels_BTCHW.numpy())
        lender.batches.append(reference)
        return _SentBatch(self, lender, reference, pixels_BTCHW)

    def fetch(self, lender: _Lender, reference: Any, pixels_BTCHW: torch.Tensor) -> Sequence[TokenSequence | TooLarge]:
        """The sequences of a batch that was sent, wherever they come from in the end."""
        until = time.monotonic() + self._patience_s
        while not ray.wait([reference], timeout=_ASK_S)[0]:
            if time.monotonic() > until or not ray.wait([lender.actor.pulse.remote()], timeout=_ASK_S)[0]:
                break
        else:
            try:
                result: Sequence[TokenSequence | TooLarge] | Failure = ray.get(reference)
            except RayError:  # its death, or an error that this process will meet, too, if it is the batch's
                pass
            else:
                if not isinstance(result, Failure):
                    return result
        self._borrowed.lose(lender)
        return self._encode_here.now(pixels_BTCHW)

    def _is_worth_sending(self, pixels_BTCHW: torch.Tensor) -> bool:
        s_a_byte = self._encode_here.s_a_byte
        return s_a_byte is None or s_a_byte * pixels_BTCHW.nbytes >= _WORTH_S


class _SentBatch:
    """`Encoded` by another process."""

    def __init__(self, encoding: LentEncoding, lender: _Lender, reference: Any, pixels_BTCHW: torch.Tensor) -> None:
        self._encoding = encoding
        self._lender = lender
        self._reference = reference
        self._pixels_BTCHW = pixels_BTCHW

    def is_done(self) -> bool:
        return not _unfinished([self._reference])

    def result(self) -> Sequence[TokenSequence | TooLarge]:
        return self._encoding.fetch(self._lender, self._reference, self._pixels_BTCHW)
