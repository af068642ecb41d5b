"""The shapes of a generator."""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import pairwise

from tatok.schemas.errors import ConfigError

__all__ = ["GeneratorConfig"]


@dataclass(frozen=True, slots=True, kw_only=True)
class GeneratorConfig:
    """Shapes of the weights; label `num_classes` stands for "any class", as classifier-free guidance needs it.

    `fixed_positions` are the grid indices that every sequence keeps, ascending, where all sequences keep the same; None
    where they differ.
    """

    vocab_size: int
    num_global: int
    grid: tuple[int, int, int]
    num_classes: int
    width: int = 256
    num_layers: int = 6
    num_heads: int = 4
    class_dropout: float = 0.1
    fixed_positions: tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        if self.width % self.num_heads:
            raise ConfigError(f"width {self.width} is no multiple of num_heads {self.num_heads}")
        if self.fixed_positions is not None:
            places = (-1, *self.fixed_positions, self.num_positions)
            if any(later <= earlier for earlier, later in pairwise(places)):
                raise ConfigError(f"fixed_positions must ascend within 0 .. {self.num_positions - 1}")
        if not self.most_tokens:
            raise ConfigError("there is nothing to generate: no globals, and no position is ever kept")

    @property
    def num_positions(self) -> int:
        """N."""
        return math.prod(self.grid)

    @property
    def end(self) -> int:
        """The place that ends a sequence; those before it are the globals' and the grid's."""
        return self.num_global + self.num_positions

    @property
    def most_tokens(self) -> int:
        """Tokens of the longest sequence."""
        kept = self.num_positions if self.fixed_positions is None else len(self.fixed_positions)
        return self.num_global + kept
