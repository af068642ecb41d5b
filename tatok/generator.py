"""A reference generator: what training on variable-length tokens, and sampling from them, looks like.

An autoregressive transformer over [class, globals, kept patches, end]. One step says where the next token stands and
which code it is, so that positions cost no steps of their own: q(place | past) q(code | past, place). Places are the M
globals, then the N positions of the grid in raster order, then the end; kept patches ascend, so that places behind are
ruled out. A fixed-rate tokenizer's sequences (all N patches kept) are the special case where places say nothing.

Shapes: B batch, S tokens with the class before them, D width, H heads, E head dimension, M globals, N grid positions.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from schemas.errors import ConfigError
from schemas.records import EntropyStatistics, Grid, TokenSequence
from tatok.batches import PaddedBatch

__all__ = ["Generator", "GeneratorConfig", "GeneratorLoss"]

_CACHE_GROWTH = 32
_COMPACT_BELOW = 0.9  # drop finished images from the batch once fewer than this share go on


@dataclass(frozen=True, slots=True, kw_only=True)
class GeneratorConfig:
    """Shapes of the weights; label `num_classes` stands for "any class", as classifier-free guidance needs it."""

    vocab_size: int
    num_global: int
    grid: tuple[int, int, int]
    num_classes: int
    width: int = 256
    num_layers: int = 6
    num_heads: int = 4
    class_dropout: float = 0.1

    def __post_init__(self) -> None:
        if self.width % self.num_heads:
            raise ConfigError(f"width {self.width} is no multiple of num_heads {self.num_heads}")

    @property
    def num_positions(self) -> int:
        """N."""
        return math.prod(self.grid)

    @property
    def end(self) -> int:
        """The place that ends a sequence; those before it are the globals' and the grid's."""
        return self.num_global + self.num_positions


class GeneratorLoss(NamedTuple):
    """Negative log-likelihood in nats, summed over the batch, of the codes and of the places (with the ends)."""

    codes: Tensor
    places: Tensor


class _Cache:
    """Keys and values of one layer, [B, H, S, E], with room to grow."""

    def __init__(self) -> None:
        self.keys: Tensor | None = None
        self.values: Tensor | None = None

    def append(self, keys: Tensor, values: Tensor, length: int) -> tuple[Tensor, Tensor]:
        """Add one step after `length` earlier ones; all steps so far."""
        if self.keys is None or self.values is None:
            self.keys, self.values = keys[:, :, :0], values[:, :, :0]
        if self.keys.shape[2] == length:
            room = (0, 0, 0, _CACHE_GROWTH)
            self.keys, self.values = F.pad(self.keys, room), F.pad(self.values, room)
        self.keys[:, :, length : length + 1], self.values[:, :, length : length + 1] = keys, values
        return self.keys[:, :, : length + 1], self.values[:, :, : length + 1]

    def keep(self, rows: Tensor) -> None:
        """Go on with some of the images only."""
        assert self.keys is not None
        assert self.values is not None
        self.keys, self.values = self.keys[rows], self.values[rows]


class _CausalLayer(nn.Module):
    """Pre-norm causal self-attention and MLP."""

    def __init__(self, width: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.attention_norm, self.mlp_norm = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv = nn.Linear(width, 3 * width, bias=False)
        self.projection = nn.Linear(width, width)
        self.expand, self.contract = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x_BSD: Tensor, cache: _Cache | None = None, length: int = 0) -> Tensor:
        qkv = self.qkv(self.attention_norm(x_BSD)).unflatten(2, (3, self.num_heads, -1))
        query, key, value = qkv.permute(2, 0, 3, 1, 4)
        if cache is not None:
            key, value = cache.append(key, value, length)
        attended = F.scaled_dot_product_attention(query, key, value, is_causal=cache is None)
        x_BSD = x_BSD + self.projection(attended.transpose(1, 2).flatten(2))
        return x_BSD + self.contract(F.gelu(self.expand(self.mlp_norm(x_BSD)), approximate="tanh"))


class Generator(nn.Module):
    """Class-conditional autoregressive transformer over token sequences."""

    def __init__(self, config: GeneratorConfig) -> None:
        super().__init__()
        self.config = config
        width = config.width
        self.embed_class = nn.Embedding(config.num_classes + 1, width)
        self.embed_code = nn.Embedding(2 * config.vocab_size, width)
        self.embed_place = nn.Embedding(config.end, width)
        self.layers = nn.ModuleList(_CausalLayer(width, config.num_heads) for _ in range(config.num_layers))
        self.norm = nn.LayerNorm(width)
        self.place_head = nn.Linear(width, config.num_positions + 1)
        self.ask_place = nn.Embedding(config.end, width)
        self.code_trunk = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, width), nn.GELU(approximate="tanh"))
        self.global_head = nn.Linear(width, config.vocab_size)
        self.patch_head = nn.Linear(width, config.vocab_size)
        for module in self.modules():
            if isinstance(module, nn.Linear | nn.Embedding):
                nn.init.normal_(module.weight, std=0.02)
            if isinstance(module, nn.Linear) and module.bias is not None:
                nn.init.zeros_(module.bias)
        for layer in self.layers:  # residual branches start small, so that depth does not raise the variance
            assert isinstance(layer, _CausalLayer)
            for branch in (layer.projection, layer.contract):
                nn.init.normal_(branch.weight, std=0.02 / (2 * config.num_layers) ** 0.5)

    # --- training -------------------------------------------------------------------------------------------------

    def places(self, batch: PaddedBatch) -> Tensor:
        """Each token's place, int64 [B, S]; padding has the end's.

        Raises ConfigError where the batch's grid or number of globals is not the generator's.
        """
        config = self.config
        _, height, width = config.grid
        if (batch.grids != torch.tensor(config.grid, device=batch.grids.device)).any():
            raise ConfigError(f"the generator is for grids of {config.grid}; the batch has {batch.grids.unique(dim=0)}")
        is_global = (batch.kinds == 0) & batch.mask
        if (is_global.sum(1) != config.num_global).any():
            raise ConfigError(f"the generator is for {config.num_global} globals; the batch has other numbers of them")
        position = batch.positions.long()
        in_grid = (position[..., 0] * height + position[..., 1]) * width + position[..., 2] + config.num_global
        order = torch.arange(batch.tokens.shape[1], device=batch.tokens.device)
        return torch.where(batch.mask, torch.where(is_global, order, in_grid), config.end)

    def loss(self, batch: PaddedBatch, classes_B: Tensor) -> GeneratorLoss:
        """What it costs, in nats, to tell the batch's sequences; `classes_B` int64, num_classes for "any"."""
        config = self.config
        places_BS = self.places(batch)
        if self.training and config.class_dropout:
            dropped = torch.rand(classes_B.shape, device=classes_B.device) < config.class_dropout
            classes_B = classes_B.masked_fill(dropped, config.num_classes)
        embedded = self._embed(batch.tokens, places_BS.clamp_max(config.end - 1))
        x = torch.cat([self.embed_class(classes_B)[:, None], embedded], dim=1)
        for layer in self.layers:
            x = layer(x)
        states = self.norm(x)  # [B, S + 1, D]; state j knows the class and the tokens before the j-th

        next_BS = F.pad(places_BS, (0, 1), value=config.end)
        last_BS = F.pad(places_BS, (1, 0), value=-1)
        num_tokens = batch.mask.sum(1, keepdim=True)
        asked = torch.arange(next_BS.shape[1], device=next_BS.device)
        asks_place = (asked >= config.num_global) & (asked <= num_tokens)
        logits = self._place_logits(states[asks_place], last_BS[asks_place])
        places = F.cross_entropy(logits, next_BS[asks_place] - config.num_global, reduction="sum")

        codes = states.new_zeros(())
        for kind in (0, 1):
            chosen = batch.mask & (batch.kinds == kind)
            logits = self._code_logits(states[:, :-1][chosen], places_BS[chosen], kind)
            codes = codes + F.cross_entropy(logits, batch.tokens[chosen], reduction="sum")
        return GeneratorLoss(codes, places)

    def _embed(self, codes: Tensor, places: Tensor) -> Tensor:
        is_patch = places >= self.config.num_global
        return self.embed_code(codes + is_patch * self.config.vocab_size) + self.embed_place(places)

    def _place_logits(self, states_AD: Tensor, last_A: Tensor) -> Tensor:
        """Logits [A, N + 1] of the next grid position, or the end, after the place `last_A`; none behind it."""
        logits = self.place_head(states_AD).float()
        position = torch.arange(logits.shape[1], device=logits.device)
        return logits.masked_fill(position <= (last_A - self.config.num_global)[:, None], float("-inf"))

    def _code_logits(self, states_AD: Tensor, places_A: Tensor, kind: int) -> Tensor:
        head = self.patch_head if kind else self.global_head
        logits: Tensor = head(self.code_trunk(states_AD + self.ask_place(places_A)))
        return logits.float()

    # --- sampling -------------------------------------------------------------------------------------------------

    @torch.inference_mode()
    def sample(
        self,
        classes_B: Tensor,
        *,
        guidance: float = 1.0,
        temperature: float = 1.0,
        generator: torch.Generator | None = None,
    ) -> list[TokenSequence]:
        """One sequence a class, in order; Tokenizer.decode makes images of them.

        An image that has ended leaves the batch, so that the work is that of the tokens, not of the longest sequence.
        `guidance` above 1 sharpens towards the class (logits any + guidance * (class - any), arXiv 2207.12598) at twice
        the work; `temperature` 0 takes the likeliest. The statistics of the sequences are NaN.
        """
        config, device = self.config, classes_B.device
        num, most = len(classes_B), config.num_global + config.num_positions
        codes_BS = torch.zeros(num, most, dtype=torch.int64, device=device)
        places_BS = torch.full((num, most), config.end, dtype=torch.int64, device=device)
        lengths_B = torch.zeros(num, dtype=torch.int64, device=device)
        rows_A = torch.arange(num, device=device)  # which images go on
        last_A = torch.full((num,), -1, dtype=torch.int64, device=device)
        alive_A = torch.ones(num, dtype=torch.bool, device=device)
        caches = [_Cache() for _ in self.layers]
        guided = guidance != 1.0
        classes = torch.cat([classes_B, torch.full_like(classes_B, config.num_classes)]) if guided else classes_B
        x = self.embed_class(classes)[:, None]

        def mix(logits: Tensor) -> Tensor:
            if not guided:
                return logits
            conditional, free = logits.chunk(2)
            mixed = free + guidance * (conditional - free)
            return torch.where(conditional.isinf(), conditional, mixed)

        def draw(logits: Tensor) -> Tensor:
            if temperature == 0:
                return logits.argmax(-1)
            return torch.multinomial((logits / temperature).softmax(-1), 1, generator=generator)[:, 0]

        def both(values: Tensor) -> Tensor:
            return torch.cat([values, values]) if guided else values

        for step in range(most + 1):
            for layer, cache in zip(self.layers, caches, strict=True):
                x = layer(x, cache, step)
            states = self.norm(x[:, 0])
            if step < config.num_global:
                place_A = torch.full_like(last_A, step)
            else:
                place_A = draw(mix(self._place_logits(states, both(last_A)))) + config.num_global
            alive_A = alive_A & (place_A < config.end)
            num_alive = int(alive_A.sum())
            if num_alive == 0:
                break
            if num_alive < _COMPACT_BELOW * len(rows_A):
                kept = alive_A.nonzero()[:, 0]
                kept_both = torch.cat([kept, kept + len(rows_A)]) if guided else kept
                for cache in caches:
                    cache.keep(kept_both)
                states, place_A, rows_A, alive_A = states[kept_both], place_A[kept], rows_A[kept], alive_A[kept]
            place_A = place_A.clamp_max(config.end - 1)  # of an image that has ended but is still here
            kind = int(step >= config.num_global)
            code_A = draw(mix(self._code_logits(states, both(place_A), kind)))
            going = rows_A[alive_A]
            codes_BS[going, step], places_BS[going, step] = code_A[alive_A], place_A[alive_A]
            lengths_B[going] = step + 1
            last_A = place_A
            x = self._embed(both(code_A), both(place_A))[:, None]
        return _sequences(codes_BS, places_BS, lengths_B, config)


def _sequences(codes_BS: Tensor, places_BS: Tensor, lengths_B: Tensor, config: GeneratorConfig) -> list[TokenSequence]:
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
    code_dtype = np.uint16 if config.vocab_size <= 1 << 16 else np.uint32
    return [
        TokenSequence(
            codes=codes[:length].astype(code_dtype),
            positions=(places[config.num_global : length] - config.num_global).astype(np.uint16),
            num_global=config.num_global,
            grid=Grid(*config.grid),
            entropy=unknown,
        )
        for codes, places, length in zip(
            codes_BS.cpu().numpy(), places_BS.cpu().numpy(), lengths_B.tolist(), strict=True
        )
    ]
