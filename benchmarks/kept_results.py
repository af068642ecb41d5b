"""Results that take long: each is kept in a file and not made again; files of other settings are refused."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from pydantic import TypeAdapter

from tatok.schemas.errors import ConfigError

__all__ = ["once", "same_settings"]

T = TypeVar("T")


def same_settings(path: Path, settings: object) -> None:
    """Write them beside the results, or raise ConfigError where results of other settings are there."""
    text = json.dumps(settings, indent=1, sort_keys=True)
    if path.exists() and path.read_text() != text:
        raise ConfigError(f"{path.parent} has results of other settings; delete it, or choose another --work")
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


def once(path: Path, kind: type[T], make: Callable[[], T]) -> T:
    """What `make` returns, kept in a file and not made again."""
    if not path.exists():
        scratch = path.with_suffix(".tmp")
        scratch.write_bytes(TypeAdapter(kind).dump_json(make(), indent=1))
        os.replace(scratch, path)
    return TypeAdapter(kind).validate_json(path.read_bytes())
