"""A tokenizer the size of a ViT-B, with random weights: what a card does where it computes more than it launches."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor

from benchmarks.gpu.measure import Section, free_memory
from benchmarks.gpu.pictures import crops
from benchmarks.gpu.precisions import Mode, modes, tokenizer_in
from benchmarks.gpu.sections.machine import matmul_flops_per_s
from benchmarks.gpu.sections.speed import flops_an_image, of_batch, rate_of, told_rates
from tatok.model.autoencoder import TaTok, TaTokConfig
from tatok.model.checkpoint import Checkpoint, load_checkpoint
from tatok.model.prior import Prior

__all__ = ["checkpoint_like", "run"]

VIT_B = TaTokConfig(
    width=768,
    num_heads=12,
    num_global=25,
    num_trunk_layers=6,
    num_base_layers=2,
    num_refiner_layers=6,
    num_decoder_layers=12,
    num_prior_layers=3,
    prior_width=256,
    prior_rank=64,
)
SMALL = TaTokConfig(width=64, num_heads=2, num_global=25, codebook_size=64, num_prior_layers=1)


def checkpoint_like(config: TaTokConfig) -> Checkpoint:
    """Random weights and codebooks under the bundled checkpoint's DTF settings."""
    torch.manual_seed(0)
    model, prior = TaTok(config), Prior(config)
    for module in (model, prior):
        module.eval().requires_grad_(False)
    return Checkpoint(model=model, prior=prior, dtf=load_checkpoint().dtf, weights_sha256="random")


def of_mode(section: Section, mode: Mode, checkpoint: Checkpoint, pixels: Tensor) -> dict[str, Any]:
    """One batch in one mode."""
    with tokenizer_in(mode, section.device, checkpoint) as tokenizer:
        return of_batch(tokenizer, pixels, repetitions=2 if section.tiny else 5, parts=not mode.graphs)


def shares(told: Mapping[str, Any], flops: Mapping[str, float], ceiling: Mapping[str, Any] | None) -> dict[str, Any]:
    """How much of the card's arithmetic that is, and what a million images take."""
    rate = max(rate_of(told, name) for name in ("encode", "encode_ahead"))
    achieved = rate * flops.get("encode_gflop", 0.0) / 1e3
    return {
        "images_per_s": rate,
        "tflop_per_s": achieved,
        "device_tflop_per_s": told.get("device_images_per_s", 0.0) * flops.get("encode_gflop", 0.0) / 1e3,
        "decode_tflop_per_s": rate_of(told, "rebuild") * flops.get("decode_gflop", 0.0) / 1e3,
        "share_of_ceiling": achieved / ceiling["tflop_per_s"] if ceiling else None,
        "gpu_hours_a_million_images": 1e6 / rate / 3600 if rate else None,
    }


def run(section: Section) -> None:
    """bfloat16 first: what one would use."""
    side = 64 if section.tiny else 256
    checkpoint = checkpoint_like(SMALL if section.tiny else VIT_B)
    parameters = sum(each.numel() for each in checkpoint.model.parameters())
    section.attempt("parameters", lambda: {"millions": parameters / 1e6})
    # Counted before the weights go to the device: they are moved, not copied.
    flops: dict[str, float] = section.attempt("flops", lambda: flops_an_image(checkpoint, side)) or {}
    pixels = crops(section.photos, 2 if section.tiny else 256, side)
    ceilings: dict[str, Any] = {}
    order = ("bfloat16", "tf32", "float32")
    for mode in sorted(modes(section.device), key=lambda mode: (order.index(mode.precision), mode.graphs)):
        if mode.precision not in ceilings:
            ceilings[mode.precision] = section.attempt(
                f"{mode.precision}.ceiling",
                partial(matmul_flops_per_s, section.device, mode.precision, 256 if section.tiny else 8192),
            )
        slow = mode.precision == "float32"  # a second a batch of 256
        if slow and mode.graphs:
            continue
        for batch in (2,) if section.tiny else (64,) if slow else (256,):
            name = f"{mode.name}.batch_{batch}"
            found = section.attempt(name, partial(of_mode, section, mode, checkpoint, pixels[:batch]), needs_s=3)
            free_memory(section.device)
            if not found:
                continue
            told = section.attempt(f"{name}.shares", partial(shares, found, flops, ceilings[mode.precision]))
            if told:
                section.headline(
                    f"{mode.name} at {batch}: images/s encode/best/by parts {told_rates(found)}, "
                    f"{told['tflop_per_s']:.0f} TFLOP/s, {100 * (told['share_of_ceiling'] or 0):.0f}% of the ceiling"
                )
