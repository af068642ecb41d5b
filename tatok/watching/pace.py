"""How long a training still takes, from how fast its steps were."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

__all__ = ["StageWork", "clock", "seconds_left"]


@dataclass(frozen=True, slots=True, kw_only=True)
class StageWork:
    """What a stage still has to do: at most so many steps, of `pixels` each, and at most so many seconds."""

    steps: int
    pixels: int
    most_seconds: float | None = None


def seconds_left(stages: Sequence[StageWork], seconds_a_step: float) -> float:
    """Seconds that stages take, of which the first one's steps take `seconds_a_step` and others' by their pixels.

    What a stage's losses cost beside the model is not known before it: an estimate.
    """
    total = 0.0
    for stage in stages:
        seconds = stage.steps * seconds_a_step * stage.pixels / stages[0].pixels
        total += seconds if stage.most_seconds is None else min(seconds, stage.most_seconds)
    return total


def clock(seconds: float) -> str:
    """0:06:41, or 2 days 3:04:05."""
    days, rest = divmod(round(seconds), 86_400)
    minutes, second = divmod(rest, 60)
    text = f"{minutes // 60}:{minutes % 60:02}:{second:02}"
    return f"{days} day{'s' * (days > 1)} {text}" if days else text
