"""Freed memory stays with the process."""

from __future__ import annotations

import subprocess
import sys

import pytest

_FAULTS = """
import resource, sys
from pipeline.allocator import keep_freed_memory
if sys.argv[1] == "keep":
    assert keep_freed_memory()
def faults():
    for _ in range(2):
        first, second = b"a" * 16_000_000, b"b" * 16_000_000
        del first, second
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt
before = faults()
print(faults() - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="mallopt is glibc's")
def test_pages_are_touched_for_the_first_time_only_once() -> None:
    def faults(how: str) -> int:
        return int(
            subprocess.run([sys.executable, "-c", _FAULTS, how], capture_output=True, text=True, check=True).stdout
        )

    assert faults("keep") < 500
    assert faults("leave") > 5_000, "else there is nothing to gain"
