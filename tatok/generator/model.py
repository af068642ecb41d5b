"""A reference generator: what training on variable-length tokens, and sampling from them, looks like.

An autoregressive transformer over [class, globals, kept patches, end]. One step says where the next token is and
which code it is, so that positions cost no steps of their own: q(place | past) q(code | past, place). Places are the M
globals, then the N positions of the grid in raster order, then the end; kept patches ascend, so that places behind are
ruled out.

Fixed-rate tokens (all N patches, a lattice of them, or none) are the special case where places say nothing: under
`fixed_positions` the same transformer has no place head, no place-conditioned layer before the code heads and asks for
no end, as a plain GPT over codes. So the baseline does no work that it has no use for.

A kept set that is a function of the globals (criterion `content` or `entropy` in one round) says nothing either; who
runs the prior after the globals can give the places to `sample` as `positions`.

Shapes: B batch, A images that continue, S tokens, D width, M globals, N grid positions.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tatok.dataset.batches import PaddedBatch
from tatok.generator.config import GeneratorConfig
from tatok.generator.layers import Cache, CausalLayer
from tatok.generator.sampling import Continuing, Drawing, Sampled
from tatok.schemas.errors import ConfigError
from tatok.schemas.records import TokenSequence

__all__ = ["CACHE_GROWTH", "COMPACT_BELOW", "Generator", "GeneratorLoss"]

CACHE_GROWTH = 16
"""Steps by which the cache of keys and values grows: each growth copies it, and room that is not used is lost."""

COMPACT_BELOW = 0.9
"""`sample` drops finished images from its batch once fewer than this share of it continue."""


class GeneratorLoss(NamedTuple):
    """Negative log-likelihood in nats, summed over the batch, of the codes and of the places (with the ends)."""

    codes: Tensor
    places: Tensor


class Generator(nn.Module):
    """Class-conditional autoregressive transformer over token sequences."""

    def __init__(self, config: GeneratorConfig) -> None:
        super().__init__()
        self.config = config
        width, vocab_size = config.width, config.vocab_size
        has_patches = config.most_tokens > config.num_global
        self.embed_class = nn.Embedding(config.num_classes + 1, width)
        # Globals' codes, then patches': of kinds that never occur there are none.
        self._first_patch_code = vocab_size if config.num_global else 0
        self.embed_code = nn.Embedding(self._first_patch_code + has_patches * vocab_size, width)
        self.embed_place = nn.Embedding(config.end, width)
        self.layers = nn.ModuleList(CausalLayer(width, config.num_heads) for _ in range(config.num_layers))
        self.norm = nn.LayerNorm(width)
        if config.fixed_positions is None:
            self.place_head = nn.Linear(width, config.num_positions + 1)
            self.ask_place = nn.Embedding(config.end, width)
            self.code_trunk = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, width), nn.GELU(approximate="tanh"))
        if config.num_global:
            self.global_head = nn.Linear(width, vocab_size)
        if has_patches:
            self.patch_head = nn.Linear(width, vocab_size)
        for module in self.modules():
            if isinstance(module, nn.Linear | nn.Embedding):
                nn.init.normal_(module.weight, std=0.02)
            if isinstance(module, nn.Linear) and module.bias is not None:
                nn.init.zeros_(module.bias)
        for layer in self.layers:  # residual branches start small, so that depth does not raise the variance
            assert isinstance(layer, CausalLayer)
            for branch in (layer.projection, layer.contract):
                nn.init.normal_(branch.weight, std=0.02 / (2 * config.num_layers) ** 0.5)

    # --- training -------------------------------------------------------------------------------------------------

    def places(self, batch: PaddedBatch) -> Tensor:
        """Each token's place, int64 [B, S]; padding has the end's.

        Raises ConfigError where the batch's grid, number of globals or fixed positions are not the generator's.
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
        places_BS = torch.where(batch.mask, torch.where(is_global, order, in_grid), config.end)
        if config.fixed_positions is not None:
            fixed_S = self._fixed_places(places_BS.device)
            if places_BS.shape[1] != len(fixed_S) or (places_BS != fixed_S).any():
                raise ConfigError(
                    f"the generator is for sequences that all keep the same {len(config.fixed_positions)} positions; "
                    "the batch has others; train one without fixed_positions"
                )
        return places_BS

    def _fixed_places(self, device: torch.device) -> Tensor:
        config = self.config
        assert config.fixed_positions is not None
        kept = (config.num_global + position for position in config.fixed_positions)
        return torch.tensor([*range(config.num_global), *kept], device=device)

    def loss(self, batch: PaddedBatch, classes_B: Tensor) -> GeneratorLoss:
        """What it costs, in nats, to tell the batch's sequences; `classes_B` int64, num_classes for "any".

        Under autocast the transformer runs in its type; the losses are float32. Raises as `places` does.
        """
        config = self.config
        num_global = config.num_global
        places_BS = self.places(batch)
        if self.training and config.class_dropout:
            dropped_B = torch.rand(classes_B.shape) < config.class_dropout  # of the CPU's generator, on any device
            classes_B = classes_B.masked_fill(dropped_B.to(classes_B.device), config.num_classes)
        # State j knows the class and the tokens before the j-th; after the last token only an end could be asked for.
        told = slice(None) if config.fixed_positions is None else slice(None, -1)
        embedded = self._embed(batch.tokens[:, told], places_BS[:, told].clamp_max(config.end - 1))
        x = torch.cat([self.embed_class(classes_B)[:, None], embedded], dim=1)
        for layer in self.layers:
            x = layer(x)
        states = self.norm(x)

        places = states.new_zeros((), dtype=torch.float32)
        if config.fixed_positions is None:
            next_BS = F.pad(places_BS, (0, 1), value=config.end)
            last_BS = F.pad(places_BS, (1, 0), value=-1)
            asked = torch.arange(next_BS.shape[1], device=next_BS.device)
            asks_place = (asked >= num_global) & (asked <= batch.mask.sum(1, keepdim=True))
            logits = self._place_logits(states[asks_place], last_BS[asks_place])
            places = F.cross_entropy(logits, next_BS[asks_place] - num_global, reduction="sum")

        codes = states.new_zeros((), dtype=torch.float32)
        for kind, span in ((0, slice(0, num_global)), (1, slice(num_global, batch.tokens.shape[1]))):
            chosen = batch.mask[:, span]
            if chosen.any():
                logits = self._code_logits(states[:, span][chosen], places_BS[:, span][chosen], kind)
                codes = codes + F.cross_entropy(logits, batch.tokens[:, span][chosen], reduction="sum")
        return GeneratorLoss(codes, places)

    def _embed(self, codes: Tensor, places: Tensor) -> Tensor:
        is_patch = places >= self.config.num_global
        return self.embed_code(codes + is_patch * self._first_patch_code) + self.embed_place(places)

    def _place_logits(self, states_AD: Tensor, last_A: Tensor) -> Tensor:
        """Logits [A, N + 1] of the next grid position, or the end, after the place `last_A`; none behind it."""
        logits = self.place_head(states_AD).float()
        position = torch.arange(logits.shape[1], device=logits.device)
        return logits.masked_fill(position <= (last_A - self.config.num_global)[:, None], float("-inf"))

    def _code_logits(self, states_AD: Tensor, places_A: Tensor, kind: int) -> Tensor:
        head = self.patch_head if kind else self.global_head
        if self.config.fixed_positions is None:
            states_AD = self.code_trunk(states_AD + self.ask_place(places_A))
        logits: Tensor = head(states_AD)
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
        positions: Sequence[np.ndarray] | None = None,
        compact_below: float = COMPACT_BELOW,
    ) -> list[TokenSequence]:
        """One sequence a class, in order; Tokenizer.decode makes images of them.

        An image that has ended leaves the batch, so that the work is that of the tokens, not of the longest sequence:
        as soon as fewer than `compact_below` of the batch continue (0: never). That changes no sequence: every image's
        random numbers are drawn at the beginning. `generator` must be of the device of `classes_B`.
        `guidance` above 1 sharpens towards the class (logits any + guidance * (class - any), arXiv 2207.12598) at twice
        the work; `temperature` 0 takes the likeliest. The statistics of the sequences are NaN.

        `positions` are the grid indices that each image shall keep, ascending: only codes are drawn. The place head
        works all the same, so that sequences as long as real ones can be timed whatever the generator has learned.
        Raises ValueError where they do not fit the generator.
        """
        config, device, num = self.config, classes_B.device, len(classes_B)
        is_fixed = config.fixed_positions is not None
        told_BS = self._told_places(positions, num, device)
        uniform_BS2 = torch.rand(num, config.most_tokens, 2, generator=generator, device=device)
        drawing = Drawing(guidance=guidance, temperature=temperature, uniform_BS2=uniform_BS2)
        # Where the length is known, the room for it is taken at once; else memory follows the images that continue.
        caches = [Cache(config.most_tokens if is_fixed else CACHE_GROWTH) for _ in self.layers]
        batch = Continuing(num, caches, is_guided=drawing.is_guided, device=device)
        sampled = Sampled(num, config, device)
        place_A = torch.full((num,), -1, dtype=torch.int64, device=device)
        x = self.embed_class(drawing.classes(classes_B, config.num_classes))[:, None]
        for step in range(config.most_tokens):
            for layer, cache in zip(self.layers, caches, strict=True):
                x = layer(x, cache, step)
            states = self.norm(x[:, 0])
            place_A = self._next_places(states, place_A, step, batch.rows_A, drawing, told_BS)
            if step >= config.num_global and not is_fixed:  # else nothing can end
                alive_A = place_A < config.end
                num_alive = int(alive_A.sum())
                if num_alive == 0:
                    break
                if num_alive < compact_below * len(alive_A):
                    states, place_A = batch.keep(alive_A.nonzero()[:, 0], states, place_A)
            asked_A = drawing.both(place_A.clamp_max(config.end - 1))
            logits = self._code_logits(states, asked_A, kind=int(step >= config.num_global))
            code_A = drawing.draw(logits, batch.rows_A, step, 1)
            sampled.add(batch.rows_A, step, code_A, place_A)
            x = self._embed(drawing.both(code_A), asked_A)[:, None]
        return sampled.sequences()

    def _next_places(
        self, states: Tensor, place_A: Tensor, step: int, rows_A: Tensor, drawing: Drawing, told_BS: Tensor | None
    ) -> Tensor:
        """Where the next token of each image is, after its last place: a global's, drawn, or told; the end."""
        config = self.config
        last_A = place_A.clamp_max(config.end - 1)  # an image that has ended but is still here ends again
        if step < config.num_global:
            last_A = torch.full_like(last_A, step)
        elif config.fixed_positions is None:
            logits = self._place_logits(states, drawing.both(last_A))
            last_A = drawing.draw(logits, rows_A, step, 0) + config.num_global
        return last_A if told_BS is None else told_BS[rows_A, step]

    def _told_places(self, positions: Sequence[np.ndarray] | None, num: int, device: torch.device) -> Tensor | None:
        """The places that are known before sampling, int64 [B, S], the end's after the last; None where none are."""
        config = self.config
        if config.fixed_positions is not None:
            if positions is not None and any(tuple(kept) != config.fixed_positions for kept in positions):
                raise ValueError("this generator's sequences all keep its fixed_positions; give no others")
            return self._fixed_places(device).expand(num, -1)
        if positions is None:
            return None
        if len(positions) != num:
            raise ValueError(f"there are positions for {len(positions)} images, but {num} classes")
        told_BS = torch.full((num, config.most_tokens), config.end, dtype=torch.int64)
        told_BS[:, : config.num_global] = torch.arange(config.num_global)
        for number, kept in enumerate(positions):
            wide = np.concatenate([[-1], kept.astype(np.int64), [config.num_positions]])
            if (np.diff(wide) <= 0).any():
                raise ValueError(f"positions of image {number} must ascend within 0 .. {config.num_positions - 1}")
            stop = config.num_global + len(kept)
            told_BS[number, config.num_global : stop] = config.num_global + torch.from_numpy(wide[1:-1])
        return told_BS.to(device)
