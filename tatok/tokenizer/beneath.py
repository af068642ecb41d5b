"""A model's frozen tokenizer, found by its name; and checkpoints of whatever kind, with what lies beneath them."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tatok.frozen.config import AdaptedConfig, FillSettings, Over
from tatok.frozen.model import AdaptedTaTok
from tatok.frozen.under import FrozenTokenizer
from tatok.model.autoencoder import TaTok
from tatok.model.checkpoint import Checkpoint, default_models, load_checkpoint, model_settings
from tatok.model.prior import Prior
from tatok.schemas.errors import ConfigError
from tatok.tokenizer.fixed_rate import FixedRate
from tatok.tokenizer.named import NamedTokenizer
from tatok.user_code import names_a_file

__all__ = ["adapted_models", "any_checkpoint", "frozen_tokenizer", "over_of"]

_NOT_ITS_OWN = ("torch",)  # of an identity: a checkpoint is not bound to a version, its datasets are


def over_of(name: str, options: Mapping[str, Any]) -> Over:
    """Which tokenizer a name and options stand for, with files and folders by their absolute paths; loads it once.

    A checkpoint is used from other folders than the one that it was made in. Raises ConfigError where it cannot be
    loaded, or cannot be adapted.
    """
    place, _, function = name.rpartition(":")
    whole = f"{os.path.abspath(os.path.expanduser(place))}:{function}" if names_a_file(name) else name
    found = {
        key: os.path.abspath(value) if isinstance(value, str) and os.path.exists(value) else value
        for key, value in options.items()
    }
    _, identity = _load(whole, found, "cpu")
    return Over(tokenizer=whole, options=found, identity=identity)


def frozen_tokenizer(over: Over) -> FrozenTokenizer:
    """The tokenizer; it is loaded when it is first asked."""
    return FrozenTokenizer(over, _load)


def adapted_models(config: AdaptedConfig) -> tuple[AdaptedTaTok, Prior]:
    """Models of these sizes over the tokenizer that the config names."""
    prior = Prior(config)
    return AdaptedTaTok(config, prior, frozen_tokenizer(config.over)), prior


def any_checkpoint(folder: str | Path | None = None) -> Checkpoint:
    """As `load_checkpoint`, of models over a frozen tokenizer, too; that tokenizer is loaded when it is asked."""
    return load_checkpoint(folder, make=_models)


def _models(values: Any, where: str) -> tuple[TaTok, Prior]:
    if not isinstance(values, dict) or "over" not in values:
        return default_models(values, where)
    parts = {
        "over": model_settings(Over, values["over"], f"{where}: over"),
        "fill": model_settings(FillSettings, values.get("fill", {}), f"{where}: fill"),
    }
    return adapted_models(model_settings(AdaptedConfig, {**values, **parts}, where))


def _load(name: str, options: Mapping[str, Any], device: str) -> tuple[Any, dict[str, str]]:
    tokenizer = NamedTokenizer.of(name, options).load(device)
    if not isinstance(tokenizer, FixedRate):
        raise ConfigError(
            f"{name} chooses its tokens itself; `tatok adapt` is for tokenizers that give every image of a size the "
            "same number of codes (tatok.tokenizer.protocol.FixedRateTokenizer)"
        )
    return tokenizer.inner, {key: text for key, text in tokenizer.identity.items() if key not in _NOT_ITS_OWN}
