"""Everything that the claims bench measured, as one JSON file."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from pydantic import TypeAdapter

from benchmarks.claims.entropy import ConditionalEntropy
from benchmarks.claims.generation import Generation, Tokenization
from benchmarks.claims.models import Setting
from benchmarks.claims.reconstruction import Reconstruction
from benchmarks.claims.samples import Sampling
from benchmarks.claims.speed import Speed
from benchmarks.machine import processor, versions

__all__ = ["Machine", "Results", "machine", "read_results", "read_speed", "write_results"]

PACKAGES = ("torch", "torchmetrics", "pyarrow", "ray")


@dataclass(frozen=True, slots=True, kw_only=True)
class Machine:
    """What the figures were measured on; times were those of `num_processes` models trained at a time."""

    processor: str
    num_cores: int
    device: str
    num_processes: int
    num_threads: int
    versions: dict[str, str]


@dataclass(frozen=True, slots=True, kw_only=True)
class Results:
    """One run of the bench at one setting."""

    setting: Setting
    images: str
    heldout: str
    machine: Machine
    reconstructions: tuple[Reconstruction, ...]
    entropies: tuple[ConditionalEntropy, ...]
    tokenizations: tuple[Tokenization, ...]
    generations: tuple[Generation, ...]
    samplings: tuple[Sampling, ...]
    speed: Speed


def machine(device: str, num_processes: int, num_threads: int) -> Machine:
    """This machine."""
    return Machine(
        processor=processor(),
        num_cores=os.cpu_count() or 1,
        device=torch.cuda.get_device_name() if device.startswith("cuda") else device,
        num_processes=num_processes,
        num_threads=num_threads,
        versions=versions(PACKAGES),
    )


def write_results(path: Path, results: Results) -> None:
    """Write the file, whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    scratch = path.with_suffix(".tmp")
    scratch.write_bytes(TypeAdapter(Any).dump_json(results, indent=1) + b"\n")
    os.replace(scratch, path)


def read_results(path: Path) -> Results:
    """Read a file that `write_results` wrote; raises pydantic's ValidationError for another."""
    return TypeAdapter(Results).validate_json(path.read_bytes())


def read_speed(path: Path) -> Speed:
    """Read a file that benchmarks/claims/speed.py wrote; raises pydantic's ValidationError for another."""
    return TypeAdapter(Speed).validate_json(path.read_bytes())
