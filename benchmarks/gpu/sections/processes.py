"""Several tokenizer processes on one card, and a thread beside another in each: what the interpreter's lock costs.

python3 -m benchmarks.gpu.sections.processes --device cuda is one such process: it says when it is ready, starts
when it is told, and prints how many images it encoded.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from collections import deque
from functools import partial
from pathlib import Path
from typing import Any

import torch

from benchmarks.gpu.measure import Section, synchronize
from benchmarks.gpu.pictures import crops
from benchmarks.gpu.precisions import Mode, modes, tokenizer_in

__all__ = ["run"]

READY_S = 25.0  # for loading and warming up


def encode_for(seconds: float, batch: int, side: int, mode: Mode, device: torch.device, photos: list[Path]) -> None:
    """Encode one batch ahead where the tokenizer can; print the images and the seconds."""
    pixels = crops(photos, min(batch, 64), side).repeat(-(-batch // 64), 1, 1, 1)[:batch]
    with tokenizer_in(mode, device) as tokenizer:
        for _ in range(3):
            tokenizer.encode(pixels)
        synchronize(device)
        print("ready", flush=True)
        sys.stdin.readline()
        pending: deque[Any] = deque()
        images, started = 0, time.perf_counter()
        while time.perf_counter() - started < seconds:
            if not hasattr(tokenizer, "encode_async"):
                images += len(tokenizer.encode(pixels))
                continue
            pending.append(tokenizer.encode_async(pixels))
            if len(pending) > 1:
                images += len(pending.popleft().result())
        while pending:
            images += len(pending.popleft().result())
        print(json.dumps({"images": images, "seconds": time.perf_counter() - started}), flush=True)


def side_by_side(section: Section, num: int, mode: Mode, batch: int) -> dict[str, Any]:
    """Images a second of `num` processes that start together."""
    seconds, side = (0.3, 64) if section.tiny else (2.0, 256)
    command = [sys.executable, "-m", "benchmarks.gpu.sections.processes", "--device", section.device.type]
    command += ["--precision", mode.precision, *(["--graphs"] if mode.graphs else [])]
    command += ["--batch", str(batch), "--side", str(side), "--seconds", str(seconds)]
    command += [argument for path in section.photos for argument in ("--photos", str(path))]
    running = [subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) for _ in range(num)]
    try:
        for process in running:
            assert process.stdout is not None
            process.stdout.readline()
        for process in running:
            assert process.stdin is not None
            process.stdin.write("\n")
            process.stdin.flush()
        told = [json.loads(process.communicate(timeout=seconds + READY_S)[0]) for process in running]
    finally:
        for process in running:
            process.kill()
            process.wait(timeout=5)
    return {
        "processes": num,
        "batch": batch,
        "images_per_s": sum(each["images"] / each["seconds"] for each in told),
        "images_per_s_of_each": [each["images"] / each["seconds"] for each in told],
    }


def run(section: Section) -> None:
    """Four processes, two, and one."""
    fitting = [mode for mode in modes(section.device) if mode.precision == "float32"]
    mode = fitting[-1]  # with graphs where there are any
    rates = []
    for num in (2,) if section.tiny else (4, 2, 1):
        name = f"{mode.name}.processes_{num}"
        work = partial(side_by_side, section, num, mode, 2 if section.tiny else 256)
        found = section.attempt(name, work, needs_s=1 if section.tiny else 10)
        rates += [f"{num}: {found['images_per_s']:.0f}"] if found else []
    section.headline(f"{mode.name}, images/s by processes: {', '.join(rates)}")


def main() -> int:
    """One process."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--precision", default="float32")
    parser.add_argument("--graphs", action="store_true")
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--side", type=int, default=256)
    parser.add_argument("--seconds", type=float, default=3.0)
    parser.add_argument("--photos", type=Path, action="append", default=[])
    options = parser.parse_args()
    mode = Mode(precision=options.precision, graphs=options.graphs)
    device = torch.device(options.device)
    encode_for(options.seconds, options.batch, options.side, mode, device, options.photos)
    return 0


if __name__ == "__main__":
    sys.exit(main())
