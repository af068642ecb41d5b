"""Clips and rejects in source order as columns: what a decoder sends to a tokenizer."""

from __future__ import annotations

import pickle
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from math import prod

import numpy as np
import pyarrow as pa

from tatok.pipeline.output.tables import FACTS_SCHEMA, clip_facts
from tatok.schemas.records import Clip, Reject

__all__ = ["ClipChunk", "ClipRun", "Shape"]

_SMALL_BYTES = 1 << 15  # up to which copying pixels costs less than a buffer a clip does

Shape = tuple[int, ...]
"""Of one clip's pixels: T, 3, H, W."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ClipRun:
    """Clips of one shape that follow each other; `pixels` has one uint8 array a clip, of that shape."""

    shape: Shape
    pixels: Sequence[np.ndarray] | np.ndarray

    def __len__(self) -> int:
        return len(self.pixels)

    def split(self, count: int) -> tuple[ClipRun, ClipRun | None]:
        """The first `count` clips, and the others, if there are any."""
        if count >= len(self):
            return self, None
        return ClipRun(shape=self.shape, pixels=self.pixels[:count]), ClipRun(
            shape=self.shape, pixels=self.pixels[count:]
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class ClipChunk:
    """`facts` (FACTS_SCHEMA) has a row a clip; `order` has clips as runs (shape, how many), and the rejects among them.

    `pixels` are the clips of each shape, in order: as they were decoded, or one array [B, T, 3, H, W] where they are
    small and came from another process. Facts are then bytes within the pickle: in Ray's memory they would hold the
    pixels there for as long as rows wait to be written.
    """

    facts: pa.RecordBatch
    order: tuple[tuple[Shape, int] | Reject, ...]
    pixels: Mapping[Shape, Sequence[np.ndarray] | np.ndarray]

    @classmethod
    def of(cls, results: Iterable[Clip | Reject]) -> ClipChunk:
        """The results of decoding, in their order."""
        clips: list[Clip] = []
        order: list[tuple[Shape, int] | Reject] = []
        pixels: dict[Shape, list[np.ndarray]] = {}
        for shape, alike in groupby(results, key=lambda each: each.pixels.shape if isinstance(each, Clip) else None):
            some = [*alike]
            run = [each for each in some if isinstance(each, Clip)]
            order += [each for each in some if isinstance(each, Reject)]
            if shape is not None:
                order.append((shape, len(run)))
                clips += run
                pixels.setdefault(shape, []).extend(each.pixels for each in run)
        return cls(facts=clip_facts(clips), order=tuple(order), pixels=pixels)

    def __len__(self) -> int:
        """Clips and rejects together."""
        return self.facts.num_rows + sum(isinstance(each, Reject) for each in self.order)

    @property
    def nbytes(self) -> int:
        """Of the pixels."""
        return sum(prod(shape) * len(of_shape) for shape, of_shape in self.pixels.items())

    def runs(self) -> Iterable[ClipRun | Reject]:
        """Clips and rejects in their order."""
        done = dict.fromkeys(self.pixels, 0)
        for each in self.order:
            if isinstance(each, Reject):
                yield each
                continue
            shape, count = each
            yield ClipRun(shape=shape, pixels=self.pixels[shape][done[shape] : done[shape] + count])
            done[shape] += count

    def __reduce__(self) -> tuple[object, ...]:
        pixels = {shape: _to_send(shape, of_shape) for shape, of_shape in self.pixels.items()}
        return _received, (self.facts.serialize().to_pybytes(), self.order, pixels)


def _to_send(shape: Shape, pixels: Sequence[np.ndarray] | np.ndarray) -> np.ndarray | list[pickle.PickleBuffer]:
    if isinstance(pixels, np.ndarray) or prod(shape) <= _SMALL_BYTES:
        return pixels if isinstance(pixels, np.ndarray) else np.stack(pixels)
    return [pickle.PickleBuffer(np.ascontiguousarray(each).data) for each in pixels]


def _received(
    facts: bytes,
    order: tuple[tuple[Shape, int] | Reject, ...],
    pixels: Mapping[Shape, np.ndarray | Sequence[memoryview[int]]],
) -> ClipChunk:
    return ClipChunk(
        facts=pa.ipc.read_record_batch(pa.py_buffer(facts), FACTS_SCHEMA),
        order=order,
        pixels={
            shape: of if isinstance(of, np.ndarray) else [np.frombuffer(each, np.uint8).reshape(shape) for each in of]
            for shape, of in pixels.items()
        },
    )
