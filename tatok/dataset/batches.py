"""What a training step gets: rows of tokens with their kinds and positions, packed, padded or one by one.

Shapes in names: T tokens of a batch, D documents (rows: images or clips), S the longest document.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from functools import lru_cache
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor

from tatok.schemas.records import Grid, count_text, grid_text

__all__ = ["PackedBatch", "PaddedBatch", "RowArrays", "RowsBatch", "TokenRow", "pack", "pad"]

State = Mapping[str, int | str]


class _Tensors:
    """Moves every tensor of a dataclass; DataLoader's pin_memory calls `pin_memory`.

    From a worker process the tensors travel as bytes, integers in as few as their values need: a pipe is quicker for a
    batch of some 50 KB than a piece of shared memory for each of its tensors, and no files stay open and no small
    /dev/shm fills up.
    """

    def __reduce_ex__(self, protocol: Any) -> Any:
        values = {f.name: getattr(self, f.name) for f in fields(self)}  # type: ignore[arg-type]
        if any(isinstance(value, Tensor) and value.device.type != "cpu" for value in values.values()):
            return super().__reduce_ex__(protocol)
        tensors = {name: value.detach().numpy() for name, value in values.items() if isinstance(value, Tensor)}
        narrow = {name: array.astype(_narrowest(array), copy=False) for name, array in tensors.items()}
        # One string of bytes and plain text: a pickled array takes as long as all of this.
        layout = tuple((name, each.dtype.str, tensors[name].dtype.str, each.shape) for name, each in narrow.items())
        others = {name: value for name, value in values.items() if name not in tensors}
        return _unpickled, (type(self), layout, b"".join(each.tobytes() for each in narrow.values()), others)

    def to(self, device: torch.device | str, *, non_blocking: bool = False) -> Self:
        """The same batch on another device."""
        return self._each(lambda tensor: tensor.to(device, non_blocking=non_blocking))

    def pin_memory(self) -> Self:
        """The same batch in page-locked memory."""
        return self._each(lambda tensor: tensor.pin_memory())

    def _each(self, move: Any) -> Self:
        tensors = {f.name: getattr(self, f.name) for f in fields(self)}  # type: ignore[arg-type]
        moved = {name: move(value) for name, value in tensors.items() if isinstance(value, Tensor)}
        return replace(self, **moved)  # type: ignore[type-var]


def _narrowest(array: np.ndarray) -> str | np.dtype[Any]:
    """The smallest type that holds all values of an array of integers; of any other array its own."""
    if array.dtype.kind not in "iu" or not array.size:
        return array.dtype
    low, high = int(array.min()), int(array.max())
    for size in (1, 2, 4):
        if low >= 0 and high < 1 << 8 * size:
            return f"u{size}"
        if -(1 << 8 * size - 1) <= low and high < 1 << 8 * size - 1:
            return f"i{size}"
    return array.dtype


def _unpickled(
    kind: type[Any], layout: Sequence[tuple[str, str, str, tuple[int, ...]]], content: bytes, others: Mapping[str, Any]
) -> Any:
    tensors, start = {}, 0
    for name, stored, wanted, shape in layout:
        array = np.frombuffer(content, dtype=stored, count=math.prod(shape), offset=start)
        tensors[name] = torch.from_numpy(array.astype(wanted).reshape(shape))
        start += array.nbytes
    return kind(**tensors, **others)


@dataclass(frozen=True, kw_only=True)
class TokenRow(_Tensors):
    """One image or clip of L tokens: M global codes, then K patch codes in raster order.

    `tokens` int64 [L], each in 0 .. vocab_size - 1 of its own kind's codebook; `kinds` int64 [L], 0 global and 1 patch;
    `positions` int32 [L, 3], the patch's (frame, row, column), -1 for globals; `grid` its (frames, height, width).
    Which frame and cell a clip's globals belong to is in the columns `global_frames` and `global_cells`.
    `columns` holds the further columns asked for; `row` numbers the row in the dataset, so that `dataset[row]` is it.
    """

    tokens: Tensor
    kinds: Tensor
    positions: Tensor
    grid: tuple[int, int, int]
    columns: Mapping[str, Any]
    row: int

    def __repr__(self) -> str:
        num_global, grid = int((self.kinds == 0).sum()), grid_text(Grid(*self.grid))
        what = f"{len(self.tokens):,} tokens, {num_global:,} of them global; grid {grid}"
        return f"TokenRow(row {self.row:,}: {what}{_and_columns(self.columns)})"


@dataclass(frozen=True, kw_only=True)
class PackedBatch(_Tensors):
    """Documents end to end, for variable-length attention; fields as in TokenRow, over all documents.

    `document_ids` int32 [T] is each token's document (for FlexAttention's block masks); `cu_seqlens` int32 [D + 1]
    and `max_seqlen` are what varlen attention kernels take. `grids` int32 [D, 3], `rows` int64 [D], `columns` lists of
    D. Where the batch was asked to be of a fixed size, padding is at the end: document -1, kind 0, token 0, in no
    document of `cu_seqlens`. `state` is what to save after training on this batch (see TokenStream.load_state_dict).
    """

    tokens: Tensor
    kinds: Tensor
    positions: Tensor
    document_ids: Tensor
    cu_seqlens: Tensor
    max_seqlen: int
    grids: Tensor
    columns: Mapping[str, list[Any]]
    rows: Tensor
    epoch: int
    state: State

    def __repr__(self) -> str:
        num, padding = int(self.cu_seqlens[-1]), len(self.tokens) - int(self.cu_seqlens[-1])
        padded = f" and {padding:,} of padding" if padding else ""
        what = f"{num:,} tokens of {count_text(len(self.rows), 'row')}{padded}; epoch {self.epoch}"
        return f"PackedBatch({what}{_and_columns(self.columns)})"


@dataclass(frozen=True, kw_only=True)
class PaddedBatch(_Tensors):
    """Documents side by side, padded at the end: fields as in TokenRow with shape [D, S], positions [D, S, 3].

    `mask` bool [D, S] is true at tokens; padding is token 0, kind 0, position -1. `lengths` int64 [D].
    """

    tokens: Tensor
    kinds: Tensor
    positions: Tensor
    mask: Tensor
    lengths: Tensor
    grids: Tensor
    columns: Mapping[str, list[Any]]
    rows: Tensor
    epoch: int
    state: State

    def __repr__(self) -> str:
        rows, longest = self.tokens.shape
        what = f"{rows:,} rows x {longest:,}, {int(self.lengths.sum()):,} of them tokens; epoch {self.epoch}"
        return f"PaddedBatch({what}{_and_columns(self.columns)})"


@dataclass(frozen=True, kw_only=True)
class RowsBatch:
    """Rows one by one, for a collation of one's own."""

    documents: tuple[TokenRow, ...]
    epoch: int
    state: State

    def __repr__(self) -> str:
        num_tokens = sum(len(document.tokens) for document in self.documents)
        return f"RowsBatch({count_text(len(self.documents), 'row')}, {num_tokens:,} tokens; epoch {self.epoch})"


def _and_columns(columns: Mapping[str, Any]) -> str:
    """Names alone: captions may be long."""
    names = list(columns)
    more = f" and {len(names) - 4} more" if len(names) > 4 else ""
    return f"; with {', '.join(names[:4])}{more}" if names else ""


@dataclass(frozen=True, slots=True, kw_only=True)
class RowArrays:
    """Rows of the token table as flat arrays: what every kind of batch is made from.

    `tokens` [T] are of the stored type. `entries` int32 [T] are 0 for a global token, 1 + its grid index for a patch.
    `num_tokens_D` and `rows_D` are int64, `grids_D3` int32.
    """

    tokens: np.ndarray
    entries: np.ndarray
    num_tokens_D: np.ndarray
    grids_D3: np.ndarray
    rows_D: np.ndarray
    columns: Mapping[str, list[Any]]

    @staticmethod
    def of(
        *,
        tokens: np.ndarray,
        places: np.ndarray,
        num_tokens_D: np.ndarray,
        num_global_D: np.ndarray,
        grids_D3: np.ndarray,
        rows_D: np.ndarray,
        columns: Mapping[str, list[Any]],
    ) -> RowArrays:
        """From the table's columns: `places` are the grid indices of all rows' patches, end to end."""
        is_patch = np.ones(len(tokens), dtype=bool)
        starts_D = np.cumsum(num_tokens_D) - num_tokens_D
        width = int(num_global_D.max(initial=0))
        if (num_global_D == width).all():
            is_patch[(starts_D[:, None] + np.arange(width)).ravel()] = False
        else:
            for start, num in zip(starts_D.tolist(), num_global_D.tolist(), strict=True):
                is_patch[start : start + num] = False
        entries = np.zeros(len(tokens), dtype=np.int32)
        entries[is_patch] = places.astype(np.int32) + 1
        return RowArrays(
            tokens=tokens,
            entries=entries,
            num_tokens_D=num_tokens_D,
            grids_D3=grids_D3,
            rows_D=rows_D,
            columns=columns,
        )

    def split(self, sizes: Sequence[int]) -> Iterator[RowArrays]:
        """The rows in consecutive groups of these sizes, sharing memory."""
        cuts = np.concatenate([[0], np.cumsum(self.num_tokens_D)])
        start = 0
        for size in sizes:
            stop = start + size
            yield RowArrays(
                tokens=self.tokens[cuts[start] : cuts[stop]],
                entries=self.entries[cuts[start] : cuts[stop]],
                num_tokens_D=self.num_tokens_D[start:stop],
                grids_D3=self.grids_D3[start:stop],
                rows_D=self.rows_D[start:stop],
                columns={name: values[start:stop] for name, values in self.columns.items()},
            )
            start = stop

    def _kinds(self) -> np.ndarray:
        return (self.entries != 0).astype(np.int64)

    def _positions(self) -> np.ndarray:
        if len(self.grids_D3) and (self.grids_D3 == self.grids_D3[0]).all():
            # Rows of 16 bytes are taken several times as fast as rows of 12.
            places = _positions_of_entries(*self.grids_D3[0].tolist())[self.entries.astype(np.int64)]
            columns, positions = places.view(np.int32).reshape(-1, 4), np.empty((len(places), 3), dtype=np.int32)
            for axis in range(3):
                positions[:, axis] = columns[:, axis]
            return positions
        grids = np.repeat(self.grids_D3, self.num_tokens_D, axis=0)
        rest, column = np.divmod(self.entries - 1, grids[:, 2])
        frame, row = np.divmod(rest, grids[:, 1])
        positions = np.stack([frame, row, column], axis=1)
        positions[self.entries == 0] = -1
        return positions

    def documents(self) -> tuple[TokenRow, ...]:
        """One TokenRow a row, in order."""
        kinds = self._kinds()
        tokens, positions = torch.from_numpy(self.tokens.astype(np.int64)), torch.from_numpy(self._positions())
        cuts = self.num_tokens_D.tolist()
        return tuple(
            TokenRow(
                tokens=t.clone(),
                kinds=k.clone(),
                positions=p.clone(),
                grid=tuple(grid),
                columns={name: values[number] for name, values in self.columns.items()},
                row=row,
            )
            for number, (t, k, p, grid, row) in enumerate(
                zip(
                    tokens.split(cuts),
                    torch.from_numpy(kinds).split(cuts),
                    positions.split(cuts),
                    self.grids_D3.tolist(),
                    self.rows_D.tolist(),
                    strict=True,
                )
            )
        )

    def packed(self, *, epoch: int = 0, state: State | None = None, size: int | None = None) -> PackedBatch:
        """All rows end to end; with `size`, padded to that many tokens."""
        num = len(self.num_tokens_D)
        tokens, kinds, positions = self.tokens.astype(np.int64), self._kinds(), self._positions()
        document_ids = np.repeat(np.arange(num, dtype=np.int32), self.num_tokens_D)
        cu_seqlens = np.zeros(num + 1, dtype=np.int32)
        np.cumsum(self.num_tokens_D, out=cu_seqlens[1:])
        if size is not None and size > len(tokens):
            padding = size - len(tokens)
            tokens, kinds = (np.concatenate([each, np.zeros(padding, dtype=np.int64)]) for each in (tokens, kinds))
            positions = np.concatenate([positions, np.full((padding, 3), -1, dtype=np.int32)])
            document_ids = np.concatenate([document_ids, np.full(padding, -1, dtype=np.int32)])
        return PackedBatch(
            tokens=torch.from_numpy(tokens),
            kinds=torch.from_numpy(kinds),
            positions=torch.from_numpy(positions),
            document_ids=torch.from_numpy(document_ids),
            cu_seqlens=torch.from_numpy(cu_seqlens),
            max_seqlen=int(self.num_tokens_D.max(initial=0)),
            grids=torch.from_numpy(self.grids_D3),
            columns=self.columns,
            rows=torch.from_numpy(self.rows_D),
            epoch=epoch,
            state=state or {},
        )

    def padded(self, *, epoch: int = 0, state: State | None = None) -> PaddedBatch:
        """All rows side by side."""
        kinds = self._kinds()
        mask = np.arange(int(self.num_tokens_D.max(initial=0))) < self.num_tokens_D[:, None]
        tokens, padded_kinds = np.zeros(mask.shape, dtype=np.int64), np.zeros(mask.shape, dtype=np.int64)
        positions = np.full((*mask.shape, 3), -1, dtype=np.int32)
        tokens[mask], padded_kinds[mask], positions[mask] = self.tokens, kinds, self._positions()
        return PaddedBatch(
            tokens=torch.from_numpy(tokens),
            kinds=torch.from_numpy(padded_kinds),
            positions=torch.from_numpy(positions),
            mask=torch.from_numpy(mask),
            lengths=torch.from_numpy(self.num_tokens_D),
            grids=torch.from_numpy(self.grids_D3),
            columns=self.columns,
            rows=torch.from_numpy(self.rows_D),
            epoch=epoch,
            state=state or {},
        )


@lru_cache(maxsize=64)
def _positions_of_entries(frames: int, height: int, width: int) -> np.ndarray:
    """(frame, row, column, 0) of each of RowArrays' entries, [N + 1] of 16 bytes: -1 for a global, then the grid."""
    places = np.zeros((frames * height * width + 1, 4), dtype=np.int32)
    places[0, :3] = -1
    places[1:, :3] = np.indices((frames, height, width), dtype=np.int32).reshape(3, -1).T
    return places.view(np.complex128)[:, 0]


def _arrays(documents: Sequence[TokenRow]) -> RowArrays:
    kinds = [document.kinds.numpy() for document in documents]
    places = []
    for document in documents:
        frame, row, column = document.positions[document.kinds == 1].long().numpy().T
        places.append((frame * document.grid[1] + row) * document.grid[2] + column)
    return RowArrays.of(
        tokens=np.concatenate([document.tokens.numpy() for document in documents]),
        places=np.concatenate(places),
        num_tokens_D=np.array([len(kind) for kind in kinds]),
        num_global_D=np.array([int((kind == 0).sum()) for kind in kinds]),
        grids_D3=np.array([document.grid for document in documents], dtype=np.int32),
        rows_D=np.array([document.row for document in documents]),
        columns={name: [document.columns[name] for document in documents] for name in documents[0].columns},
    )


def pack(documents: Sequence[TokenRow]) -> PackedBatch:
    """A DataLoader's collate_fn for a map-style TokenDataset: documents end to end."""
    return _arrays(documents).packed()


def pad(documents: Sequence[TokenRow]) -> PaddedBatch:
    """A DataLoader's collate_fn for a map-style TokenDataset: documents side by side, padded."""
    return _arrays(documents).padded()
