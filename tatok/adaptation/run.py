"""`tatok adapt`: settings -> the training of a model over a frozen tokenizer, in one process or several."""

from __future__ import annotations

from dataclasses import fields
from functools import partial

import torch

from tatok.adaptation.settings import AdaptationConfig
from tatok.adaptation.trainer import AdaptationTrainer
from tatok.frozen.config import AdaptedConfig
from tatok.model.config import TaTokConfig
from tatok.schemas.errors import ConfigError
from tatok.tokenizer.beneath import frozen_tokenizer, over_of
from tatok.training.config import TrainingConfig
from tatok.training.run import train

__all__ = ["adapt", "train_adapted", "training_config"]

train_adapted = partial(train, trainer=AdaptationTrainer)
"""As `tatok.training.run.train`, of what `training_config` gives."""


def training_config(settings: AdaptationConfig) -> TrainingConfig:
    """The recipe, with the frozen tokenizer's sizes filled in; loads it, on the CPU.

    Raises ConfigError where it cannot be loaded or adapted, or the crops do not fit its grid.
    """
    over = over_of(settings.tokenizer, settings.tokenizer_options)
    frozen = frozen_tokenizer(over)
    cpu = torch.device("cpu")
    codebook_KC, patch_size = frozen.codebook(cpu), frozen.on(cpu).patch_size
    stages = settings.whole_stages
    for stage in stages:
        if stage.image_size % patch_size:
            raise ConfigError(
                f"stage {stage.name}: image_size is {stage.image_size}; {settings.tokenizer} needs a multiple of "
                f"{patch_size}"
            )
    sizes = {each.name: getattr(settings.model, each.name) for each in fields(TaTokConfig)}
    sizes |= {
        "patch_size": patch_size,
        "codebook_size": len(codebook_KC),
        "code_dim": codebook_KC.shape[1],
        "cell_size": settings.cell_positions * patch_size,
        "num_refiner_layers": 0,
        "num_decoder_layers": 0,
    }
    model = AdaptedConfig(**sizes, over=over, fill=settings.fill)
    shared = {name: getattr(settings, name) for name in TrainingConfig.model_fields}
    return TrainingConfig(**{**shared, "model": model, "stages": stages})


def adapt(settings: AdaptationConfig, device: torch.device, *, start_from: str | None = None) -> str:
    """Run all stages, or resume where the output left off, as `tatok train` does; returns the checkpoint's folder."""
    return train_adapted(training_config(settings), device, start_from=start_from)
