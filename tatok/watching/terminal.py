"""Where a run speaks: bars and lines on a terminal, else lines alone, or the caller's function."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from rich.console import Console, RenderableType
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.text import Text

__all__ = ["Display", "StageBar", "display"]

LINE_EVERY_S = 10.0  # while something is counted and there is no bar


class _Bars(Progress):
    """Bars, and one line below them."""

    below = ""

    def get_renderables(self) -> Iterable[RenderableType]:
        """The table of bars, then the line, where there is one."""
        yield self.make_tasks_table(self.tasks)
        if self.below:
            yield Text(self.below, no_wrap=True, overflow="ellipsis", style="dim")


@dataclass(frozen=True, slots=True)
class StageBar:
    """The bar of a stage, which may be none."""

    _bars: _Bars
    _number: int

    def advance(self, below: str) -> None:
        """After a step; `below` is what stands under the bars from now on."""
        self._bars.below = below
        self._bars.advance(self._number)  # type: ignore[arg-type]


@dataclass(frozen=True, slots=True, kw_only=True)
class Display:
    """`say` prints a line, whoever listens; bars are there on a terminal."""

    say: Callable[[str], None]
    bars: _Bars

    @property
    def has_bars(self) -> bool:
        """Whether somebody sees them."""
        return not self.bars.disable

    def stage(self, name: str, total: int, completed: int) -> StageBar:
        """The bar of a stage of `total` steps."""
        return StageBar(self.bars, self.bars.add_task(name, total=total, completed=completed))

    @contextmanager
    def counting(self, what: str, total: int) -> Iterator[Callable[[int], None]]:
        """Show how many of `total` are done, while the block runs; the function counts so many more.

        Without bars it is said in lines: at first, every few seconds, and at the end.
        """
        self.say(f"{what}: {total:,}")
        task = self.bars.add_task(what, total=total)
        done, said_at = 0, time.monotonic()

        def count(number: int) -> None:
            nonlocal done, said_at
            done += number
            self.bars.advance(task, number)
            if not self.has_bars and time.monotonic() - said_at >= LINE_EVERY_S:
                self.say(f"{what}: {min(done, total):,} of {total:,}")
                said_at = time.monotonic()

        try:
            yield count
        finally:
            self.bars.remove_task(task)


@contextmanager
def display(say: Callable[[str], None] | None = None, *, is_quiet: bool = False) -> Iterator[Display]:
    """Speak to the terminal, or to `say` in its place; `is_quiet` to nobody."""
    console = Console(quiet=say is not None or is_quiet)
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(compact=True),
        TextColumn("left"),
    )
    with _Bars(*columns, console=console, disable=console.quiet or not console.is_terminal) as bars:

        def print_line(text: str) -> None:
            # Between words on a terminal; else each stays a line.
            bars.console.print(text, soft_wrap=not console.is_terminal, highlight=False, markup=False)

        yield Display(say=print_line if say is None or is_quiet else say, bars=bars)
        bars.below = ""
