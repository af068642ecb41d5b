"""Checkpoints: a folder with model.safetensors and config.json, read and written without unpickling anything."""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Callable
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import nn
from torch.overrides import TorchFunctionMode

from tatok.autoencoders.canvas import LatentCanvas
from tatok.autoencoders.frozen import AutoencoderChoice, LatentSpace, open_autoencoder
from tatok.checkpoint_files import CONFIG, TOKENIZER, WEIGHTS, checkpoint_folder, read_config
from tatok.model.autoencoder import TaTok, TaTokConfig
from tatok.model.dtf import DTFSettings
from tatok.model.prior import Prior
from tatok.schemas.errors import ConfigError

__all__ = [
    "Checkpoint",
    "MakeModels",
    "default_checkpoint",
    "default_models",
    "load_checkpoint",
    "model_settings",
    "save_checkpoint",
    "write_dtf",
]

MakeModels = Callable[[Any, str], tuple[TaTok, Prior]]
"""Models with weights still to be loaded, of a config's `model` and the path that messages call it by."""

_FACTORIES = (torch.empty, torch.zeros, torch.ones, torch.full, torch.rand, torch.randn)
_TIMES_THE_WEIGHTS, _BESIDE_THE_WEIGHTS = 4, 1 << 22  # a model of twice the width still gets a closer message


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
    """Write a checkpoint; float weights are stored as float16, codebooks, pixel bases and canvases as float32.

    A frozen autoencoder beneath is named, with its hash; its weights are not copied. Each file is written beside its
    place and renamed, the weights first.
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
    document = {"format": TOKENIZER.format, "model": model.config.document(), "dtf": dtf.document()}
    if (over := model.canvas.document()) is not None:
        document["over"] = over
    _write_config(folder, document)


def _write_config(folder: Path, document: dict[str, Any]) -> None:
    (folder / (CONFIG + ".tmp")).write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")
    os.replace(folder / (CONFIG + ".tmp"), folder / CONFIG)


def write_dtf(folder: str | Path, dtf: DTFSettings) -> None:
    """Replace the DTF settings of a checkpoint, atomically; its weights stay as they are."""
    _write_config(Path(folder), {**read_config(folder), "dtf": dtf.document()})


T = TypeVar("T")


def model_settings(kind: type[T], values: Any, where: str) -> T:
    """The dataclass that a part of a config describes; raises ConfigError, calling it `where`, if it is another's."""
    known = {field.name for field in fields(kind)}  # type: ignore[arg-type]
    if not isinstance(values, dict) or set(values) - known:
        wrong = sorted(set(values) - known) if isinstance(values, dict) else values
        raise ConfigError(f"{where}: unknown settings for {kind.__name__}: {wrong}; was it made by a newer tatok?")
    return kind(**values)


def default_models(values: Any, where: str) -> tuple[TaTok, Prior]:
    """TaTok and its prior, of a config's `model`; raises ConfigError, calling it `where`, if it is another's."""
    if isinstance(values, dict) and "over" in values:
        raise ConfigError(f"{where}: it is over a frozen tokenizer, and cannot be used here")
    if isinstance(values, dict) and values.get("latents") is not None:
        values = {**values, "latents": model_settings(LatentSpace, values["latents"], where)}
    config = model_settings(TaTokConfig, values, where)
    return TaTok(config), Prior(config)


class _Room(TorchFunctionMode):
    """Within it, models may be made that are not much larger than the weights which they are to hold.

    A config may say anything. On the device "meta" a model would need no memory at all, but the first one there makes
    torch import its compiler: one and a half seconds, in every process that loads a checkpoint.
    """

    def __init__(self, num_values: int, misfit: str) -> None:
        super().__init__()
        self._left = _TIMES_THE_WEIGHTS * num_values + _BESIDE_THE_WEIGHTS
        self._misfit = misfit

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in _FACTORIES:
            sizes = args[0] if args and isinstance(args[0], tuple | list) else args
            self._left -= math.prod(size for size in sizes if isinstance(size, int))
            if self._left < 0:
                raise ConfigError(f"{self._misfit}: the config describes a model that is many times as large")
        return func(*args, **(kwargs or {}))


def _attach(canvas: LatentCanvas, over: Any, where: str) -> None:
    """Put the autoencoder that a config names beneath a model of its latents."""
    if not isinstance(over, dict):
        raise ConfigError(f"{where}: the model is of latents, but `over` names no autoencoder")
    canvas.attach(open_autoencoder(model_settings(AutoencoderChoice, over, where), torch.device("cpu")))


def load_checkpoint(folder: str | Path | None = None, *, make: MakeModels = default_models) -> Checkpoint:
    """Load a checkpoint, of a folder or a URL (the default one where `folder` is None); `make` knows its kinds.

    Raises ConfigError, naming the file and the first misfits, where files are missing, damaged or do not fit.
    """
    place = default_checkpoint() if folder is None else folder
    document = read_config(place)
    with checkpoint_folder(place) as copy:
        return _loaded(document, copy / WEIGHTS, f"{place}/{CONFIG}", f"{place}/{WEIGHTS}", make)


def _loaded(document: dict[str, Any], file: Path, config_path: str, weights_path: str, make: MakeModels) -> Checkpoint:
    """A checkpoint of a config and of the weights in `file`, which messages call by their paths."""
    dtf = model_settings(DTFSettings, document.get("dtf"), config_path)
    try:
        tensors = load_file(file)
    except SafetensorError as error:
        raise ConfigError(f"{weights_path} is damaged or not a safetensors file: {error}") from error
    with _Room(sum(tensor.numel() for tensor in tensors.values()), f"{weights_path} does not fit {config_path}"):
        model, prior = make(document.get("model"), config_path)
    modules = _modules(model, prior)
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
    modules.load_state_dict({name: tensor.float() for name, tensor in tensors.items()})
    modules.eval().requires_grad_(False)
    if isinstance(model.canvas, LatentCanvas):
        _attach(model.canvas, document.get("over"), config_path)
    with file.open("rb") as stream:
        weights_sha256 = hashlib.file_digest(stream, "sha256").hexdigest()
    return Checkpoint(model=model, prior=prior, dtf=dtf, weights_sha256=weights_sha256)
