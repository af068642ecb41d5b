"""One measured run, in a process of its own; ANSWER becomes JSON.

    python -m benchmarks.peers.one MODULE VARIANT TASK ANSWER

The run's clock starts when modules are imported and, for those that need one, Ray has started; it stops when the last
row is written. Loading the model and starting workers are within it.
"""

from __future__ import annotations

import json
import os
import sys
import threading
import time
from importlib import import_module
from pathlib import Path

from benchmarks.peers.work import Task

__all__ = ["CpuMeter", "process_tree"]

_SAMPLE_S = 0.25
_TICKS_A_SECOND = os.sysconf("SC_CLK_TCK")


def process_tree(root: int) -> list[int]:
    """A process and all below it that live now."""
    found, pending = [], [root]
    while pending:
        pid = pending.pop()
        found.append(pid)
        try:
            for thread in Path(f"/proc/{pid}/task").iterdir():
                pending += map(int, (thread / "children").read_text().split())
        except OSError:
            continue  # it has ended
    return found


class CpuMeter:
    """CPU seconds of this process and all below it, while the `with` lasts; of one that ends, up to its last look."""

    def __init__(self) -> None:
        self._before: dict[int, float] = {}
        self._now: dict[int, float] = {}
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> CpuMeter:
        self._look()
        self._before = dict(self._now)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._done.set()
        self._thread.join()
        self._look()

    @property
    def seconds(self) -> float:
        """So far."""
        return sum(seconds - self._before.get(pid, 0.0) for pid, seconds in self._now.items())

    def _watch(self) -> None:
        while not self._done.wait(_SAMPLE_S):
            self._look()

    def _look(self) -> None:
        for pid in process_tree(os.getpid()):
            try:
                fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
            except OSError:
                continue
            self._now[pid] = (int(fields[11]) + int(fields[12])) / _TICKS_A_SECOND


def main() -> None:
    """Run one peer once."""
    module, variant, task_file, answer = sys.argv[1:]
    fields = json.loads(Path(task_file).read_text())
    task = Task(**fields | {"shards": tuple(fields["shards"])})
    cores = sorted(os.sched_getaffinity(0))[: task.num_cpus]
    os.sched_setaffinity(0, cores)  # what is started from here on keeps to them
    peer = import_module(module)
    peer.start(task)
    started = time.monotonic()
    with CpuMeter() as meter:
        told = peer.run(task, variant)
        seconds = time.monotonic() - started
    Path(answer).write_text(json.dumps({"seconds": seconds, "cpu_s": meter.seconds, "told": told}))


if __name__ == "__main__":
    main()
