"""Whether others use this machine, so that what is timed on it says little."""

from __future__ import annotations

import os
import time
from pathlib import Path

__all__ = ["busy_share", "why_busy"]

_BUSY = 0.25  # of the cores
_STAT = Path("/proc/stat")


def busy_share(seconds: float = 0.5) -> float:
    """The share of this machine's cores that are at work while this process sleeps; 0 where the system does not say."""
    before = _ticks()
    time.sleep(seconds)
    after = _ticks()
    if before is None or after is None or after[1] <= before[1]:
        return 0.0
    return (after[0] - before[0]) / (after[1] - before[1])


def why_busy() -> str | None:
    """What to say of figures that are measured now; None where the machine is idle enough. Takes half a second."""
    share = busy_share()
    if share <= _BUSY:
        return None
    return f"others kept {share:.0%} of this machine's {os.cpu_count()} cores busy"


def _ticks() -> tuple[int, int] | None:
    """Of all cores since the start: at work, and in all."""
    try:
        first = _STAT.read_text().partition("\n")[0].split()
    except OSError:
        return None
    user, nice, system, idle, waiting, *others = map(int, first[1:9])
    working = user + nice + system + sum(others)
    return working, working + idle + waiting
