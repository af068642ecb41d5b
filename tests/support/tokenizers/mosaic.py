"""A fixed-rate tokenizer that one can work out by hand: each patch is its mean colour, of four levels a channel."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch.nn.functional as F
from torch import Tensor, stack

from tatok.frozen.config import AdaptedConfig, Over
from tatok.frozen.model import AdaptedTaTok
from tatok.model.prior import Prior
from tatok.tokenizer.beneath import adapted_models

NAME = "tests.support.tokenizers.mosaic:load"


class Mosaic:
    vocab_size, patch_size = 64, 4

    def __init__(self, identity: str) -> None:
        self.identity = identity

    def encode(self, pixels: Tensor) -> Tensor:
        red, green, blue = (F.avg_pool2d(pixels.float(), 4) / 64).long().clamp(0, 3).unbind(1)
        return red * 16 + green * 4 + blue

    def embed(self, codes: Tensor) -> Tensor:
        return stack([codes // 16, codes // 4 % 4, codes % 4], dim=1).float()

    def decode_embedded(self, vectors: Tensor) -> Tensor:
        colours = (vectors * 64 + 32).round().clamp(0, 255).byte()
        return colours.repeat_interleave(4, dim=2).repeat_interleave(4, dim=3)

    def decode(self, codes: Tensor, height: int, width: int) -> Tensor:
        return self.decode_embedded(self.embed(codes))


def load(device: str, *, identity: str = "mosaic of May") -> Mosaic:
    return Mosaic(identity)


def mosaic_config(num_global: int = 4, **changes: Any) -> AdaptedConfig:
    sizes: Mapping[str, Any] = {
        "patch_size": 4,
        "codebook_size": 64,
        "code_dim": 3,
        "cell_size": 8,
        "num_global": num_global,
        "width": 32,
        "num_heads": 2,
        "num_trunk_layers": 1,
        "num_base_layers": 1,
        "num_prior_layers": 1,
        "num_refiner_layers": 0,
        "num_decoder_layers": 0,
        "over": Over(tokenizer=NAME),
    }
    return AdaptedConfig(**{**sizes, **changes})


def mosaic_models(num_global: int = 4, **changes: Any) -> tuple[AdaptedTaTok, Prior]:
    """Untrained models over the mosaic, with its codebook."""
    from tests.support.tiny_checkpoint import tiny_images

    model, prior = adapted_models(mosaic_config(num_global, **changes))
    model.start_from([model.canvas.working(tiny_images(32, seed=9).float() / 127.5 - 1)])
    model.eval(), prior.eval()
    return model, prior
