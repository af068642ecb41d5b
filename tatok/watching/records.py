"""Records of a training (a line of metrics.jsonl each): how many steps they span, and the best of a figure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tatok.watching.pace import clock

__all__ = ["Best", "best", "said_of_end", "steps_over_all"]

Record = Mapping[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Best:
    """The best value of a figure, and the step of its stage at which it was."""

    value: float
    step: int


def steps_over_all(records: Sequence[Record]) -> list[int]:
    """Of each record the steps so far, those of the stages before its own included."""
    steps: list[int] = []
    before = 0
    for number, record in enumerate(records):
        if number and record["stage"] != records[number - 1]["stage"]:
            before = steps[-1]
        steps.append(before + record["step"])
    return steps


def best(records: Sequence[Record], stage: str, name: str) -> Best | None:
    """The best of a figure in a stage: the highest of decibels, the lowest of anything else; None if it has none."""
    found = [(record[name], record["step"]) for record in records if record["stage"] == stage and name in record]
    if not found:
        return None
    value, step = max(found) if name.endswith("_db") else min(found)
    return Best(value=value, step=step)


def said_of_end(records: Sequence[Record]) -> str:
    """A run that has ended, in words: its steps, its time, and what held-out photos came to at last."""
    if not records:
        return "without a step"
    said = f"{steps_over_all(records)[-1]:,} steps in {clock(3600 * records[-1]['hours'])}"
    looked = next((record for record in reversed(records) if "psnr_full_db" in record), None)
    if looked is None:
        return said
    of_dtf = f", {looked['psnr_dtf_db']:.2f} under DTF" if "psnr_dtf_db" in looked else ""
    return (
        f"{said}; held-out photos come back at {looked['psnr_full_db']:.2f} dB of all tokens{of_dtf}, "
        f"{looked['psnr_globals_db']:.2f} of the globals alone"
    )
