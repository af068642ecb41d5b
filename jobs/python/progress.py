"""Events of a run -> its progress where Python runs: on a terminal, in a notebook, or only what went wrong."""

from __future__ import annotations

import logging
import sys
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from tatok.jobs.verbosity import Verbosity
from tatok.pipeline.monitoring.events import Event, Notice, OnEvent, ShardFailed, ShardRetried
from tatok.pipeline.monitoring.figures import Figures, RunFigures
from tatok.pipeline.monitoring.progress import ProgressDisplay

__all__ = ["in_notebook", "shown_progress"]

_REDRAWN_S = 0.5


def in_notebook() -> bool:
    """Whether this is the process of a notebook, which shows what IPython displays."""
    ipython = sys.modules.get("IPython")
    shell = None if ipython is None else ipython.get_ipython()
    return shell is not None and hasattr(shell, "kernel")


@contextmanager
def shown_progress(wanted: bool | None = None) -> Iterator[OnEvent]:
    """What to call with a run's events within the block.

    `wanted` None: one line, kept up to date, on a terminal and in a notebook; elsewhere notices, retries and failures
    alone. True: a line now and then elsewhere, too. False: only failures.
    """
    if in_notebook():
        with _without_widgets():
            if wanted is False:
                yield _tell_failures
                return
            line = _NotebookLine()
            yield line
            line.draw()
        return
    level = Verbosity.QUIET if wanted is False else Verbosity.NORMAL
    interval_s = 10.0 if wanted else float("inf")
    with ProgressDisplay(level=level, interval_s=interval_s) as terminal:
        yield terminal


@contextmanager
def _without_widgets() -> Iterator[None]:
    """Ray and its tqdm ask a notebook for ipywidgets as they are imported, which nothing here needs."""
    log = logging.getLogger("ray.widgets.util")
    before = log.level
    log.setLevel(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "IProgress not found")
            yield
    finally:
        log.setLevel(before)


def _tell_failures(event: Event) -> None:
    if isinstance(event, ShardFailed):
        print(f"giving up {event.shard.uri}: {event.reason}", file=sys.stderr)


class _NotebookLine:
    """One line below a cell that changes in place; what goes wrong is printed and stays."""

    def __init__(self) -> None:
        from IPython.display import display

        self._figures = RunFigures()
        self._drawn_at = time.monotonic()
        self._handle: Any = display({"text/plain": "starting"}, raw=True, display_id=True)

    def __call__(self, event: Event) -> None:
        self._figures.take(event)
        _tell_failures(event)
        match event:
            case ShardRetried():
                print(f"retrying {event.shard.uri}: {event.reason}", file=sys.stderr)
            case Notice():
                print(event.message, file=sys.stderr)
        if time.monotonic() - self._drawn_at >= _REDRAWN_S:
            self.draw()

    def draw(self) -> None:
        """Draw what is so now."""
        self._drawn_at = time.monotonic()
        self._handle.update({"text/plain": _line(self._figures.now())}, raw=True)


def _line(figures: Figures) -> str:
    fields = [f"shards {figures.num_committed:,} of {figures.num_shards:,}", f"rows {figures.num_rows:,}"]
    if figures.rows_per_s:
        fields.append(f"{figures.rows_per_s:,.1f} rows/s")
    fields += [f"tokens {figures.num_tokens:,}", f"rejects {figures.num_rejects:,}"]
    return "  ".join(fields)
