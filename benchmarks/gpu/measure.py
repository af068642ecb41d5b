"""What every section shares: its measurements, each of which may fail alone, and the timing of device work."""

from __future__ import annotations

import json
import math
import os
import statistics
import time
import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

__all__ = ["Section", "Timing", "described", "free_memory", "json_ready", "synchronize", "timed", "write_json"]

MESSAGE_CHARACTERS = 1500


@dataclass(slots=True, kw_only=True)
class Section:
    """A section that runs: its device and inputs, and its results, which are on disk after each measurement."""

    device: torch.device
    tiny: bool
    photos: list[Path]
    path: Path
    stops_at_s: float  # of time.monotonic
    results: dict[str, Any] = field(default_factory=dict)
    headlines: list[str] = field(default_factory=list)

    @property
    def on_cuda(self) -> bool:
        """Whether the device is a CUDA card."""
        return self.device.type == "cuda"

    @property
    def remaining_s(self) -> float:
        """Seconds until the section should end by itself."""
        return self.stops_at_s - time.monotonic()

    def attempt(self, name: str, measure: Callable[[], Any], *, needs_s: float = 0.5) -> Any | None:
        """Measure and record under `name`; None where it failed, or where fewer than `needs_s` seconds remain."""
        started = time.monotonic()
        if self.remaining_s < needs_s:
            self._record(name, {"skipped": f"{self.remaining_s:.1f} s remained, it needs {needs_s:.1f}"})
            return None
        try:
            result = measure()
        except Exception as error:  # of any kind: only this measurement is lost
            traceback.print_exc()
            self._record(name, {"error": described(error), "took_s": time.monotonic() - started})
            return None
        if isinstance(result, Mapping):
            result = {**result, "took_s": time.monotonic() - started}
        self._record(name, result)
        return result

    def headline(self, text: str) -> None:
        """A line for the table at the end."""
        self.headlines.append(text)
        self._flush()

    def _record(self, name: str, value: Any) -> None:
        self.results[name] = value
        print(f"{name}: {json.dumps(json_ready(value))[:2000]}", flush=True)
        self._flush()

    def _flush(self) -> None:
        write_json(self.path, {"headlines": self.headlines, "measurements": self.results})


def described(error: BaseException) -> str:
    """Type and message of an error, on one line, cut where it is long."""
    kind = type(error)
    return f"{kind.__module__}.{kind.__qualname__}: {error}"[:MESSAGE_CHARACTERS]


def json_ready(value: Any) -> Any:
    """As JSON knows it: numbers that are not finite become None, what it does not know becomes text."""
    if isinstance(value, Mapping):
        return {str(key): json_ready(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [json_ready(each) for each in value]
    if isinstance(value, float):
        return float(f"{value:.6g}") if math.isfinite(value) else None
    return value if value is None or isinstance(value, bool | int | str) else str(value)


def write_json(path: Path, document: Mapping[str, Any]) -> None:
    """Write atomically, so that a process that is killed leaves a whole file."""
    beside = path.with_name(path.name + ".tmp")
    beside.write_text(json.dumps(json_ready(document), indent=1) + "\n", encoding="utf-8")
    os.replace(beside, path)


def synchronize(device: torch.device) -> None:
    """Wait for all work of the device."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def free_memory(device: torch.device) -> None:
    """Give what no tensor holds back to the device."""
    if device.type == "cuda":
        torch.cuda.empty_cache()


@dataclass(frozen=True, slots=True, kw_only=True)
class Timing:
    """Seconds of several repetitions; they tell how far they spread."""

    median_s: float
    least_s: float
    most_s: float
    repetitions: int

    def told(self, items: int | None = None) -> dict[str, float | int]:
        """For the JSON, with items a second where a repetition does so many."""
        told: dict[str, float | int] = {
            "median_ms": 1e3 * self.median_s,
            "least_ms": 1e3 * self.least_s,
            "most_ms": 1e3 * self.most_s,
            "repetitions": self.repetitions,
        }
        return told if items is None else told | {"images_per_s": items / self.median_s}


def timed(
    work: Callable[[], object],
    device: torch.device,
    *,
    repetitions: int = 7,
    warmups: int = 2,
    budget_s: float = 2.0,
) -> Timing:
    """Time work between two synchronizations; past the budget, three repetitions (one, where each is long) suffice."""
    started = time.perf_counter()
    for _ in range(warmups):
        work()
        synchronize(device)
        if time.perf_counter() - started > budget_s:
            break
    seconds: list[float] = []
    started = time.perf_counter()
    while len(seconds) < repetitions:
        spent = time.perf_counter() - started
        if (spent > budget_s and len(seconds) >= 3) or (spent > 2 * budget_s and seconds):
            break
        before = time.perf_counter()
        work()
        synchronize(device)
        seconds.append(time.perf_counter() - before)
    return Timing(
        median_s=statistics.median(seconds), least_s=min(seconds), most_s=max(seconds), repetitions=len(seconds)
    )
