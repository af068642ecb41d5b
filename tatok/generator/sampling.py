"""What sampling from a generator keeps from step to step: how tokens are drawn, who still continues, what was drawn.

Shapes: B images, A images that continue, S tokens, V choices.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from tatok.generator.config import GeneratorConfig
from tatok.generator.layers import Cache
from tatok.schemas.records import EntropyStatistics, Grid, TokenSequence
from tatok.schemas.tokens import code_dtype

__all__ = ["Continuing", "Drawing", "Sampled"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Drawing:
    """How tokens are drawn. `uniform_BS2` are every image's random numbers, for the place and the code of each step.

    Under guidance the transformer runs over the images twice: with their classes, then with "any".
    """

    guidance: float
    temperature: float
    uniform_BS2: Tensor

    @property
    def is_guided(self) -> bool:
        """Whether the class is sharpened."""
        return self.guidance != 1.0

    def classes(self, classes_B: Tensor, any_class: int) -> Tensor:
        """The classes that the transformer runs over."""
        return torch.cat([classes_B, torch.full_like(classes_B, any_class)]) if self.is_guided else classes_B

    def both(self, values_A: Tensor) -> Tensor:
        """The same for both runs."""
        return torch.cat([values_A, values_A]) if self.is_guided else values_A

    def draw(self, logits: Tensor, rows_A: Tensor, step: int, which: int) -> Tensor:
        """A choice for each image: its place (`which` 0) or its code (1); logits as the transformer gives them."""
        if self.is_guided:
            conditional, free = logits.chunk(2)
            logits = torch.where(conditional.isinf(), conditional, free + self.guidance * (conditional - free))
        return _draw(logits, self.temperature, self.uniform_BS2[rows_A, step, which])


class Continuing:
    """The images of the batch that have not ended (`rows_A`), and the layers' caches of them."""

    def __init__(self, num_images: int, caches: Sequence[Cache], *, is_guided: bool, device: torch.device) -> None:
        self.rows_A = torch.arange(num_images, device=device)
        self.caches = caches
        self._is_guided = is_guided

    def keep(self, kept_A: Tensor, states: Tensor, place_A: Tensor) -> tuple[Tensor, Tensor]:
        """Drop the others; returns the rest of the states and places."""
        both = torch.cat([kept_A, kept_A + len(self.rows_A)]) if self._is_guided else kept_A
        for cache in self.caches:
            cache.keep(both)
        self.rows_A = self.rows_A[kept_A]
        return states[both], place_A[kept_A]


class Sampled:
    """The tokens of all images so far."""

    def __init__(self, num_images: int, config: GeneratorConfig, device: torch.device) -> None:
        shape = (num_images, config.most_tokens)
        self._config = config
        self._codes_BS = torch.zeros(shape, dtype=torch.int64, device=device)
        self._places_BS = torch.full(shape, config.end, dtype=torch.int64, device=device)
        self._lengths_B = torch.zeros(num_images, dtype=torch.int64, device=device)

    def add(self, rows_A: Tensor, step: int, code_A: Tensor, place_A: Tensor) -> None:
        """One step's tokens; ended images that are still here get no longer."""
        self._codes_BS[rows_A, step], self._places_BS[rows_A, step] = code_A, place_A
        self._lengths_B[rows_A] += place_A < self._config.end

    def sequences(self) -> list[TokenSequence]:
        """Their statistics are NaN."""
        config = self._config
        nan = float("nan")
        unknown = EntropyStatistics(
            entropy_bits=nan,
            kept_entropy_bits=nan,
            residual_bits=nan,
            surprisal_bits=nan,
            entropy_mean_bits=nan,
            entropy_max_bits=nan,
            patch_entropy_bits_N=np.full(config.num_positions, nan, dtype=np.float32),
        )
        return [
            TokenSequence(
                codes=codes[:length].astype(code_dtype(config.vocab_size)),
                positions=(places[config.num_global : length] - config.num_global).astype(np.uint16),
                num_global=config.num_global,
                grid=Grid(*config.grid),
                entropy=unknown,
            )
            for codes, places, length in zip(
                self._codes_BS.cpu().numpy(), self._places_BS.cpu().numpy(), self._lengths_B.tolist(), strict=True
            )
        ]


def _draw(logits_AV: Tensor, temperature: float, uniform_A: Tensor) -> Tensor:
    """An index of each row by its probability: where its uniform number in [0, 1) falls in the cumulative sum.

    One random number a draw; torch.multinomial takes V, a fifth of the sampling time on a CPU.
    """
    if temperature == 0:
        return logits_AV.argmax(-1)
    cumulative = (logits_AV / temperature).softmax(-1).cumsum(-1)
    wanted = uniform_A[:, None] * cumulative[:, -1:]
    # right: of several equal sums the last one's successor, so that nothing of probability 0 is chosen
    return torch.searchsorted(cumulative, wanted, right=True)[:, 0].clamp_max(logits_AV.shape[1] - 1)
