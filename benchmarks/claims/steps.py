"""Steps of a long bench: each a function call in a process of its own, whose result is kept as JSON and not redone."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter

from tatok.schemas.errors import ConfigError

__all__ = ["Step", "read_result", "run_steps", "same_settings"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """A name, which is also its result's file name, and a call that returns a dataclass (or a tuple of them)."""

    name: str
    call: partial[Any]


def _path(folder: Path, name: str) -> Path:
    return folder / f"{name}.json"


def read_result(folder: Path, name: str, kind: Any) -> Any:
    """The result of a step that has ended, validated as `kind`; None where it has not."""
    path = _path(folder, name)
    return TypeAdapter(kind).validate_json(path.read_bytes()) if path.exists() else None


def same_settings(folder: Path, document: object) -> None:
    """Remember what the results in `folder` were made with; raises ConfigError where that was something else."""
    text = json.dumps(document, indent=2, sort_keys=True, default=str)
    path = folder / "settings.json"
    if path.exists() and path.read_text() != text:
        raise ConfigError(f"{folder} has results of other settings; delete it, or choose another --work")
    folder.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def _start(num_threads: int | None) -> None:
    import torch

    if num_threads is not None:
        torch.set_num_threads(num_threads)


def _keep(folder: Path, name: str, result: object) -> None:
    scratch = folder / f"{name}.tmp"
    scratch.write_bytes(TypeAdapter(Any).dump_json(result, indent=1))
    os.replace(scratch, _path(folder, name))


def run_steps(
    steps: Sequence[Step],
    folder: Path,
    *,
    num_processes: int,
    num_threads: int | None,
    on_end: Callable[[str], None] = print,
) -> None:
    """Run the steps that have no result yet, `num_processes` at a time with `num_threads` each, in order.

    With 0 processes they run in this one, one after another, and the first failure ends them. Else a step that fails
    does not stop the others; its error is raised when all have ended.
    """
    folder.mkdir(parents=True, exist_ok=True)
    missing = [step for step in steps if not _path(folder, step.name).exists()]
    if not num_processes:
        for number, step in enumerate(missing, 1):
            _keep(folder, step.name, step.call())
            on_end(f"{number}/{len(missing)} {step.name}")
        return
    failures: list[tuple[str, BaseException]] = []
    with ProcessPoolExecutor(
        num_processes, get_context("spawn"), _start, (num_threads,), max_tasks_per_child=1
    ) as pool:
        names = {pool.submit(step.call): step.name for step in missing}
        for number, future in enumerate(as_completed(names), 1):
            name, error = names[future], future.exception()
            if error is not None:
                failures.append((name, error))
                on_end(f"{number}/{len(missing)} {name} failed: {error}")
                continue
            _keep(folder, name, future.result())
            on_end(f"{number}/{len(missing)} {name}")
    if failures:
        names_of_failed = ", ".join(name for name, _ in failures)
        raise RuntimeError(f"{len(failures)} steps failed: {names_of_failed}") from failures[0][1]
