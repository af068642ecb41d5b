"""What tests that start processes need."""

from __future__ import annotations

import os
import signal
import socket
from pathlib import Path


def heed_interrupts() -> None:
    """For Popen's preexec_fn: a shell's background jobs, and what they start, are deaf to SIGINT otherwise."""
    signal.signal(signal.SIGINT, signal.default_int_handler)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def descendants(title: str) -> list[int]:
    """Processes below this one whose command line holds `title`, in the order of their ids."""
    parents, matching = {}, []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            stat, command = (folder / "stat").read_text(), (folder / "cmdline").read_bytes().decode(errors="replace")
        except OSError:
            continue
        parents[int(folder.name)] = int(stat.rpartition(")")[2].split()[1])
        if title in command:
            matching.append(int(folder.name))

    def is_ours(pid: int) -> bool:
        while pid > 1:
            if pid == os.getpid():
                return True
            pid = parents.get(pid, 0)
        return False

    return sorted(pid for pid in matching if is_ours(pid))
