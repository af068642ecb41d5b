"""Checkpoints of generators: a folder with model.safetensors and config.json; nothing in them is unpickled."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save

from tatok.checkpoint_files import CONFIG, WEIGHTS, CheckpointKind, checkpoint_folder, read_config
from tatok.generator.config import GeneratorConfig
from tatok.generator.model import Generator
from tatok.generator.recipe import GeneratorRecipe, HeldOutLoss, Spent
from tatok.schemas.errors import ConfigError

__all__ = ["EndedRun", "GeneratorCheckpoint", "ended_before", "load_generator", "save_generator"]

_GENERATOR = CheckpointKind(
    format="tatok-generator-1",
    name="a generator's checkpoint",
    made_by="tatok generator train",
    reader="this tatok reads no other as a generator",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class GeneratorCheckpoint:
    """A generator and what its numbers mean.

    `classes` are the labels: class i of the generator is `classes[i]`; none where it was trained without labels.
    `tokenizer_weights_sha256` names the tokenizer whose codes it speaks. `training` says how it was made, as JSON.
    """

    generator: Generator
    classes: tuple[str, ...]
    tokenizer_weights_sha256: str
    training: Mapping[str, Any] = field(default_factory=dict)

    def class_numbers(self, labels: list[str]) -> list[int]:
        """The class of each label. Raises ConfigError, which names the labels that there are, for an unknown one."""
        numbers = {label: number for number, label in enumerate(self.classes)}
        unknown = sorted(set(labels) - numbers.keys())
        if unknown:
            known = ", ".join(self.classes[:20]) + (", ..." if len(self.classes) > 20 else "")
            raise ConfigError(f"the generator knows no class {', '.join(unknown)}; it knows {known or 'none at all'}")
        return [numbers[label] for label in labels]


def save_generator(folder: str | Path, checkpoint: GeneratorCheckpoint) -> None:
    """Write a checkpoint, weights as float32; each file is written beside its place and renamed, the weights first."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    weights = checkpoint.generator.state_dict()
    tensors = {name: tensor.detach().float().cpu().contiguous() for name, tensor in weights.items()}
    (folder / (WEIGHTS + ".tmp")).write_bytes(save(tensors))
    os.replace(folder / (WEIGHTS + ".tmp"), folder / WEIGHTS)
    document = {
        "format": _GENERATOR.format,
        "model": asdict(checkpoint.generator.config),
        "classes": checkpoint.classes,
        "tokenizer_weights_sha256": checkpoint.tokenizer_weights_sha256,
        "training": checkpoint.training,
    }
    (folder / (CONFIG + ".tmp")).write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")
    os.replace(folder / (CONFIG + ".tmp"), folder / CONFIG)


def load_generator(folder: str | Path) -> GeneratorCheckpoint:
    """Load a checkpoint, of a folder or a URL: the generator on the CPU, in eval mode.

    Raises ConfigError, which names the file, where files are missing, damaged or do not fit each other.
    """
    document = read_config(folder, _GENERATOR)
    config_path, weights_path = f"{folder}/{CONFIG}", f"{folder}/{WEIGHTS}"
    generator = Generator(_config(document.get("model"), config_path))
    try:
        with checkpoint_folder(folder) as copy:
            generator.load_state_dict(load_file(copy / WEIGHTS))
    except SafetensorError as error:
        raise ConfigError(f"{weights_path} is damaged or not a safetensors file: {error}") from error
    except RuntimeError as error:  # torch's for names and shapes that do not fit
        raise ConfigError(f"{weights_path} does not fit {config_path}: {error}") from error
    try:
        return GeneratorCheckpoint(
            generator=generator.eval().requires_grad_(False),
            classes=tuple(document["classes"]),
            tokenizer_weights_sha256=document["tokenizer_weights_sha256"],
            training=document["training"],
        )
    except KeyError as error:
        raise ConfigError(f"{config_path} lacks {error}; train the generator again") from error


@dataclass(frozen=True, slots=True)
class EndedRun:
    """What a run that has ended came to on held-out rows, where it had some."""

    look: HeldOutLoss | None


def ended_before(config: bytes | None, recipe: GeneratorRecipe, spent: Spent) -> EndedRun | None:
    """What the config of a checkpoint says of the run that ended with it; None if that is none, or another run."""
    training = {} if config is None else json.loads(config).get("training", {})
    if training.get("recipe") != asdict(recipe) or training.get("spent") != asdict(spent):
        return None
    look = {name: value for name, value in training["heldout"].items() if name != "bits"}
    return EndedRun(HeldOutLoss(**look) if look else None)


def _config(values: Any, where: str) -> GeneratorConfig:
    expected = {each.name for each in fields(GeneratorConfig)}
    given = set(values) if isinstance(values, dict) else set()
    if given != expected:
        raise ConfigError(
            f"{where}: a generator's settings are {', '.join(sorted(expected))}; "
            f"unknown or missing: {', '.join(sorted(given ^ expected))}"
        )
    assert isinstance(values, dict)
    tuples: dict[str, Any] = {name: tuple(v) if isinstance(v, list) else v for name, v in values.items()}
    return GeneratorConfig(**tuples)
