"""What there is: versions, the card, and the ceilings of its memory and its matrix units."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
from functools import partial
from typing import Any

import torch

from benchmarks.gpu.measure import Section, free_memory, timed
from benchmarks.gpu.precisions import switched
from benchmarks.machine import num_cores, versions

__all__ = ["matmul_flops_per_s", "run"]

PACKAGES = (
    *("torch", "torchvision", "torchcodec", "triton", "numpy", "pillow", "simplejpeg", "pyarrow", "safetensors"),
    *("pydantic", "webdataset", "ray", "av", "duckdb", "rich", "typer"),
)
QUERIES = (
    *("name", "driver_version", "memory.total", "clocks.sm", "clocks.mem", "clocks.max.sm", "power.limit"),
    *("temperature.gpu", "compute_mode", "mig.mode.current", "pcie.link.gen.current", "pcie.link.width.current"),
)


def software() -> dict[str, Any]:
    """Versions of what is installed, and where the compilers are."""
    tools = {name: shutil.which(name) for name in ("gcc", "nvcc", "nvidia-smi")}
    return {
        "python": platform.python_version(),
        "cuda": torch.version.cuda,
        "packages": versions(PACKAGES),
        "tools": tools,
    }


def host() -> dict[str, Any]:
    """The cores and the memory beside the card."""
    memory_bytes = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return {"cores": num_cores(), "torch_threads": torch.get_num_threads(), "memory_gib": memory_bytes / 2**30}


def card() -> dict[str, Any]:
    """What torch and the driver say of the card; nothing is changed."""
    properties = torch.cuda.get_device_properties(0)
    told: dict[str, Any] = {
        "name": properties.name,
        "memory_gib": properties.total_memory / 2**30,
        "multiprocessors": properties.multi_processor_count,
        "capability": f"{properties.major}.{properties.minor}",
        "cudnn": torch.backends.cudnn.version(),
        "float32_matmul_precision": torch.get_float32_matmul_precision(),
        "allow_tf32_override": os.environ.get("TORCH_ALLOW_TF32_CUBLAS_OVERRIDE"),
    }
    query = ["nvidia-smi", f"--query-gpu={','.join(QUERIES)}", "--format=csv,noheader"]
    try:
        answer = subprocess.run(query, capture_output=True, text=True, timeout=10, check=True).stdout
        told["driver"] = dict(zip(QUERIES, (each.strip() for each in answer.split(",")), strict=False))
    except (OSError, subprocess.SubprocessError) as error:
        told["driver"] = str(error)
    return told


def copy_bytes_per_s(device: torch.device, num_bytes: int) -> dict[str, float | int]:
    """A copy within the device's memory; bytes read and bytes written both count."""
    source = torch.rand(num_bytes // 4, device=device)
    target = torch.empty_like(source)
    timing = timed(lambda: target.copy_(source), device, repetitions=20, warmups=3)
    return timing.told() | {"gb_per_s": 2 * num_bytes / timing.median_s / 1e9}


def transfer_bytes_per_s(device: torch.device, num_bytes: int, *, pinned: bool) -> dict[str, float | int]:
    """A copy from the host's memory to the device's."""
    source = torch.randint(0, 256, (num_bytes,), dtype=torch.uint8)
    source = source.pin_memory() if pinned else source
    target = torch.empty(num_bytes, dtype=torch.uint8, device=device)
    timing = timed(lambda: target.copy_(source, non_blocking=pinned), device, repetitions=9)
    return timing.told() | {"gb_per_s": num_bytes / timing.median_s / 1e9}


def matmul_flops_per_s(device: torch.device, precision: str, side: int) -> dict[str, float | int]:
    """A square matrix product of random numbers; some in a row, so that launching them costs nothing."""
    dtype = torch.bfloat16 if precision == "bfloat16" else torch.float32
    left, right = (torch.randn(side, side, device=device, dtype=dtype) for _ in range(2))
    in_a_row = 5 if device.type == "cuda" else 1

    def work() -> None:
        for _ in range(in_a_row):
            left @ right

    with switched("tf32" if precision == "tf32" else "float32", device):
        timing = timed(work, device, repetitions=7, warmups=2, budget_s=2)
    return timing.told() | {"side": side, "tflop_per_s": in_a_row * 2 * side**3 / timing.median_s / 1e12}


def launch_s(device: torch.device) -> dict[str, float | int]:
    """Time of one tiny kernel among a thousand: the least that an operation of eager code costs."""
    number = torch.zeros(1, device=device)

    def work() -> None:
        for _ in range(1000):
            number.add_(1)

    timing = timed(work, device, repetitions=7)
    return timing.told() | {"us_a_launch": 1e3 * timing.median_s}


def run(section: Section) -> None:
    """Everything above, each in turn."""
    device, tiny = section.device, section.tiny
    section.attempt("host", host)
    if section.on_cuda:
        told = section.attempt("card", card)
        if told:
            section.headline(f"{told['name']}, {told['memory_gib']:.1f} GiB, {told['multiprocessors']} multiprocessors")
    copied = section.attempt("copy", lambda: copy_bytes_per_s(device, 1 << (24 if tiny else 31)))
    if copied:
        section.headline(f"copy within memory {copied['gb_per_s']:.0f} GB/s (read and written)")
    free_memory(device)
    for precision in ("float32", "tf32", "bfloat16"):
        side = 256 if tiny else 8192
        found = section.attempt(f"matmul.{precision}", partial(matmul_flops_per_s, device, precision, side))
        if found:
            section.headline(f"matmul {precision} {found['tflop_per_s']:.1f} TFLOP/s")
    free_memory(device)
    section.attempt("launch", lambda: launch_s(device))
    if section.on_cuda:
        for pinned in (False, True):
            name = f"host_to_device.{'pinned' if pinned else 'pageable'}"
            section.attempt(name, partial(transfer_bytes_per_s, device, 256 << 20, pinned=pinned))
    section.attempt("versions", software)
