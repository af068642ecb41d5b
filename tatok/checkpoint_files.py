"""A checkpoint's files, in a folder here or under a URL: what can be known of them before torch is loaded."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tatok.schemas.errors import ConfigError
from tatok.schemas.urls import filesystem_of

__all__ = ["CONFIG", "TOKENIZER", "WEIGHTS", "CheckpointKind", "check_checkpoint", "checkpoint_folder", "read_config"]

WEIGHTS, CONFIG = "model.safetensors", "config.json"
_MOST_HEADER_BYTES = 100_000_000  # the format's own bound


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckpointKind:
    """Whose checkpoint it is: how its config says so, and how messages do."""

    format: int | str
    name: str
    made_by: str
    reader: str

    @property
    def remedy(self) -> str:
        """What to name instead."""
        return f"name the folder that `{self.made_by}` wrote, or its URL"


TOKENIZER = CheckpointKind(format=1, name="a checkpoint", made_by="tatok train", reader="this tatok reads no other")


def check_checkpoint(place: str | os.PathLike[str], kind: CheckpointKind = TOKENIZER) -> None:
    """Raise ConfigError unless files of the kind are there, their config says so, and the weights are all there.

    Takes a listing and a few small reads: what loading would find out later, in other processes.
    """
    read_config(place, kind)
    path = _child(_text(place), WEIGHTS)
    with _answering(place):
        fs, inner = filesystem_of(path)
        num_bytes = fs.info(inner)["size"]
        with fs.open(inner, "rb", block_size=1 << 16) as file:
            header_bytes = int.from_bytes(file.read(8), "little")
            header = file.read(min(header_bytes, _MOST_HEADER_BYTES))
    try:
        tensors = {name: each for name, each in json.loads(header).items() if name != "__metadata__"}
        end = 8 + header_bytes + max(each["data_offsets"][1] for each in tensors.values())
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise ConfigError(f"{path} is damaged or not a safetensors file", remedy=kind.remedy) from error
    if num_bytes != end:
        raise ConfigError(f"{path} is damaged: it has {num_bytes:,} bytes, and its header describes {end:,}")


def read_config(place: str | os.PathLike[str], kind: CheckpointKind = TOKENIZER) -> dict[str, Any]:
    """The config of a checkpoint of this kind; raises ConfigError, which names the file, if it is none."""
    folder = _text(place)
    path = _child(folder, CONFIG)
    for each in (path, _child(folder, WEIGHTS)):
        with _answering(place):
            fs, inner = filesystem_of(each)
            fs.invalidate_cache()
            is_there = fs.isfile(inner)
        if not is_there:
            name = each.rpartition("/")[2]
            raise ConfigError(
                f"{folder} is not {kind.name}: {name} is missing (`{kind.made_by}` writes one)", remedy=kind.remedy
            )
    with _answering(place):
        fs, inner = filesystem_of(path)
        text = fs.cat_file(inner)
    try:
        document = json.loads(text)
    except ValueError as error:
        raise ConfigError(f"{path} is not valid JSON: {error}") from error
    if not isinstance(document, dict) or document.get("format") != kind.format:
        raise ConfigError(f"{path} is not of the format {kind.format!r}; {kind.reader}")
    return document


@contextmanager
def checkpoint_folder(place: str | os.PathLike[str]) -> Iterator[Path]:
    """The folder, or a copy of the one under a URL for the time of the block; raises ConfigError if it is silent."""
    folder = _text(place)
    if "://" not in folder:
        yield Path(folder)
        return
    with tempfile.TemporaryDirectory(prefix="tatok-checkpoint-") as copy:
        for name in (CONFIG, WEIGHTS):
            with _answering(place):
                fs, inner = filesystem_of(_child(folder, name))
                fs.get_file(inner, os.path.join(copy, name))
        yield Path(copy)


def _text(place: str | os.PathLike[str]) -> str:
    """A URL stays as it is: as a Path it would lose one of its slashes."""
    text = os.fspath(place)
    return text.rstrip("/") if "://" in text else os.path.expanduser(text)


def _child(folder: str, name: str) -> str:
    return f"{folder}/{name}" if "://" in folder else os.path.join(folder, name)


@contextmanager
def _answering(place: str | os.PathLike[str]) -> Iterator[None]:
    try:
        yield
    except (ImportError, ValueError) as error:
        raise ConfigError(
            f"cannot read the checkpoint {place}: {error}", remedy="install the scheme's fsspec package, or look at it"
        ) from error
    except Exception as error:  # every fsspec backend has exceptions of its own
        said = str(error) or type(error).__name__
        raise ConfigError(f"cannot read the checkpoint {place}: {said}; check the path and your permissions") from error
