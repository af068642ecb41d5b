"""What a benchmark says of where it was measured: the machine, and the versions of what is installed."""

from __future__ import annotations

import os
import platform
from collections.abc import Iterable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

__all__ = ["num_cores", "processor", "python_and_cores", "versions"]


def num_cores() -> int:
    """The cores that this process may use."""
    return len(os.sched_getaffinity(0))


def processor() -> str:
    """The processor's name, or names."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = {line.partition(":")[2].strip() for line in lines if line.startswith("model name")}
    return ", ".join(sorted(names)) or platform.machine()


def python_and_cores() -> dict[str, str]:
    """The least that a table says of the machine."""
    return {"cores": str(num_cores()), "Python": platform.python_version()}


def versions(packages: Iterable[str]) -> dict[str, str]:
    """The versions of these packages; "not installed" for one that is not."""
    return {name: _version(name) for name in packages}


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "not installed"
