"""A model's files, in a folder or on the Hugging Face hub; weights are read from safetensors, never unpickled."""

from __future__ import annotations

import hashlib
import importlib
import json
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from tatok.schemas.errors import ConfigError

__all__ = ["SavedModel", "checked_device", "fitted", "open_saved_model", "require", "tensors_sha256"]

_PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle")
_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")
_AS_SAFETENSORS = "name a folder that save_pretrained wrote, which writes safetensors"


def require(module: str, extra: str) -> ModuleType:
    """Import a module of an extra; raises ConfigError, which says how to install it, where that fails."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise ConfigError(
            f"this tokenizer needs {module}, which cannot be loaded ({error})", remedy=f"pip install 'tatok[{extra}]'"
        ) from error


def checked_device(device: str | torch.device) -> torch.device:
    """The device; raises ConfigError where torch does not have it."""
    try:
        chosen = torch.device(device)
    except RuntimeError as error:
        raise ConfigError(f"device is {device!r}: {error}") from error
    if chosen.type == "cuda" and not torch.cuda.is_available():
        raise ConfigError(f"device is {device!r}, but torch sees no CUDA device; use --device cpu")
    return chosen


@dataclass(frozen=True, slots=True, kw_only=True)
class SavedModel:
    """The files of one model: `place` is what messages call it, `names` are the files that it has.

    `fetch` gives a file of it as one on this machine, beside the others that were fetched.
    """

    place: str
    names: frozenset[str]
    fetch: Callable[[str], Path]

    def config(self) -> dict[str, Any]:
        """Its config.json; raises ConfigError where there is none."""
        if "config.json" not in self.names:
            raise ConfigError(f"{self.place} has no config.json", remedy=_AS_SAFETENSORS)
        return _json_object(self.fetch("config.json"))

    def weight_files(self, stem: str = "model") -> dict[str, str] | None:
        """The safetensors file of each tensor, by the index beside them; None where one file holds them all.

        Raises ConfigError where there are no safetensors under this stem, in other words where there is a pickle.
        """
        index = f"{stem}.safetensors.index.json"
        if index in self.names:
            files = _json_object(self.fetch(index)).get("weight_map")
            if not isinstance(files, dict) or not self.names.issuperset(map(str, files.values())):
                raise ConfigError(f"{self.place}: {index} names files that are not there; copy or download them again")
            return files
        if f"{stem}.safetensors" in self.names:
            return None
        pickles = sorted(name for name in self.names if name.endswith(_PICKLES))
        if pickles:
            raise ConfigError(
                f"{self.place} has its weights in {pickles[0]}, a pickle, which can run any code when it is read; "
                "tatok reads safetensors alone",
                remedy=f"load it where you trust it and save it again: {_AS_SAFETENSORS}",
            )
        there = ", ".join(sorted(self.names)[:8]) or "nothing"
        raise ConfigError(f"{self.place} has no {stem}.safetensors; it has {there}", remedy=_AS_SAFETENSORS)

    def part(self, ending: str) -> dict[str, Tensor]:
        """The tensors of the one module whose tensors include one of this ending, named as within that module.

        A model within a larger one is found by it, and files without any of it are not fetched. Raises ConfigError
        where there is no such tensor or several, or a file is damaged.
        """
        files = self.weight_files()
        if files is None:
            with self._opened("model.safetensors") as file:
                files = dict.fromkeys(file.keys(), "model.safetensors")
        prefixes = {name.removesuffix(ending) for name in files if name.endswith(ending)}
        if len(prefixes) != 1:
            raise ConfigError(f"{self.place} has {len(prefixes)} tensors named ...{ending}; a VQ model has one")
        prefix = prefixes.pop()
        wanted = [name for name in files if name.startswith(prefix)]
        tensors = {}
        for each in sorted({files[name] for name in wanted}):
            with self._opened(each) as file:
                found = set(file.keys())
                for name in wanted:
                    if files[name] == each and name in found:
                        tensors[name.removeprefix(prefix)] = file.get_tensor(name)
        return tensors

    @contextmanager
    def _opened(self, name: str) -> Iterator[Any]:
        try:
            with safe_open(self.fetch(name), framework="pt") as file:
                yield file
        except SafetensorError as error:
            raise ConfigError(f"{self.place}: {name} is damaged or not a safetensors file: {error}") from error


def open_saved_model(path: str, revision: str | None = None, subfolder: str = "") -> SavedModel:
    """What is in a folder, or in a repository of the hub (`owner/name`) at a revision.

    Raises ConfigError where there is neither, or the hub does not answer.
    """
    folder = Path(path).expanduser()
    if folder.is_dir():
        if revision is not None:
            raise ConfigError(f"{path} is a folder here, and tokenizer_options.revision is for the Hugging Face hub")
        folder /= subfolder
        names = frozenset(each.name for each in folder.iterdir()) if folder.is_dir() else frozenset()
        if not names:
            raise ConfigError(f"{folder} is not there, or empty; look at tokenizer_options.subfolder")
        return SavedModel(place=str(folder), names=names, fetch=folder.joinpath)
    if folder.is_file():
        what = "a pickle, which can run any code when it is read" if folder.suffix in _PICKLES else "a file"
        raise ConfigError(f"{path} is {what}; tokenizer_options.path is a folder or owner/name", remedy=_AS_SAFETENSORS)
    if not _HUB_ID.fullmatch(path):
        raise ConfigError(f"{path} is no folder here, nor the owner/name of a repository on the Hugging Face hub")
    return _on_the_hub(path, revision, subfolder)


def _on_the_hub(repository: str, revision: str | None, subfolder: str) -> SavedModel:
    hub = require("huggingface_hub", "hf")
    place = "/".join(filter(None, (repository, subfolder))) + (f" at {revision}" if revision else "")
    prefix = f"{subfolder.strip('/')}/" if subfolder else ""

    @contextmanager
    def answering() -> Iterator[None]:
        try:
            yield
        except Exception as error:  # the hub's own kinds, those of the HTTP client, and those of the disk
            said = (str(error) or type(error).__name__).splitlines()[0]
            raise ConfigError(
                f"{place}: there is no such folder here, and the Hugging Face hub says: {said}",
                remedy="look at the name and the revision; `hf auth login` where the repository is gated or private; "
                "or download it and name its folder",
            ) from error

    def fetch(name: str) -> Path:
        with answering():
            return Path(hub.hf_hub_download(repository, prefix + name, revision=revision))

    with answering():
        listed = hub.list_repo_files(repository, revision=revision)
    names = frozenset(each.removeprefix(prefix) for each in listed if each.startswith(prefix))
    return SavedModel(place=place, names=names, fetch=fetch)


def fitted(build: Callable[[], nn.Module], tensors: Mapping[str, Tensor], place: str) -> nn.Module:
    """The module with these weights, as float32, in eval mode; nothing of it is initialised at random.

    Tensors of children that it does not have (a decoder) may be left over. Raises ConfigError, naming the first
    misfits, where others are, or any is missing or of another shape.
    """
    with torch.device("meta"):
        module = build()
    expected = module.state_dict()
    children = {name for name, _ in module.named_children()}
    misfits = [f"{name} is missing" for name in expected.keys() - tensors.keys()]
    misfits += [f"{name} is unknown" for name in tensors.keys() - expected.keys() if name.partition(".")[0] in children]
    misfits += [
        f"{name} is {list(tensors[name].shape)}, expected {list(expected[name].shape)}"
        for name in expected.keys() & tensors.keys()
        if tensors[name].shape != expected[name].shape
    ]
    if misfits:
        more = f"; and {len(misfits) - 3} more" if len(misfits) > 3 else ""
        raise ConfigError(f"{place}: weights and config.json do not fit: {'; '.join(sorted(misfits)[:3])}{more}")
    exact = {name: _exact(tensor) for name, tensor in tensors.items() if name in expected}
    module.load_state_dict(exact, assign=True)
    return module.eval().requires_grad_(False)


def _exact(tensor: Tensor) -> Tensor:
    return tensor.float() if tensor.is_floating_point() else tensor


def tensors_sha256(tensors: Mapping[str, Tensor]) -> str:
    """SHA-256, hexadecimal, of tensors with their names, types and shapes: the same however files divide them."""
    digest = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name} {tensor.dtype} {list(tensor.shape)}\n".encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _json_object(path: Path) -> dict[str, Any]:
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ConfigError(f"{path} is not valid JSON: {error}") from error
    if not isinstance(document, dict):
        raise ConfigError(f"{path} does not hold a JSON object")
    return document
