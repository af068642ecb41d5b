"""Checkpoints: a folder with model.safetensors and config.json, read and written without unpickling anything."""

from __future__ import annotations

import hashlib
import json
import os
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import nn

from tatok.checkpoint_files import CONFIG, TOKENIZER, WEIGHTS, checkpoint_folder, read_config
from tatok.model.autoencoder import TaTok, TaTokConfig
from tatok.model.dtf import DTFSettings
from tatok.model.prior import Prior
from tatok.schemas.errors import ConfigError

__all__ = ["Checkpoint", "default_checkpoint", "load_checkpoint", "save_checkpoint", "write_dtf"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Checkpoint:
    """Models on the CPU in eval mode, DTF's settings, and the SHA-256 of the weights file."""

    model: TaTok
    prior: Prior
    dtf: DTFSettings
    weights_sha256: str


def default_checkpoint() -> Path:
    """The folder of the bundled checkpoint."""
    return Path(__file__).parents[1] / "weights"


def _modules(model: TaTok, prior: Prior) -> nn.ModuleDict:
    return nn.ModuleDict({"tatok": model, "prior": prior})


def save_checkpoint(folder: str | Path, model: TaTok, prior: Prior, dtf: DTFSettings) -> None:
    """Write a checkpoint; float weights are stored as float16, codebooks and pixel bases as float32.

    Each file is written beside its place and renamed, the weights first.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    modules = _modules(model, prior)
    exact = {name for name, _ in modules.named_buffers()}
    tensors = {
        name: (tensor if name in exact else tensor.half()).detach().cpu().contiguous()
        for name, tensor in modules.state_dict().items()
    }
    (folder / (WEIGHTS + ".tmp")).write_bytes(save(tensors))  # not save_file, which hides it from other users
    os.replace(folder / (WEIGHTS + ".tmp"), folder / WEIGHTS)
    _write_config(folder, model.config, dtf)


def _write_config(folder: Path, config: TaTokConfig, dtf: DTFSettings) -> None:
    document = {"format": TOKENIZER.format, "model": config.document(), "dtf": dtf.document()}
    (folder / (CONFIG + ".tmp")).write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")
    os.replace(folder / (CONFIG + ".tmp"), folder / CONFIG)


def write_dtf(folder: str | Path, dtf: DTFSettings) -> None:
    """Replace the DTF settings of a checkpoint, atomically; its weights stay as they are."""
    _write_config(Path(folder), load_checkpoint(folder).model.config, dtf)


T = TypeVar("T")


def _settings(kind: type[T], values: Any, where: str) -> T:
    known = {field.name for field in fields(kind)}  # type: ignore[arg-type]
    if not isinstance(values, dict) or set(values) - known:
        wrong = sorted(set(values) - known) if isinstance(values, dict) else values
        raise ConfigError(f"{where}: unknown settings for {kind.__name__}: {wrong}; was it made by a newer tatok?")
    return kind(**values)


def load_checkpoint(folder: str | Path | None = None) -> Checkpoint:
    """Load a checkpoint, of a folder or a URL (the default one where `folder` is None).

    Raises ConfigError, naming the file and the first misfits, where files are missing, damaged or do not fit.
    """
    place = default_checkpoint() if folder is None else folder
    document = read_config(place)
    with checkpoint_folder(place) as copy:
        return _loaded(document, copy / WEIGHTS, f"{place}/{CONFIG}", f"{place}/{WEIGHTS}")


def _loaded(document: dict[str, Any], file: Path, config_path: str, weights_path: str) -> Checkpoint:
    """A checkpoint of a config and of the weights in `file`, which messages call by their paths."""
    config = _settings(TaTokConfig, document.get("model"), config_path)
    dtf = _settings(DTFSettings, document.get("dtf"), config_path)
    try:
        tensors = load_file(file)
    except SafetensorError as error:
        raise ConfigError(f"{weights_path} is damaged or not a safetensors file: {error}") from error
    with torch.device("meta"):
        modules = _modules(TaTok(config), Prior(config))
    expected = modules.state_dict()
    misfits = [f"{name} is missing" for name in expected.keys() - tensors.keys()]
    misfits += [f"{name} is unknown" for name in tensors.keys() - expected.keys()]
    misfits += [
        f"{name} is {list(tensors[name].shape)}, expected {list(expected[name].shape)}"
        for name in expected.keys() & tensors.keys()
        if tensors[name].shape != expected[name].shape
    ]
    if misfits:
        raise ConfigError(
            f"{weights_path} does not fit {config_path}: {'; '.join(sorted(misfits)[:3])}"
            + (f"; and {len(misfits) - 3} more" if len(misfits) > 3 else "")
        )
    model, prior = TaTok(config), Prior(config)
    modules = _modules(model, prior)
    modules.load_state_dict({name: tensor.float() for name, tensor in tensors.items()})
    modules.eval().requires_grad_(False)
    with file.open("rb") as stream:
        weights_sha256 = hashlib.file_digest(stream, "sha256").hexdigest()
    return Checkpoint(model=model, prior=prior, dtf=dtf, weights_sha256=weights_sha256)
