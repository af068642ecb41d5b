"""How often each code and each grid position occurs in some row groups of a dataset.

Shape suffix: R rows of a row group.
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from tatok.dataset.parts import TokenizedData, numbers
from tatok.schemas.errors import SourceError
from tatok.schemas.records import Grid
from tatok.statistics.row_sample import RowGroup, num_readers

__all__ = ["TokenCounts", "count_tokens"]


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenCounts:
    """How often each code occurs, and each position of the rows that have the wanted grid.

    `global_counts` and `patch_counts` are int64 [vocab_size], `position_counts` is int64 [N of the grid];
    `num_grid_rows` counts the rows that have that grid.
    """

    global_counts: np.ndarray
    patch_counts: np.ndarray
    position_counts: np.ndarray
    num_grid_rows: int

    def __repr__(self) -> str:
        return (
            f"TokenCounts({self.global_counts.sum():,} global and {self.patch_counts.sum():,} patch tokens; "
            f"positions of {self.num_grid_rows:,} rows)"
        )


def count_tokens(
    data: TokenizedData, row_groups: Sequence[RowGroup], grid: Grid | None, *, codes: bool = True
) -> TokenCounts:
    """Count codes and positions; the memory is that of a few row groups, and 16 bytes a code of the codebook.

    Without `codes` these are not counted, nor looked at.

    Raises SourceError, which names the part, where a code is not below vocab_size or a position not on its grid.
    """
    vocab_size = data.vocab_size if codes else 0
    num_positions = grid.num_positions if grid is not None else 0

    def count(group: RowGroup) -> TokenCounts:
        names = ["tokens", "positions", "num_global_tokens", "grid_frames", "grid_height", "grid_width"]
        table = data.read(group.part, columns=names, row_groups=[group.number])
        counted = _count(table, vocab_size, grid, codes=codes)
        for kind, counts, limit in (
            ("code", counted.patch_counts, vocab_size),
            ("position", counted.position_counts, num_positions),
        ):
            if len(counts) > limit:
                raise SourceError(
                    f"{data.path(group.part)} holds the {kind} {len(counts) - 1}, which must be below {limit}; "
                    "the file is damaged: delete it and run the job again"
                )
        return counted

    total = TokenCounts(
        global_counts=np.zeros(vocab_size, np.int64),
        patch_counts=np.zeros(vocab_size, np.int64),
        position_counts=np.zeros(num_positions, np.int64),
        num_grid_rows=0,
    )
    num_grid_rows = 0
    with ThreadPoolExecutor(max_workers=num_readers(data)) as pool:
        for counted in pool.map(count, row_groups):
            total.global_counts[:] += counted.global_counts
            total.patch_counts[:] += counted.patch_counts
            total.position_counts[:] += counted.position_counts
            num_grid_rows += counted.num_grid_rows
    return TokenCounts(
        global_counts=total.global_counts,
        patch_counts=total.patch_counts,
        position_counts=total.position_counts,
        num_grid_rows=num_grid_rows,
    )


def _count(table: pa.Table, vocab_size: int, grid: Grid | None, *, codes: bool) -> TokenCounts:
    global_counts, patch_counts = _count_codes(table, vocab_size) if codes else (np.zeros(0, np.int64),) * 2
    positions, kept_R = _values_and_lengths(table.column("positions"))
    has_grid_R = np.full(len(table), grid is not None)
    for name, wanted in zip(("grid_frames", "grid_height", "grid_width"), grid or (), strict=False):
        has_grid_R &= numbers(table.column(name)) == wanted
    if not has_grid_R.all():
        positions = positions[np.repeat(has_grid_R, kept_R)]
    return TokenCounts(
        global_counts=global_counts,
        patch_counts=patch_counts,
        position_counts=np.bincount(positions, minlength=grid.num_positions if grid else 0),
        num_grid_rows=int(has_grid_R.sum()),
    )


def _count_codes(table: pa.Table, vocab_size: int) -> tuple[np.ndarray, np.ndarray]:
    """How often each code is a global's, and a patch's."""
    codes, lengths_R = _values_and_lengths(table.column("tokens"))
    num_global_R = numbers(table.column("num_global_tokens"))
    # The place in `codes` of every row's 1st, 2nd, ... global code.
    within = np.arange(num_global_R.sum()) - np.repeat(np.cumsum(num_global_R) - num_global_R, num_global_R)
    of_globals = np.bincount(codes[np.repeat(np.cumsum(lengths_R) - lengths_R, num_global_R) + within])
    of_all = np.bincount(codes, minlength=vocab_size)
    of_globals.resize(len(of_all))
    return of_globals, of_all - of_globals


def _values_and_lengths(lists: pa.ChunkedArray) -> tuple[np.ndarray, np.ndarray]:
    """All values of a column of lists end to end, and the length of each row's list."""
    whole = lists.combine_chunks()
    return numbers(whole.flatten()), np.diff(numbers(whole.offsets))
