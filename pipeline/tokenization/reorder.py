"""Clips wait for others of their shape, are encoded together, and leave as rows in the order in which they came.

Nothing here is done clip by clip but for rejects: what comes is counted in runs of clips of one shape, and rows are
put in order by Arrow.
"""

from __future__ import annotations

import threading
import weakref
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from math import prod
from operator import itemgetter
from typing import Any, Protocol, runtime_checkable

import numpy as np
import pyarrow as pa
import torch

from tatok.pipeline.output.tables import FACTS_SCHEMA, RowFormat, TokenizedBatch
from tatok.pipeline.tokenization.clip_chunk import ClipChunk, ClipRun, Shape
from tatok.schemas.errors import TatokError
from tatok.schemas.records import Reject, TokenSequence, count_text
from tatok.schemas.token_batch import TokenBatch

__all__ = ["Encode", "EncodeLater", "Encoded", "ReorderBuffer", "Taken", "TooLarge"]

_USUAL_SHARE = 4  # of the bytes that may wait: a quarter, unless two batches are more
_NUMBER = itemgetter(0)


@dataclass(frozen=True, slots=True, kw_only=True)
class TooLarge:
    """Stands for a clip that does not fit the device's memory even by itself; `detail` is the reject's."""

    detail: str


Encode = Callable[[torch.Tensor], "Sequence[TokenSequence | TooLarge]"]
"""uint8 clips [B, T, 3, H, W] -> B token sequences; `Tokenizer.encode_clips` is one."""


@runtime_checkable
class Encoded(Protocol):
    """A batch that another process may still be encoding."""

    def is_done(self) -> bool:
        """Whether `result` would not have to wait for anybody else."""

    def result(self) -> Sequence[TokenSequence | TooLarge]:
        """The sequences, once they are there. Raises what an `Encode` would."""


EncodeLater = Callable[[torch.Tensor], "Encoded | Sequence[TokenSequence | TooLarge]"]
"""Like `Encode`, of one batch after the other, without waiting for each."""


class _Sent:
    """A batch that was given to the encoder."""

    def __init__(self, encoded: Encoded | Sequence[TokenSequence | TooLarge], num_clips: int) -> None:
        self._encoded = encoded
        self._num_clips = num_clips

    @property
    def is_done(self) -> bool:
        return isinstance(self._encoded, Sequence) or self._encoded.is_done()

    @property
    def results(self) -> Sequence[TokenSequence | TooLarge]:
        if not isinstance(self._encoded, Sequence):  # asking whether it is an Encoded would take ten times as long
            self._encoded = self._encoded.result()
        if len(self._encoded) != self._num_clips:
            raise TatokError(
                f"the tokenizer returned {count_text(len(self._encoded), 'sequence')} for "
                f"{count_text(self._num_clips, 'image')}"
            )
        return self._encoded


@dataclass(frozen=True, slots=True, kw_only=True)
class _Part:
    """Some clips of a batch that was sent: their numbers, ascending, and the place of the first in the batch."""

    numbers: np.ndarray
    sent: _Sent
    start: int = 0

    def split(self, end: int) -> tuple[_Part, _Part]:
        """The clips before number `end`, and the others."""
        count = int(np.searchsorted(self.numbers, end))
        rest = _Part(numbers=self.numbers[count:], sent=self.sent, start=self.start + count)
        return _Part(numbers=self.numbers[:count], sent=self.sent, start=self.start), rest

    @property
    def results(self) -> Sequence[TokenSequence | TooLarge]:
        return self.sent.results[self.start : self.start + len(self.numbers)]


@dataclass(frozen=True, slots=True, kw_only=True)
class Taken:
    """Items that leave together: clips, with their facts and numbers, the rejects among them, and where tokens are."""

    facts: pa.Table
    numbers: np.ndarray
    rejects: Sequence[tuple[int, Reject]]
    parts: Sequence[_Part]
    row_format: RowFormat

    @property
    def is_done(self) -> bool:
        """Whether `batch` would not have to wait."""
        return all(part.sent.is_done for part in self.parts)

    def batch(self) -> TokenizedBatch:
        """Their rows and rejects, once all of them are there."""
        facts, rejects = self.facts, [*self.rejects]
        numbers: list[np.ndarray] = []
        tables: list[pa.Table] = []
        for part in self.parts:
            of_part, sequences = part.numbers, part.results
            if not isinstance(sequences, TokenBatch):
                too_large = [
                    (number, self._too_large(number, result))
                    for number, result in zip(of_part.tolist(), sequences, strict=True)
                    if isinstance(result, TooLarge)
                ]
                of_part = np.setdiff1d(of_part, [number for number, _ in too_large])
                rejects += too_large
            fitting = (
                sequences
                if isinstance(sequences, TokenBatch)
                else [s for s in sequences if isinstance(s, TokenSequence)]
            )
            tables.append(self.row_format.tokens(fitting, self._keys(of_part)))
            numbers.append(of_part)
        fitting_numbers = np.concatenate([np.empty(0, np.int64), *numbers])
        if len(fitting_numbers) < len(self.numbers):
            facts = facts.filter(pa.array(np.isin(self.numbers, fitting_numbers)))
        tokens = pa.concat_tables(tables or [self.row_format.tokens_schema.empty_table()])
        if (np.diff(fitting_numbers) < 0).any():
            tokens = tokens.combine_chunks().take(pa.array(np.argsort(fitting_numbers)))
        return TokenizedBatch(
            rows=self.row_format.rows(facts, tokens),
            rejects=tuple(reject for _, reject in sorted(rejects, key=_NUMBER)),
            num_tokens=int(tokens["num_tokens"].to_numpy().sum()),
        )

    def _keys(self, numbers: np.ndarray) -> Callable[[int], str]:
        return lambda row: str(self._fact(int(numbers[row]))["key"])

    def _fact(self, number: int) -> dict[str, Any]:
        return self.facts.slice(int(np.searchsorted(self.numbers, number)), 1).to_pylist()[0]

    def _too_large(self, number: int, too_large: TooLarge) -> Reject:
        fact = self._fact(number)
        return Reject(
            key=fact["key"],
            uri=fact["source_uri"],
            index=fact["source_index"],
            stage="tokenize",
            reason="out_of_memory",
            detail=too_large.detail,
            clip_index=fact["clip_index"],
        )


@dataclass(slots=True)
class _Waiting:
    """Clips of one shape, in their order: runs of them, each with the number of its first."""

    num_clips: int = 0
    runs: list[tuple[int, ClipRun]] = field(default_factory=list)

    def numbers(self) -> np.ndarray:
        return np.concatenate([np.arange(first, first + len(run)) for first, run in self.runs])

    def stack(self, pixels_BTCHW: np.ndarray) -> None:
        """Copy the pixels there."""
        done = 0
        for _, run in self.runs:
            part = pixels_BTCHW[done : done + len(run)]
            if isinstance(run.pixels, np.ndarray):
                part[:] = run.pixels
            else:
                np.stack(run.pixels, out=part)
            done += len(run)


class _Memory(threading.local):
    """For the pixels of one batch after another; the same again, where nobody holds the batch before any more.

    Blocks of this size come fresh from the system, which fills their pages with zeros: that takes several times as long
    as copying pixels there. Each thread, which works on one shard after another, keeps one.
    """

    def __init__(self) -> None:
        self._block = np.empty(0, np.uint8)
        self._lent: weakref.ref[np.ndarray] | None = None

    def batch(self, shape: Shape) -> np.ndarray:
        """Of this shape, with any numbers in it."""
        num_bytes = prod(shape)
        if len(self._block) < num_bytes or (self._lent is not None and self._lent() is not None):
            self._block = np.empty(num_bytes, np.uint8)
        batch = self._block[:num_bytes].reshape(shape)
        self._lent = weakref.ref(batch)  # whatever holds its memory, such as a tensor, holds this array
        return batch


_MEMORY = _Memory()


class ReorderBuffer:
    """Items, which are clips and rejects, numbered as they come; those before the first that waits are ready to leave.

    Chunks come by `start`, which takes the facts, and then run by run by `add`.
    """

    def __init__(
        self,
        encode: Encode | EncodeLater,
        row_format: RowFormat,
        *,
        batch_size: int,
        window: int,
        max_waiting_bytes: int,
    ) -> None:
        self._encode = encode
        self._row_format = row_format
        self._batch_size = batch_size
        self._window = window
        self._max_waiting_bytes = max_waiting_bytes
        self._first = 0  # number of the first item that is here
        self._next = 0
        self._facts: deque[pa.RecordBatch] = deque()  # of the clips that are here, and of those that `add` will bring
        self._rejects: deque[tuple[int, Reject]] = deque()
        self._waiting: dict[Shape, _Waiting] = {}
        self._waiting_bytes = 0  # of pixels
        self._largest_bytes = 0  # of one clip that waits
        self._parts: list[_Part] = []  # what was sent and has not left

    @property
    def num_items(self) -> int:
        """Items that are here."""
        return self._next - self._first

    @property
    def num_ready(self) -> int:
        """Items at the head that were given to the encoder, and rejects."""
        return self._oldest - self._first

    @property
    def must_encode(self) -> bool:
        """Whether a clip has waited for too long, or the pixels that wait are too many bytes."""
        return self._next - self._oldest >= self._window or self._waiting_bytes > self._most_bytes

    @property
    def _oldest(self) -> int:
        """Number of the clip that has waited longest, or of the next item."""
        return min((waiting.runs[0][0] for waiting in self._waiting.values()), default=self._next)

    @property
    def _most_bytes(self) -> int:
        two_batches = 2 * self._batch_size * self._largest_bytes
        return max(self._max_waiting_bytes // _USUAL_SHARE, min(two_batches, self._max_waiting_bytes))

    def start(self, chunk: ClipChunk) -> None:
        """Take the facts of a chunk, whose runs are to be added next."""
        if chunk.facts.num_rows:
            self._facts.append(chunk.facts)

    def add(self, run: ClipRun | Reject) -> ClipRun | None:
        """Take as much of a run as may come before something is to be encoded; the rest of it, to be added next.

        Between two calls clips are to be encoded while there `must_encode`. The batches are then those that come of
        adding one clip at a time, whatever the runs are.
        """
        if isinstance(run, Reject):
            self._rejects.append((self._next, run))
            self._next += 1
            return None
        clip_bytes = prod(run.shape)  # pixels are bytes
        self._largest_bytes = max(self._largest_bytes, clip_bytes)
        waiting = self._waiting.get(run.shape) or _Waiting()
        count = min(
            len(run),
            self._batch_size - waiting.num_clips,
            self._window - (self._next - self._oldest),
            1 + (self._most_bytes - self._waiting_bytes) // clip_bytes,
        )
        taken, rest = run.split(count)
        waiting.runs.append((self._next, taken))
        waiting.num_clips += count
        self._waiting[run.shape] = waiting
        self._waiting_bytes += count * clip_bytes
        self._next += count
        if waiting.num_clips >= self._batch_size:
            self._encode_alike(run.shape)
        return rest

    def encode_oldest(self) -> None:
        """Encode the clip that has waited longest, and those of its shape, if any waits."""
        if self._waiting:
            self._encode_alike(min(self._waiting, key=lambda shape: self._waiting[shape].runs[0][0]))

    def take(self, count: int) -> Taken:
        """Let the first `count` items leave, which must be ready."""
        first, end = self._first, self._first + count
        rejects: list[tuple[int, Reject]] = []
        while self._rejects and self._rejects[0][0] < end:
            rejects.append(self._rejects.popleft())
        split = [part.split(end) for part in self._parts]
        self._parts = [rest for _, rest in split if len(rest.numbers)]
        self._first = end
        return Taken(
            facts=self._taken_facts(count - len(rejects)),
            numbers=np.setdiff1d(np.arange(first, end), [number for number, _ in rejects]),
            rejects=rejects,
            parts=[part for part, _ in split if len(part.numbers)],
            row_format=self._row_format,
        )

    def _encode_alike(self, shape: Shape) -> None:
        waiting = self._waiting.pop(shape)
        numbers = waiting.numbers()
        pixels_BTCHW = _MEMORY.batch((len(numbers), *shape))
        waiting.stack(pixels_BTCHW)
        del waiting  # and with it the chunks that they came in
        encoded = self._encode(torch.from_numpy(pixels_BTCHW))
        self._parts.append(_Part(numbers=numbers, sent=_Sent(encoded, len(numbers))))
        self._waiting_bytes -= len(numbers) * prod(shape)
        self._largest_bytes = max(map(prod, self._waiting), default=0)

    def _taken_facts(self, num_clips: int) -> pa.Table:
        taken: list[pa.RecordBatch] = []
        while num_clips:
            facts = self._facts.popleft()
            if facts.num_rows > num_clips:
                self._facts.appendleft(facts.slice(num_clips))
                facts = facts.slice(0, num_clips)
            taken.append(facts)
            num_clips -= facts.num_rows
        return pa.Table.from_batches(taken, schema=FACTS_SCHEMA)
