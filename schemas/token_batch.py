"""Token sequences of one grid as columns: what a tokenizer gives for a batch, without a Python object an image.

Shapes in names: B sequences, N patch positions of the grid. "Flat" arrays hold the sequences' parts one after another;
sequence i is flat[offsets[i] : offsets[i + 1]].
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, fields
from operator import index as as_index
from typing import overload

import numpy as np

from tatok.schemas.records import EntropyStatistics, Grid, TokenSequence

__all__ = ["EntropyColumns", "TokenBatch"]

_NO_GRID = Grid(0, 0, 0)


@dataclass(frozen=True, slots=True, kw_only=True)
class EntropyColumns:
    """`EntropyStatistics` of a batch: the sums as float64 [B]."""

    entropy_bits: np.ndarray
    kept_entropy_bits: np.ndarray
    residual_bits: np.ndarray
    surprisal_bits: np.ndarray
    entropy_mean_bits: np.ndarray
    entropy_max_bits: np.ndarray
    patch_entropy_bits_BN: np.ndarray
    patch_worth_bits_BN: np.ndarray | None = None

    def __repr__(self) -> str:
        num, patches = self.patch_entropy_bits_BN.shape
        return f"EntropyColumns({num:,} rows, {self.entropy_bits.sum():,.0f} bits in {patches} patches a row)"

    def row(self, row: int) -> EntropyStatistics:
        """The statistics of one sequence."""
        return EntropyStatistics(
            **{name: float(getattr(self, name)[row]) for name in _SUMS},
            patch_entropy_bits_N=self.patch_entropy_bits_BN[row],
            patch_worth_bits_N=None if self.patch_worth_bits_BN is None else self.patch_worth_bits_BN[row],
        )

    def each(self, change: Callable[[np.ndarray], np.ndarray]) -> EntropyColumns:
        """Every column changed alike, such as to some of its rows."""
        columns = {field.name: getattr(self, field.name) for field in fields(self)}
        return EntropyColumns(**{name: None if of is None else change(of) for name, of in columns.items()})  # type: ignore[arg-type]

    @staticmethod
    def of(rows: Sequence[EntropyStatistics]) -> EntropyColumns:
        """Raises ValueError where rows have statistics of different lengths, or some say a worth and others do not."""
        worths = [row.patch_worth_bits_N for row in rows]
        lacking = sum(worth is None for worth in worths)
        if 0 < lacking < len(rows):
            raise ValueError(f"{lacking} of {len(rows)} sequences do not say what their patches are worth")
        return EntropyColumns(
            **{name: np.array([getattr(row, name) for row in rows], np.float64) for name in _SUMS},
            patch_entropy_bits_BN=np.stack([row.patch_entropy_bits_N for row in rows]),
            patch_worth_bits_BN=None if lacking else np.stack([worth for worth in worths if worth is not None]),
        )

    @staticmethod
    def joined(parts: Sequence[EntropyColumns]) -> EntropyColumns:
        """The rows of several, one after another; raises ValueError as `of` does."""
        worths = [part.patch_worth_bits_BN for part in parts]
        if len({worth is None for worth in worths}) > 1:
            raise ValueError("some sequences do not say what their patches are worth, others do")
        names = [*_SUMS, "patch_entropy_bits_BN", *([] if worths[0] is None else ["patch_worth_bits_BN"])]
        return EntropyColumns(**{name: np.concatenate([getattr(part, name) for part in parts]) for name in names})


_SUMS = tuple(field.name for field in fields(EntropyColumns) if not field.name.startswith("patch_"))


@dataclass(frozen=True, slots=True, kw_only=True, eq=False, repr=False)
class TokenBatch(Sequence[TokenSequence]):
    """Token sequences of one grid; a sequence of `TokenSequence`, each of which is made when it is asked for.

    `codes` and `positions` are flat, their offsets int64 [B + 1]; `num_global_B` is int64 [B]. `global_frames` and
    `global_cells` are flat, with as many entries as there are globals, or None where no sequence has them.
    `num_frames` are those of the pixels where the grid has fewer. A slice is a batch, too, over the same memory.
    """

    codes: np.ndarray
    code_offsets: np.ndarray
    positions: np.ndarray
    position_offsets: np.ndarray
    num_global_B: np.ndarray
    grid: Grid
    entropy: EntropyColumns | None = None
    global_frames: np.ndarray | None = None
    global_cells: np.ndarray | None = None
    num_frames: int | None = None

    def __post_init__(self) -> None:
        num = len(self.num_global_B)
        for name, flat, offsets in (
            ("codes", self.codes, self.code_offsets),
            ("positions", self.positions, self.position_offsets),
        ):
            if len(offsets) != num + 1 or offsets[0] != 0 or offsets[-1] != len(flat):
                raise ValueError(f"{len(flat)} {name} and {len(offsets)} offsets of them for {num} sequences")
        if (self.global_frames is None) != (self.global_cells is None):
            raise ValueError("global_frames and global_cells go together")
        for name, places in (("global_frames", self.global_frames), ("global_cells", self.global_cells)):
            if places is not None and len(places) != self.num_global_B.sum():
                raise ValueError(f"{len(places)} {name} for {self.num_global_B.sum()} globals")

    @classmethod
    def of(cls, sequences: Sequence[TokenSequence]) -> TokenBatch:
        """The sequences as columns; a batch as it is.

        Raises ValueError where their grids differ, where only some have entropies or places of their globals, or where
        lengths do not fit together.
        """
        if isinstance(sequences, TokenBatch):
            return sequences
        first = sequences[0] if len(sequences) else None
        for number, sequence in enumerate(sequences):
            assert first is not None
            if sequence.grid != first.grid:
                raise ValueError(f"sequence {number} has grid {tuple(sequence.grid)}, the first {tuple(first.grid)}")
            if sequence.num_frames != first.num_frames:
                raise ValueError(f"sequence {number} is of {sequence.num_frames} frames, the first {first.num_frames}")
            if (sequence.entropy is None) != (first.entropy is None):
                raise ValueError(f"sequence {number} and the first: one has an entropy, the other has none")
            places = [None if of is None else len(of) for of in (sequence.global_frames, sequence.global_cells)]
            if places != [None if first.global_frames is None else sequence.num_global] * 2:
                raise ValueError(f"sequence {number}: {places} frames and cells for {sequence.num_global} globals")
        entropies = [sequence.entropy for sequence in sequences if sequence.entropy is not None]
        has_places = first is not None and first.global_frames is not None
        return cls(
            codes=_joined([sequence.codes for sequence in sequences]),
            code_offsets=_offsets([len(sequence.codes) for sequence in sequences]),
            positions=_joined([sequence.positions for sequence in sequences]),
            position_offsets=_offsets([len(sequence.positions) for sequence in sequences]),
            num_global_B=np.array([sequence.num_global for sequence in sequences], np.int64),
            grid=_NO_GRID if first is None else first.grid,
            entropy=EntropyColumns.of(entropies) if entropies else None,
            global_frames=_joined([s.global_frames for s in sequences]) if has_places else None,
            global_cells=_joined([s.global_cells for s in sequences]) if has_places else None,
            num_frames=None if first is None else first.num_frames,
        )

    @classmethod
    def joined(cls, batches: Sequence[TokenBatch]) -> TokenBatch:
        """The sequences of several batches, one after another; raises ValueError as `of` does."""
        batches = [batch for batch in batches if len(batch)]
        if len(batches) <= 1:
            return batches[0] if batches else cls.of([])
        first = batches[0]
        for batch in batches:
            if batch.grid != first.grid:
                raise ValueError(f"batches have grids {tuple(first.grid)} and {tuple(batch.grid)}")
            if batch.num_frames != first.num_frames:
                raise ValueError(f"batches are of {first.num_frames} and {batch.num_frames} frames")
            for name in ("entropy", "global_frames"):
                if (getattr(batch, name) is None) != (getattr(first, name) is None):
                    raise ValueError(f"some batches have {name}, others do not")
        entropies = [batch.entropy for batch in batches if batch.entropy is not None]
        has_places = first.global_frames is not None
        return cls(
            codes=_joined([batch.codes for batch in batches]),
            code_offsets=_offsets(np.concatenate([np.diff(batch.code_offsets) for batch in batches])),
            positions=_joined([batch.positions for batch in batches]),
            position_offsets=_offsets(np.concatenate([np.diff(batch.position_offsets) for batch in batches])),
            num_global_B=_joined([batch.num_global_B for batch in batches]),
            grid=first.grid,
            entropy=EntropyColumns.joined(entropies) if entropies else None,
            global_frames=_joined([batch.global_frames for batch in batches]) if has_places else None,
            global_cells=_joined([batch.global_cells for batch in batches]) if has_places else None,
            num_frames=first.num_frames,
        )

    def __len__(self) -> int:
        return len(self.num_global_B)

    def __repr__(self) -> str:
        return f"TokenBatch({len(self):,} sequences of grid {tuple(self.grid)}, {len(self.codes):,} tokens)"

    @property
    def num_tokens(self) -> int:
        """Of all sequences together."""
        return len(self.codes)

    @property
    def global_offsets(self) -> np.ndarray:
        """Where each sequence's part of `global_frames` and `global_cells` begins, int64 [B + 1]."""
        return _offsets(self.num_global_B)

    @overload
    def __getitem__(self, which: int) -> TokenSequence: ...
    @overload
    def __getitem__(self, which: slice) -> TokenBatch: ...
    def __getitem__(self, which: int | slice) -> TokenSequence | TokenBatch:
        if isinstance(which, slice):
            start, stop, step = which.indices(len(self))
            return self._part(start, max(start, stop)) if step == 1 else self.take(range(start, stop, step))
        row = as_index(which)
        if not -len(self) <= row < len(self):
            raise IndexError(f"sequence {row} of {len(self)}")
        return self._sequence(row % len(self), self.global_offsets)

    def __iter__(self) -> Iterator[TokenSequence]:
        global_offsets = self.global_offsets
        return (self._sequence(row, global_offsets) for row in range(len(self)))

    def take(self, rows: Sequence[int] | np.ndarray) -> TokenBatch:
        """These sequences, in this order; a row may come more than once. Raises IndexError where there is none."""
        rows_R = np.asarray(rows, np.int64)
        codes, code_offsets = _taken(self.codes, self.code_offsets, rows_R)
        positions, position_offsets = _taken(self.positions, self.position_offsets, rows_R)
        places = [
            None if flat is None else _taken(flat, self.global_offsets, rows_R)[0]
            for flat in (self.global_frames, self.global_cells)
        ]
        return TokenBatch(
            codes=codes,
            code_offsets=code_offsets,
            positions=positions,
            position_offsets=position_offsets,
            num_global_B=self.num_global_B[rows_R],
            grid=self.grid,
            entropy=None if self.entropy is None else self.entropy.each(lambda column: column[rows_R]),
            global_frames=places[0],
            global_cells=places[1],
            num_frames=self.num_frames,
        )

    def _part(self, start: int, stop: int) -> TokenBatch:
        codes, positions = (
            slice(int(offsets[start]), int(offsets[stop])) for offsets in (self.code_offsets, self.position_offsets)
        )
        first_global = int(self.num_global_B[:start].sum())
        globals_ = slice(first_global, first_global + int(self.num_global_B[start:stop].sum()))
        return TokenBatch(
            codes=self.codes[codes],
            code_offsets=self.code_offsets[start : stop + 1] - codes.start,
            positions=self.positions[positions],
            position_offsets=self.position_offsets[start : stop + 1] - positions.start,
            num_global_B=self.num_global_B[start:stop],
            grid=self.grid,
            entropy=None if self.entropy is None else self.entropy.each(lambda column: column[start:stop]),
            global_frames=None if self.global_frames is None else self.global_frames[globals_],
            global_cells=None if self.global_cells is None else self.global_cells[globals_],
            num_frames=self.num_frames,
        )

    def _sequence(self, row: int, global_offsets: np.ndarray) -> TokenSequence:
        places = slice(global_offsets[row], global_offsets[row + 1])
        return TokenSequence(
            codes=self.codes[self.code_offsets[row] : self.code_offsets[row + 1]],
            positions=self.positions[self.position_offsets[row] : self.position_offsets[row + 1]],
            num_global=int(self.num_global_B[row]),
            grid=self.grid,
            entropy=None if self.entropy is None else self.entropy.row(row),
            global_frames=None if self.global_frames is None else self.global_frames[places],
            global_cells=None if self.global_cells is None else self.global_cells[places],
            num_frames=self.num_frames,
        )


def _offsets(lengths: Sequence[int] | np.ndarray) -> np.ndarray:
    offsets = np.zeros(len(lengths) + 1, np.int64)
    np.cumsum(lengths, out=offsets[1:])
    return offsets


def _joined(arrays: Sequence[np.ndarray | None]) -> np.ndarray:
    return np.concatenate([array for array in arrays if array is not None]) if arrays else np.empty(0, np.int64)


def _taken(flat: np.ndarray, offsets: np.ndarray, rows_R: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    starts_R = offsets[:-1][rows_R]
    lengths_R = np.diff(offsets)[rows_R]
    new = _offsets(lengths_R)
    return flat[np.arange(new[-1]) + np.repeat(starts_R - new[:-1], lengths_R)], new
