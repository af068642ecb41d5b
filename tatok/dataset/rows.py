"""Rows of the token table -> token sequences, ready to decode."""

from __future__ import annotations

import numpy as np
import pyarrow as pa

from tatok.schemas.errors import ConfigError
from tatok.schemas.records import EntropyStatistics, Grid, TokenSequence
from tatok.schemas.tokens import ENTROPY_COLUMNS

__all__ = ["token_sequences"]

_SCALARS = ("num_global_tokens", "grid_frames", "grid_height", "grid_width", *ENTROPY_COLUMNS)


def token_sequences(table: pa.Table) -> list[TokenSequence]:
    """The sequence of each row, in order, of a table read from a dataset's parts (whole rows, or the columns needed).

    Where the dataset has no `patch_entropy_bits`, that field holds NaN at every position; where it has no
    `patch_worth_bits`, that one is None. Where the dataset's tokenizer has no entropies, a sequence has none.
    Raises ConfigError where a column is missing.
    """
    missing = {"tokens", "positions", *_SCALARS} - set(table.column_names)
    if missing:
        raise ConfigError(f"the table lacks the columns {', '.join(sorted(missing))}; read them from the dataset too")
    scalars = [table.column(name).to_pylist() for name in _SCALARS]
    tokens, positions = _arrays(table, "tokens"), _arrays(table, "positions")
    # Datasets of schema version 1 hold images only.
    patches, worths, frames_of, cells_of = (
        _arrays(table, name) if name in table.column_names else [None] * len(table)
        for name in ("patch_entropy_bits", "patch_worth_bits", "global_frames", "global_cells")
    )
    of_pixels = table.column("num_frames").to_pylist() if "num_frames" in table.column_names else scalars[1]
    sequences = []
    for codes, places, entropy_N, worth_N, global_frames, global_cells, pixels_T, num_global, *grid_and_bits in zip(
        tokens, positions, patches, worths, frames_of, cells_of, of_pixels, *scalars, strict=True
    ):
        grid = Grid(*grid_and_bits[:3])
        sequences.append(
            TokenSequence(
                codes=codes,
                positions=places,
                num_global=num_global,
                grid=grid,
                entropy=_entropy(grid_and_bits[3:], entropy_N, worth_N, grid),
                global_frames=global_frames,
                global_cells=global_cells,
                num_frames=None if pixels_T == grid.frames else pixels_T,
            )
        )
    return sequences


def _entropy(
    bits: list[float | None], entropy_N: np.ndarray | None, worth_N: np.ndarray | None, grid: Grid
) -> EntropyStatistics | None:
    sums = {name: value for name, value in zip(ENTROPY_COLUMNS, bits, strict=True) if value is not None}
    if not sums:
        return None
    return EntropyStatistics(
        **sums,
        patch_entropy_bits_N=np.full(grid.num_positions, np.nan, np.float32)
        if entropy_N is None
        else entropy_N.astype(np.float32),
        patch_worth_bits_N=None if worth_N is None else worth_N.astype(np.float32),
    )


def _arrays(table: pa.Table, name: str) -> list[np.ndarray | None]:
    """The array of each row, None where it is null."""
    lists = (row.values for row in table.column(name))
    return [None if values is None else values.to_numpy(zero_copy_only=False) for values in lists]
