"""Freed memory stays with the process."""

from __future__ import annotations

import subprocess
import sys

import pytest

_FAULTS = """
import resource, sys, threading
from tatok.allocator import keep_freed_memory
if sys.argv[1] == "keep":
    assert keep_freed_memory()
def faults():
    for _ in range(2):
        blocks = [b"a" * 16_000_000 for _ in range(6)]  # more than one heap of a thread
        del blocks
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt
def tell():
    before = faults()
    print(faults() - before)
if sys.argv[2] == "main":
    tell()
else:
    thread = threading.Thread(target=tell)
    thread.start()
    thread.join()
"""


@pytest.mark.skipif(sys.platform != "linux", reason="mallopt is glibc's")
@pytest.mark.parametrize("thread", ["main", "another"])
def test_pages_are_touched_for_the_first_time_only_once(thread: str) -> None:
    def faults(how: str) -> int:
        command = [sys.executable, "-c", _FAULTS, how, thread]
        return int(subprocess.run(command, capture_output=True, text=True, check=True).stdout)

    assert faults("keep") < 500
    assert faults("leave") > 5_000, "else there is nothing to gain"
