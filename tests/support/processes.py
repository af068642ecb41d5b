"""What tests that start processes need."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from queue import Empty, Queue

from tests.support.places import ROOT


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


class TalkingProcess:
    """A module of the tests run as a program, and what it says, line by line."""

    def __init__(self, module: str, *arguments: str, environment: Mapping[str, str]) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", module, *arguments],
            env={**os.environ, "PYTHONPATH": str(ROOT), **environment},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        self._lines: Queue[str | None] = Queue()  # None: it has ended
        self.said: list[str] = []
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self) -> None:
        assert self._process.stdout is not None
        with self._process.stdout:
            for line in self._process.stdout:
                self._lines.put(line.strip())
        self._lines.put(None)

    def wait_for(self, text: str, seconds: float = 60) -> str:
        """The next line that holds `text`; raises AssertionError, with what was said, if none comes in time."""
        deadline = time.monotonic() + seconds
        while True:
            try:
                line = self._lines.get(timeout=max(deadline - time.monotonic(), 0.1))
            except Empty:
                raise AssertionError(f"no line with {text!r} within {seconds:g} s, but {self.said}") from None
            if line is None:
                raise AssertionError(f"it ended without a line with {text!r}, but said {self.said}")
            self.said.append(line)
            if text in line:
                return line

    def end(self) -> int:
        """Wait for its end; its exit code."""
        return self._process.wait(60)

    def kill(self) -> None:
        """End it, if it is not over."""
        self._process.kill()
        self._process.wait()
