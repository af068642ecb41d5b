"""What a tokenized dataset asks of a generator: its shapes, its classes, and whether all rows keep the same places."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from os import PathLike

import numpy as np

from tatok.dataset.parts import TokenizedData, numbers
from tatok.schemas.errors import ConfigError

__all__ = ["GeneratorData"]

_SHAPES = ("num_global_tokens", "grid_frames", "grid_height", "grid_width")


@dataclass(frozen=True, slots=True, kw_only=True)
class GeneratorData:
    """A dataset as a generator sees it.

    `classes` is the sorted set of labels, empty where labels are not asked for. `fixed_positions` are the grid indices
    that every row keeps, where all rows keep the same, else None.
    """

    vocab_size: int
    num_global: int
    grid: tuple[int, int, int]
    classes: tuple[str, ...]
    fixed_positions: tuple[int, ...] | None
    tokenizer_weights_sha256: str

    @staticmethod
    def of(url: str | PathLike[str], *, unconditional: bool = False) -> GeneratorData:
        """Read the shapes and labels of every row, and the positions where all rows have equally many.

        Raises ConfigError where rows differ in grid or number of globals or lack a label; SourceError where there is no
        dataset.
        """
        data = TokenizedData.open(url)
        columns = [*_SHAPES, "num_patch_tokens", *([] if unconditional else ["label"])]
        table = data.read_all(columns)
        if not len(table):
            raise ConfigError(f"{data.url} has no rows; a generator needs some to learn from")
        shapes = [np.unique(numbers(table.column(name))) for name in _SHAPES]
        for name, values in zip(_SHAPES, shapes, strict=True):
            if len(values) > 1:
                raise ConfigError(
                    f"{data.url}: {name} differs between rows ({values[0]} to {values[-1]}); a generator is for images "
                    "of one size"
                )
        num_global, *grid = (int(values[0]) for values in shapes)
        labels: Sequence[str | None] = [] if unconditional else table.column("label").unique().to_pylist()
        if None in labels:
            raise ConfigError(
                f"{data.url} has {table.column('label').null_count:,} rows without a label (a .cls member of the "
                "source becomes one); train without classes: --unconditional"
            )
        return GeneratorData(
            vocab_size=data.vocab_size,
            num_global=num_global,
            grid=(grid[0], grid[1], grid[2]),
            classes=tuple(sorted(label for label in labels if label is not None)),
            fixed_positions=_fixed_positions(data, numbers(table.column("num_patch_tokens"))),
            tokenizer_weights_sha256=data.run.fingerprint.get("tokenizer.weights_sha256", ""),
        )


def _fixed_positions(data: TokenizedData, num_patches_R: np.ndarray) -> tuple[int, ...] | None:
    """Part by part, as far as they agree: variable-length datasets are told apart by their counts alone."""
    num = int(num_patches_R[0])
    if (num_patches_R != num).any():
        return None
    first: np.ndarray | None = None
    for part in data.parts:
        column = data.read(part.name, columns=["positions"]).column("positions").combine_chunks()
        kept_RK = numbers(column.flatten()).reshape(len(column), num)
        if not len(kept_RK):
            continue
        first = kept_RK[0] if first is None else first
        if (kept_RK != first).any():
            return None
    assert first is not None
    return tuple(first.tolist())
