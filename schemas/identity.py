"""What makes rows the same ones: the id of each, and the named entries that all of a run's tokens depend on."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping

from tatok.schemas.errors import ConfigError

__all__ = ["describe_difference", "require_equal", "sample_id"]


def sample_id(uri: str, index: int, key: str, clip_index: int = 0) -> str:
    """128 bits in hex that name one row: unique in a dataset, equal in every run over the same source.

    It names the place, not the bytes: a source at another address gives other ids, and the column sha256 (with key)
    is what finds the same photo again. Hashing the bytes instead would give two copies of one photo one id, and a
    sample that cannot be read none.
    """
    clip = f"\0{clip_index}" if clip_index else ""
    return hashlib.sha256(f"{uri}\0{index}\0{key}{clip}".encode()).hexdigest()[:32]


def describe_difference(old: Mapping[str, str], new: Mapping[str, str]) -> list[str]:
    """The entries that differ, as lines `name: old -> new`."""
    return [
        f"{name}: {old.get(name, '(none)')} -> {new.get(name, '(none)')}"
        for name in sorted({*old, *new})
        if old.get(name) != new.get(name)
    ]


def require_equal(what: str, expected: Mapping[str, str], found: Mapping[str, str]) -> None:
    """Raise ConfigError, which lists what differs, where two processes of a run would give other tokens."""
    lines = describe_difference(expected, found)
    if lines:
        raise ConfigError(
            f"the {what} processes differ, so their tokens would too:\n  "
            + "\n  ".join(lines)
            + "\ninstall the same packages and checkpoint on every node"
        )
