"""The exceptions that tatok raises on purpose.

    TatokError
      ConfigError    a job file, a training file or an option is wrong
      SourceError    a source cannot be listed or a shard cannot be read
      DecodeError    one sample cannot be decoded (becomes a Reject, never ends a run)
      CommitError    a part cannot be published, or the output belongs to another run
      IncompleteError  a run that Python asked for ended before its dataset was complete

Every message names the URL, file or key concerned and what to do about it. All of them pickle, with what they carry.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

__all__ = [
    "CommitError",
    "ConfigError",
    "DecodeError",
    "IncompleteError",
    "SourceError",
    "TatokError",
    "together",
]


class TatokError(Exception):
    """Any error that tatok raises on purpose.

    `remedy`: what to do about it, where more is known than the message says; the command line shows it, and so do
    tracebacks.
    """

    def __init__(self, message: str = "", *, remedy: str | None = None) -> None:
        super().__init__(message)
        self.remedy = remedy
        if remedy is not None:
            self.add_note(f"remedy: {remedy}")


class ConfigError(TatokError):
    """A job file, training file, checkpoint or option is wrong."""


class SourceError(TatokError):
    """A source cannot be listed, or a shard cannot be opened or read to its end.

    `is_permanent`: trying again would end the same way (no such file, no permission).
    """

    def __init__(self, message: str = "", *, is_permanent: bool = False, remedy: str | None = None) -> None:
        super().__init__(message, remedy=remedy)
        self.is_permanent = is_permanent


class DecodeError(TatokError):
    """One sample cannot be decoded; `reason` is a short stable word that statistics group by."""

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(detail)
        self.reason = reason
        self.detail = detail

    def __reduce__(self) -> tuple[type[DecodeError], tuple[str, str]]:
        # Exceptions pickle by their args, which are what `super` was given; this one's constructor takes two.
        return (DecodeError, (self.reason, self.detail))


class CommitError(TatokError):
    """A part cannot be published, or the output already belongs to another run."""


class IncompleteError(TatokError):
    """A run ended before its dataset was complete; `summary`, a RunSummary, says what it did and what there is."""

    def __init__(self, message: str = "", *, summary: Any = None, remedy: str | None = None) -> None:
        super().__init__(message, remedy=remedy)
        self.summary = summary


def together(errors: Sequence[TatokError], what: str) -> TatokError:
    """One error that lists all of one or more, each once with its remedy; one alone is itself.

    `what` is what they stand in the way of. It is of their kind where all are of one, else a ConfigError.
    """
    different: dict[str, TatokError] = {}
    for error in errors:
        different.setdefault(str(error), error)
    if len(different) == 1:
        return errors[0]
    lines = [
        f"  {number}. {said}" + (f"\n     remedy: {error.remedy}" if error.remedy else "")
        for number, (said, error) in enumerate(different.items(), 1)
    ]
    kinds = {type(error) for error in errors}
    kind = kinds.pop() if len(kinds) == 1 else ConfigError
    return kind(f"{len(different)} things stand in the way of {what}:\n" + "\n".join(lines))
