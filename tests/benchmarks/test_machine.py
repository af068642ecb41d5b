"""What a benchmark says of where it was measured."""

from __future__ import annotations

import os
from importlib.metadata import version

from benchmarks.machine import processor, python_and_cores, versions


def test_the_machine_and_the_versions() -> None:
    assert processor()
    assert python_and_cores()["cores"] == str(len(os.sched_getaffinity(0)))
    assert versions(("torch", "no-such-package")) == {"torch": version("torch"), "no-such-package": "not installed"}
