"""The trainer of TaTok over a frozen tokenizer: that of `tatok train`, with other models and losses."""

from __future__ import annotations

import torch

from tatok.adaptation.losses import AdaptationLosses
from tatok.frozen.config import AdaptedConfig
from tatok.frozen.model import AdaptedTaTok
from tatok.model.checkpoint import Checkpoint
from tatok.model.prior import Prior
from tatok.schemas.errors import ConfigError
from tatok.tokenizer.beneath import adapted_models, any_checkpoint
from tatok.training.config import TrainingConfig
from tatok.training.trainer import Trainer

__all__ = ["AdaptationTrainer"]


class AdaptationTrainer(Trainer):
    """Trains globals and prior; `config.model` is an AdaptedConfig."""

    LOSSES = AdaptationLosses

    def __init__(self, config: TrainingConfig, device: torch.device, start_from: str | None = None) -> None:
        super().__init__(config, device, start_from)
        for model, prior in ((self.model, self.prior), self.averaged()):
            assert isinstance(model, AdaptedTaTok)
            model.asks(prior)

    def new_models(self) -> tuple[AdaptedTaTok, Prior]:
        """Untrained models over the tokenizer that the configuration names."""
        assert isinstance(self.config.model, AdaptedConfig)
        return adapted_models(self.config.model)

    def loaded(self, place: str) -> Checkpoint:
        """An adapted checkpoint to start from; raises ConfigError if it is one of other models."""
        checkpoint = any_checkpoint(place)
        if not isinstance(checkpoint.model, AdaptedTaTok):
            raise ConfigError(f"{place} is not over a frozen tokenizer; start from what `tatok adapt` wrote")
        return checkpoint
