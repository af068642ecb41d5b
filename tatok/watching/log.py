"""What a run says and keeps of its steps: records, curves, sheets of pictures, event files."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from tatok.watching.curves import curves
from tatok.watching.event_files import EventFiles
from tatok.watching.pace import clock
from tatok.watching.records import best, steps_over_all
from tatok.watching.sheets import PictureLine, sheet
from tatok.watching.terminal import Display

__all__ = ["RunLog"]

CURVES = "curves.svg"


class Files(Protocol):
    """The run's folder."""

    @property
    def records(self) -> list[dict[str, Any]]:
        """All records so far."""

    def add_record(self, record: Mapping[str, object]) -> None:
        """Add one."""

    def write(self, name: str, data: bytes) -> None:
        """Write or replace a file, atomically."""


class RunLog:
    """`best` is the words on the best held-out figure of the stage at hand, where there is one."""

    def __init__(self, folder: Files, display: Display, events: EventFiles | None) -> None:
        self.folder, self.display, self.events = folder, display, events
        self.best = ""

    def begin(self, stage: str, judged_by: str) -> None:
        """Another stage, whose quality is the figure `judged_by`."""
        found = best(self.folder.records, stage, judged_by)
        self.best = "" if found is None else f"best {judged_by} {found.value:.4g} at step {found.step}"

    def add(self, record: Mapping[str, Any], *, judged_by: str, steps_per_s: float, left_s: float) -> None:
        """Keep a record, and say it."""
        self.folder.add_record(record)
        self.begin(record["stage"], judged_by)
        words = [
            f"{name} {value:.4g}" if isinstance(value, float) else f"{name} {value}" for name, value in record.items()
        ]
        words += [self.best] if self.best else []
        self.display.say(f"{' '.join(words)} | {steps_per_s:.3g} steps/s, about {clock(left_s)} left")
        if self.events is not None:
            self.events.add(record, steps_over_all(self.folder.records)[-1])

    def show(self, name: str, lines: Sequence[PictureLine]) -> None:
        """Keep pictures, of the last record's step."""
        png = sheet(lines)
        self.folder.write(name, png)
        if self.events is not None:
            self.events.show(png, steps_over_all(self.folder.records)[-1])

    def draw(self) -> None:
        """Bring the curves up to date."""
        self.folder.write(CURVES, curves(self.folder.records).encode())
