"""How often code turns to the device: kernels, copies and waits, as torch's profiler sees them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

import torch
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile

from benchmarks.gpu.measure import synchronize

__all__ = ["launches"]

MOST_NAMES = 15


def launches(work: Callable[[], object], device: torch.device) -> dict[str, Any]:
    """Kernels and runtime calls of one piece of work, after a first that is not counted."""
    work()
    synchronize(device)
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if device.type == "cuda" else [])]
    with profile(activities=activities) as profiler:
        work()
        synchronize(device)
    kernels: Counter[str] = Counter()
    kernels_us: Counter[str] = Counter()
    calls: Counter[str] = Counter()
    operations = 0
    for event in profiler.events():
        if event.device_type == DeviceType.CUDA:
            kernels[event.name] += 1
            kernels_us[event.name] += event.time_range.elapsed_us()
        elif event.name.startswith(("cuda", "cuLaunch", "cuMem", "cuStream")):
            calls[event.name] += 1
        elif event.name.startswith("aten::"):
            operations += 1
    copies = sum(count for name, count in kernels.items() if name.startswith(("Memcpy", "Memset")))
    return {
        "kernels": sum(kernels.values()) - copies,
        "copies_and_fills": copies,
        "waits": sum(count for name, count in calls.items() if "Synchronize" in name)
        - (device.type == "cuda"),  # the last is ours
        "device_busy_ms": sum(kernels_us.values()) / 1e3,
        "operations": operations,
        "runtime_calls": dict(calls.most_common(MOST_NAMES)),
        "longest_kernels_us": {name[:100]: round(us, 1) for name, us in kernels_us.most_common(MOST_NAMES)},
    }
