"""How a generator is trained, what that has taken, and what it came to.

A budget is a number of steps, of training tokens or of seconds, so that generators of different token sequences can be
compared at equal tokens and at equal time. Warm-up and cosine follow the share of the budget that is spent, whichever
it is. Tokens are those of the sequences, without padding, class or end. Seconds are those of the steps, waiting for
their batches included; held-out losses, saving and logging are not counted.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from tatok.schemas.errors import ConfigError

__all__ = ["GeneratorRecipe", "HeldOutLoss", "Spent"]


@dataclass(frozen=True, slots=True, kw_only=True)
class GeneratorRecipe:
    """How a generator is trained; exactly one of the budgets `steps`, `tokens` and `seconds` is given.

    `batch_tokens` counts padding (rows of like length share a batch). `warmup_share` is that of the budget. The average
    of the weights, which sampling uses, is warmed up: its decay is min(ema_decay, (1 + step) / (10 + step)).
    """

    steps: int | None = None
    tokens: int | None = None
    seconds: float | None = None
    width: int = 256
    num_layers: int = 6
    num_heads: int = 4
    class_dropout: float = 0.1
    unconditional: bool = False
    batch_tokens: int = 8192
    learning_rate: float = 1e-3
    warmup_share: float = 0.05
    weight_decay: float = 0.05
    ema_decay: float = 0.999
    precision: Literal["float32", "bfloat16"] = "float32"
    seed: int = 0

    def __post_init__(self) -> None:
        budgets = [budget for budget in (self.steps, self.tokens, self.seconds) if budget is not None]
        if len(budgets) != 1 or not budgets[0] > 0:
            raise ConfigError(
                f"steps {self.steps}, tokens {self.tokens}, seconds {self.seconds}: give exactly one budget, above 0"
            )
        if self.precision not in ("float32", "bfloat16"):
            raise ConfigError(f"precision is {self.precision!r}; it must be float32 or bfloat16")

    def share(self, spent: Spent) -> float:
        """How much of the budget is spent, at most 1."""
        if self.steps is not None:
            return min(spent.steps / self.steps, 1.0)
        if self.tokens is not None:
            return min(spent.tokens / self.tokens, 1.0)
        assert self.seconds is not None
        return min(spent.seconds / self.seconds, 1.0)

    def learning_rate_at(self, share: float) -> float:
        """Linear warm-up from a hundredth, then a cosine down to a twentieth."""
        if share < self.warmup_share:
            return self.learning_rate * max(share / self.warmup_share, 0.01)
        progress = (share - self.warmup_share) / (1 - self.warmup_share)
        return self.learning_rate * (0.05 + 0.95 * 0.5 * (1 + math.cos(math.pi * progress)))


@dataclass(frozen=True, slots=True, kw_only=True)
class Spent:
    """What training has taken so far; see the module for what counts."""

    steps: int = 0
    images: int = 0
    tokens: int = 0
    seconds: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class HeldOutLoss:
    """Bits that the averaged weights need for an image of a dataset, codes and places apart, and its mean tokens."""

    num_images: int
    mean_tokens: float
    code_bits: float
    place_bits: float

    @property
    def bits(self) -> float:
        """Codes and places together."""
        return self.code_bits + self.place_bits
