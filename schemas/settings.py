"""YAML files of settings -> validated, frozen pydantic models; unknown keys are errors."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError

from schemas.errors import ConfigError

__all__ = ["Section", "read_yaml", "validated"]


class Section(BaseModel):
    """A group of settings: immutable, and refuses keys that it does not know."""

    model_config = ConfigDict(frozen=True, extra="forbid")


AnySection = TypeVar("AnySection", bound=Section)


def read_yaml(path: str | Path) -> dict[str, Any]:
    """Read a YAML file of settings without validating them.

    Raises ConfigError, which names the file, where it cannot be read or is no mapping.
    """
    try:
        document = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"cannot read {path}: {error.strerror or error}") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} is not valid YAML: {error}") from error
    if not isinstance(document, dict):
        raise ConfigError(f"{path} must hold a mapping of settings, lines such as `output: data/tokens`")
    return document


def validated(kind: type[AnySection], document: Mapping[str, Any], *, origin: str) -> AnySection:
    """The settings in `document`; `origin` is how messages call the place they come from.

    Raises ConfigError, which names each wrong setting.
    """
    try:
        return kind.model_validate(document)
    except ValidationError as error:
        lines = [f"  {'.'.join(str(part) for part in e['loc']) or '(top level)'}: {e['msg']}" for e in error.errors()]
        raise ConfigError(f"{origin}: wrong settings\n" + "\n".join(lines)) from error
