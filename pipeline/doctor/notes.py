"""What the checks have found so far: each one's verdict, and its remedy."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from tatok.pipeline.storage.remedies import SILENT_REMEDY
from tatok.schemas.errors import TatokError

__all__ = ["Check", "Notes", "Verdict"]

Verdict = Literal["ok", "warning", "failed"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Check:
    """One thing that was looked at; `remedy` says what to do where it is not ok."""

    name: str
    verdict: Verdict
    message: str
    remedy: str = ""


class Notes:
    """The checks of one examination in order, each handed to `on_check` as it comes.

    `deadline_s` is how long one check of a store may take.
    """

    def __init__(self, on_check: Callable[[Check], None], deadline_s: float) -> None:
        self.checks: list[Check] = []
        self.deadline_s = deadline_s
        self.is_stuck = False  # a check was given up whose thread still waits for a store
        self._on_check = on_check

    def ok(self, name: str, message: str) -> None:
        """All is well."""
        self._add(name, "ok", message, "")

    def warn(self, name: str, message: str, remedy: str) -> None:
        """A job may run, and should not do so unseen."""
        self._add(name, "warning", message, remedy)

    def fail(self, name: str, message: str, remedy: str) -> None:
        """A job would fail."""
        self._add(name, "failed", message, remedy)

    def fail_by(self, name: str, error: TatokError) -> None:
        """What the error says, and what it says to do."""
        self.fail(name, str(error), error.remedy or "see the message")

    def give_up(self, name: str, what: str, seconds: float, remedy: str = SILENT_REMEDY) -> None:
        """A store did not answer within so many seconds."""
        self.is_stuck = True
        self.fail(name, f"{what}: no answer within {seconds:g} s", remedy)

    def _add(self, name: str, verdict: Verdict, message: str, remedy: str) -> None:
        check = Check(name=name, verdict=verdict, message=message, remedy=remedy)
        self.checks.append(check)
        self._on_check(check)
