"""Named text entries that tokens depend on, compared: those of runs, and those of processes."""

from __future__ import annotations

from collections.abc import Mapping

from tatok.schemas.errors import ConfigError

__all__ = ["describe_difference", "require_equal"]


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
