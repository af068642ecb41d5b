"""A job's storage options -> this process's fsspec, which every URL is opened through."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from fsspec.config import conf

from schemas.errors import ConfigError

__all__ = ["storage_options", "use_storage"]


def use_storage(storage: Mapping[str, Mapping[str, Any]]) -> None:
    """Let every file system that this process opens from now on have the options of its URL's scheme.

    `storage` is `JobConfig.storage`; {env: NAME} stands for that variable of this process's environment, and the value
    goes nowhere else. Raises ConfigError where there is no such variable.
    """
    # fsspec's own place for defaults reaches plans, parts, checkpoints and whatever a library opens for us.
    conf.update(_resolved(storage))


@contextmanager
def storage_options(storage: Mapping[str, Mapping[str, Any]]) -> Iterator[None]:
    """`use_storage` for the time of a `with` block."""
    before = dict(conf)
    use_storage(storage)
    try:
        yield
    finally:
        conf.clear()
        conf.update(before)


def _resolved(storage: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    return {
        scheme: {name: _value(value, f"storage.{scheme}.{name}") for name, value in options.items()}
        for scheme, options in storage.items()
    }


def _value(value: Any, name: str) -> Any:
    if not isinstance(value, Mapping):
        return value
    if set(value) != {"env"}:
        return {key: _value(below, f"{name}.{key}") for key, below in value.items()}
    variable = str(value["env"])
    if variable not in os.environ:
        raise ConfigError(
            f"{name} refers to the environment variable {variable}, which is not set in this process; set it on every "
            "machine of the cluster, by its secrets or before `ray start`"
        )
    return os.environ[variable]
